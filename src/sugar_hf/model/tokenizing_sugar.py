"""From rendered samples to tokens that know which slice they belong to."""

import copy
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NoReturn

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import BatchEncoding, ProcessorMixin

from .samples_sugar import MARK, ControlTokens, Message, Rendered, Renderer, TextPiece, any_of, mark

IGNORED_LABEL = -100
Run = tuple[int, int]  # first character, past the last
# What a processor makes for each token of a text (B, L, ...), by the ends of its names.
_OF_TOKENS = ("token_type_ids", "cross_attention_mask")
Located = tuple[int, int, int]  # token id, first character, past the last
Encoded = tuple[list[int], list[tuple[int, int]]]  # token ids, first character of each and past its last


# --- texts to tokens, without leaving anything behind for the call that comes next


class Encoder:
    """The rules and control tokens of a processor with a fast tokenizer, with settings that no call changes.

    A call of a tokenizer leaves how it pads, truncates and treats special tokens in the Rust tokenizer behind it,
    which all threads share, and which a call beside it then reads. The tokenizers here are copies of that one.

    Args:
        backbone: The backbone's processor.

    Attributes:
        controls: Its control tokens.
        control_ids: Their ids.
        media_ids: The ids of those that stand for or around images, videos and sounds.
        image_id: The id of the token that the processor names as that of images; `None` if it names none.

    Raises:
        ValueError: If its tokenizer is no fast one.
    """

    def __init__(self, backbone: ProcessorMixin) -> None:
        tokenizer = backbone.tokenizer
        _check_fast(tokenizer)
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self._rules = _rules(backbone)
        self._plain = _copied(self._backend)
        self.controls = ControlTokens(backbone)
        self.control_ids = {tokenizer.convert_tokens_to_ids(token) for token in self.controls.all}
        self.media_ids = {tokenizer.convert_tokens_to_ids(token) for token in self.controls.of_media}
        image = self.controls.image
        self.image_id = None if image is None else tokenizer.convert_tokens_to_ids(image)

    def is_of(self, backbone: ProcessorMixin) -> bool:
        """Whether the processor is still what this was made of: its template, tokens or rules may be others since.

        Raises:
            ValueError: If its tokenizer is no fast one.
        """
        _check_fast(backbone.tokenizer)
        return backbone.tokenizer.backend_tokenizer is self._backend and _rules(backbone) == self._rules

    @cached_property
    def control(self) -> re.Pattern[str]:
        """Matches a control token."""
        return any_of(self.controls.all)

    @cached_property
    def medium(self) -> re.Pattern[str]:
        """Matches a control token of images, videos and sounds."""
        return any_of(self.controls.of_media)

    def encode(self, strings: list[str], as_text: bool = False) -> list[Encoded]:
        """Tokenise strings, without the tokens that the tokenizer puts around a text.

        Args:
            strings: B strings.
            as_text: Take special tokens in them for text.
        """
        tokenizer = self._literal if as_text else self._plain
        encodings = tokenizer.encode_batch(strings, add_special_tokens=False)
        return [(encoding.ids, encoding.offsets) for encoding in encodings]

    @cached_property
    def newline(self) -> list[int]:
        """The token ids of a newline at the start of a string."""
        return self.encode(["\n"])[0][0]

    @cached_property
    def special_tokens(self) -> tuple[list[int], list[int]]:
        """The token ids that the tokenizer puts before a text, and those after it."""
        encoding = self._plain.encode("a", add_special_tokens=True)
        own = [i for i, is_added in enumerate(encoding.special_tokens_mask) if not is_added]
        return encoding.ids[: own[0]], encoding.ids[own[-1] + 1 :]

    @cached_property
    def _literal(self) -> Tokenizer:
        return _copied(self._backend, encode_special_tokens=True)


def _copied(backend: Tokenizer, encode_special_tokens: bool = False) -> Tokenizer:
    copied = Tokenizer.from_str(backend.to_str())
    copied.no_padding()
    copied.no_truncation()
    copied.encode_special_tokens = encode_special_tokens
    return copied


def _check_fast(tokenizer: Any) -> None:
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} does not report the characters of a token. Use a fast tokenizer."
        )


def _rules(backbone: ProcessorMixin) -> tuple[Any, ...]:
    """What may be changed in a processor once it is loaded, in a form that can be compared."""
    tokenizer = backbone.tokenizer
    backend = tokenizer.backend_tokenizer
    added = tuple((i, token.content, token.special) for i, token in tokenizer.added_tokens_decoder.items())
    parts = (backend.normalizer, backend.pre_tokenizer, backend.post_processor)
    templates = (backbone.chat_template, tokenizer.chat_template)
    tokens = (getattr(backbone, "image_token", None), sorted(map(str, backbone.all_special_multimodal_tokens)))
    written = (*parts, *templates, *tokens, tokenizer.special_tokens_map)
    return (type(backbone), backend.get_vocab_size(), added, *map(str, written))


# --- which characters of a written sample belong to which of its images
#
# Most processors replace an image's placeholder in one place of transformers, which reports what it has written where.
# The report is checked. Where there is none (a processor that replaces placeholders by its own code, a version of
# transformers that works otherwise), each image is written out alone, and its tokens are counted.


class ImagesNotFoundError(ValueError):
    """A processor does not write images in a way that lets their tokens be found."""


def refuse_images(backbone: ProcessorMixin, where: str, reason: str) -> NoReturn:
    """Say in one sentence that images cannot be used, and what to do.

    Raises:
        ImagesNotFoundError: Always.
    """
    raise ImagesNotFoundError(
        f"{where}: no images can be used with {type(backbone).__name__}: {reason}. Leave images out, or take a "
        "backbone whose processor writes the tokens of an image in the place of its placeholder."
    )


def recorded_spans(text: str, record: list[Any], count: int) -> list[Run] | None:
    """Read where a processor has put images from what transformers notes about it.

    Args:
        text: The string with the images written out.
        record: Notes of one sample: type, span and replacement of each placeholder.
        count: Number of images.

    Returns:
        The span of each image; `None` if the notes are not such, or do not fit the string.
    """
    try:
        images = [(entry["new_span"], entry["replacement"]) for entry in record if entry["type"] == "image"]
        spans = [(int(start), int(end)) for (start, end), _ in images]
    except (KeyError, TypeError, ValueError):
        return None
    fits = all(text[start:end] == written != "" for (start, end), (_, written) in zip(spans, images, strict=True))
    return spans if len(spans) == count and fits and spans == sorted(spans) else None


class ImageCounter:
    """Find where images are by writing each of them out alone.

    Args:
        backbone: The backbone's processor.
        encoder: Of the processor.
        options: Of its call.
    """

    def __init__(self, backbone: ProcessorMixin, encoder: Encoder, options: dict[str, Any]) -> None:
        self._backbone, self._options = backbone, options
        self._controls, self._control = encoder.controls, encoder.control
        self._written: dict[tuple[int, int], tuple[str, int]] = {}  # by the size of an image

    def spans(self, text: str, sample: Rendered) -> list[Run]:
        """Find the span of each image of a sample, from its first image token to its last.

        Raises:
            ImagesNotFoundError: If the string does not hold the tokens that the images have alone, between the same
                texts.
        """
        found = [self._alone(image, sample.where) for image in sample.images]
        tokens = {token for token, _ in found}
        if len(tokens) > 1:
            refuse_images(self._backbone, sample.where, f"it writes images with different tokens, {sorted(tokens)}")
        (token,) = tokens
        wanted, images = [0], iter(count for _, count in found)
        for match in self._controls.marks.finditer(sample.template):
            if match[1] is None:
                wanted[-1] += next(images, 0)
            else:
                wanted.append(0)
        places: list[list[Run]] = [[]]
        for match in re.finditer(f"{MARK.pattern}|{re.escape(token)}", text):
            if match[1] is None:
                places[-1].append(match.span())
            else:
                places.append([])
        if [len(between) for between in places] != wanted:
            refuse_images(
                self._backbone,
                sample.where,
                f"it writes {sum(map(len, places))} tokens {token!r} for images that have {sum(wanted)} when alone, "
                "or not in their places",
            )
        flat, start, spans = [place for between in places for place in between], 0, []
        for _, count in found:
            spans.append((flat[start][0], flat[start + count - 1][1]))
            start += count
        return spans

    def check(self, where: str) -> None:
        """Raise if not even a plain grey image is written in the place of its placeholder.

        Raises:
            ImagesNotFoundError: If so.
        """
        self._alone(Image.new("RGB", (64, 48), "grey"), where)

    def _alone(self, image: Image.Image, where: str) -> tuple[str, int]:
        """Return the token of an image that stands between two texts, and how many of them it has."""
        if image.size not in self._written:
            try:
                text = self._write(image)
            except Exception as error:
                reason = f"it does not write an image in the place of {self._controls.placeholder_token!r} ({error})"
                refuse_images(self._backbone, where, reason)
            match = re.search(f"{mark(0)}(.*){mark(1)}", text, re.DOTALL)
            counts = Counter(self._control.findall(match[1] if match else ""))
            if not counts:
                refuse_images(self._backbone, where, "it writes no control token for an image between two texts")
            named = self._controls.image
            self._written[image.size] = max(counts.items(), key=lambda item: (item[1], item[0] == named))
        return self._written[image.size]

    def _write(self, image: Image.Image) -> str:
        """Return the string that the processor makes of an image between two marks, before it is tokenised."""
        processor: Any = without_checks(self._backbone)
        processor.tokenizer = _Reader(self._backbone.tokenizer)
        text = f"{mark(0)}{self._controls.placeholder.strip()}{mark(1)}"
        try:
            processor(images=[[image]], text=[text], return_tensors="pt", **self._options)
        except _TextReached as written:
            return str(written)
        raise ValueError("it tokenises no string")


class _TextReached(Exception):  # noqa: N818
    """What a processor was about to tokenise."""


class _Reader:
    """Stand-in for a tokenizer that reads what it is given."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: Any, **kwargs: Any) -> NoReturn:
        raise _TextReached(text if isinstance(text, str) else text[0])


def without_checks(backbone: ProcessorMixin) -> ProcessorMixin:
    """Copy a processor that takes samples with and without images together: they have been checked."""
    processor = copy.copy(backbone)
    check: Callable[..., None] = lambda *args, **kwargs: None  # noqa: E731
    processor.validate_inputs = check  # type: ignore[method-assign]
    return processor


# --- samples to tokens


@dataclass
class Tokens:
    """The tokens of one sample. L tokens.

    Args:
        ids: (L,) int64 token ids.
        slices: (L,) int64 slice map: 0 = none, k = slice k, an image, -k = slice k, a text or an image of one token.
        targets: (L,) bool, true where the model learns to write the token.
        starts: (L,) int64 first character of each token; `ends` is past its last. Equal for added tokens.
        ends: See `starts`.
    """

    ids: np.ndarray
    slices: np.ndarray
    targets: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


@dataclass
class _Written:
    """A sample's final string, images expanded and texts put in, with character spans of what it is made of."""

    text: str
    images: list[tuple[int, int]]
    texts: list[tuple[int, int]]  # span i is that of the i-th piece
    shifts: list[tuple[int, int]]  # (position in the backbone's string, characters added up to there)

    def position(self, char: int) -> int:
        """Translate a position of the backbone's string."""
        return char + max((shift for shift in self.shifts if shift[0] <= char), default=(0, 0))[1]


class SampleTokenizer:
    """Turn samples into a model's inputs, by the rules that the backbone's processor has at that moment.

    The rules are kept from call to call, and do not travel to other processes. Threads may share it.
    """

    _encoder: Encoder | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __call__(
        self,
        processor: ProcessorMixin,
        samples: Sequence[list[Message]],
        names: Sequence[str],
        images_kwargs: dict[str, Any] | None = None,
        padding: dict[str, Any] | None = None,
        **rendering: Any,
    ) -> tuple[dict[str, Any], list[Tokens]]:
        """Write samples out, tokenise them, and run the image processor.

        Args:
            processor: The backbone's processor, which stays as it is.
            samples: From `parse_sample`.
            names: Of the samples, for error messages.
            images_kwargs: Options of the backbone's image processor.
            padding: Options of [`Tokenizing`].
            **rendering: Options of [`Renderer`].

        Returns:
            `input_ids`, `attention_mask`, `slice_map`, `labels` and token type ids, padded (B, L), and what the
            processor makes of the images; and the tokens of each sample.
        """
        encoder = self._encoder
        if encoder is None or not encoder.is_of(processor):
            encoder = self._encoder = Encoder(processor)
        backbone = copy.copy(processor)  # some keep notes in themselves
        rendered = Renderer(backbone, encoder.controls, **rendering).render(samples, names)
        options = {} if images_kwargs is None else {"images_kwargs": images_kwargs}
        return Tokenizing(backbone, encoder, rendered, options, **padding or {}).run()


class Tokenizing:
    """Stands in for the backbone's tokenizer during one call of the backbone's processor.

    The backbone's processor expands the image placeholders in strings that hold marks; here the marks give way to the
    texts, which are tokenised so that nothing in them becomes a control token. What the processor derives from the
    ids (token type ids, ...) is thereby right too.

    Args:
        backbone: The backbone's processor, a copy of this call's own.
        encoder: Of its tokenizer.
        samples: From [`Renderer.render`].
        options: Of the processor's call.
        length: Pad to this length at least.
        multiple: Pad to a multiple of this.
        side: `"left"` or `"right"`.
    """

    def __init__(
        self,
        backbone: ProcessorMixin,
        encoder: Encoder,
        samples: list[Rendered],
        options: dict[str, Any],
        length: int = 0,
        multiple: int = 1,
        side: str = "right",
    ) -> None:
        self._backbone = backbone
        self._tokenizer = backbone.tokenizer
        self._encoder = encoder
        self._samples = samples
        self._length, self._multiple, self._side = length, multiple, side
        self._control_ids = encoder.control_ids
        self._current: list[int] = []  # the samples of the call that runs
        self._records: list[Any] = []  # what its placeholders expanded to
        self._counter: ImageCounter | None = None  # tells where images are if there is no such record
        self._options = options
        self._raised: Exception | None = None  # by this class, through the backbone's processor
        self._done: dict[int, Tokens] = {}

    def run(self) -> tuple[dict[str, Any], list[Tokens]]:
        """Call the backbone's processor on the samples; see [`SampleTokenizer`].

        Samples without images are a call of their own: some processors write a text differently if others in its
        batch have images.
        """
        features: dict[str, Any] = {}
        of_tokens: dict[str, dict[int, np.ndarray]] = {}
        for with_images in (True, False):
            self._current = [i for i, sample in enumerate(self._samples) if bool(sample.images) is with_images]
            if not self._current:
                continue
            part = self._call_backbone()
            masks = torch.as_tensor(part["attention_mask"]).bool()
            self._check_ids(torch.as_tensor(part["input_ids"]), masks)
            for key, value in part.items():
                if key.endswith(_OF_TOKENS):
                    of_samples = zip(self._current, torch.as_tensor(value), masks, strict=True)
                    of_tokens.setdefault(key, {}).update({i: row[mask].numpy() for i, row, mask in of_samples})
                elif key not in ("input_ids", "attention_mask"):
                    features[key] = value
        rows = [self._done[i] for i in range(len(self._samples))]
        features["input_ids"] = self._pad([row.ids for row in rows], self._pad_id())
        features["attention_mask"] = self._pad([np.ones_like(row.ids) for row in rows], 0)
        for key, found in of_tokens.items():
            self._check_places(key, found)
            features[key] = self._pad([found.get(i, np.zeros_like(row.ids)) for i, row in enumerate(rows)], 0)
        features["slice_map"] = self._pad([row.slices for row in rows], 0)
        # some backbones make labels of their own, for another format
        labels = [np.where(row.targets, row.ids, IGNORED_LABEL) for row in rows]
        features["labels"] = self._pad(labels, IGNORED_LABEL)
        return features, rows

    def _call_backbone(self) -> dict[str, Any]:
        processor: Any = without_checks(self._backbone)  # they are done, and not every sample needs an image
        self._records = []
        if expand := getattr(processor, "get_text_with_replacements", None):  # if this version of transformers has it

            def recorded(*args: Any, **kwargs: Any) -> Any:
                found = expand(*args, **kwargs)
                if isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], list):
                    self._records = found[1]
                return found

            processor.get_text_with_replacements = recorded
        processor.tokenizer = self
        samples = [self._samples[i] for i in self._current]
        try:
            return dict(
                processor(
                    images=[list(sample.images) for sample in samples] if samples[0].images else None,
                    text=[sample.template for sample in samples],
                    return_tensors="pt",
                    **self._options,
                )
            )
        except Exception as error:
            if error is self._raised:  # it names its sample
                raise
            raise self._explained(error) from error

    def _explained(self, error: Exception) -> Exception:
        """Say which sample it is that a processor fails at, and whether it is the sample's fault."""
        name, at = type(self._backbone).__name__, self._current[0]
        if len(self._current) > 1:
            for at in self._current:
                try:
                    Tokenizing(self._backbone, self._encoder, [self._samples[at]], self._options).run()
                except ValueError as of_sample:
                    return of_sample
            where = f"{self._samples[self._current[0]].where} and others"
            return ValueError(f"{where}: {name} cannot process them together ({error}). Process them apart.")
        sample = self._samples[at]
        if not sample.images:
            return ValueError(f"{sample.where}: {name} cannot process a sample without images ({error}).")
        try:
            ImageCounter(self._backbone, self._encoder, self._options).check(sample.where)
        except ImagesNotFoundError as refusal:
            return refusal
        return ValueError(f"{sample.where}: {name} cannot process its images ({error}).")

    def _check_ids(self, ids: torch.Tensor, masks: torch.Tensor) -> None:
        """Raise if a processor has changed the tokens that it was given: the slice map would mark others."""
        for i, row, mask in zip(self._current, ids, masks, strict=True):
            if row[mask].tolist() != self._done[i].ids.tolist():
                refuse_images(self._backbone, self._samples[i].where, "it changes the tokens of a text afterwards")

    def _check_places(self, key: str, found: dict[int, np.ndarray]) -> None:
        """Raise if samples with different numbers of images cannot lie in one batch.

        Where tokens look at images from beside the text, a token that may see no image sees those of its neighbours.
        """
        counts = [len(sample.images) for sample in self._samples]
        if next(iter(found.values())).ndim > 1 and len(set(counts)) > 1:
            other = next(i for i, count in enumerate(counts) if count != counts[0])
            raise ValueError(
                f"{self._samples[0].where} has {counts[0]} images and {self._samples[other].where} {counts[other]}: "
                f"in a batch of {type(self._backbone).__name__} they would change each other. Process samples with "
                "different numbers of images apart."
            )

    def _pad_id(self) -> int:
        """Return an id that is not the image's; it is masked."""
        ids = (self._tokenizer.pad_token_id, self._tokenizer.eos_token_id, 0)
        return next(token for token in ids if token is not None)

    def _pad(self, rows: list[np.ndarray], value: int) -> np.ndarray:
        """Pad rows (L_i, ...) to one array (B, L, ...)."""
        length = max(self._length, *(len(row) for row in rows))
        length += -length % self._multiple
        padded = np.full((len(rows), length, *rows[0].shape[1:]), value, dtype=np.int64)
        for target, row in zip(padded, rows, strict=True):
            target[slice(length - len(row), None) if self._side == "left" else slice(len(row))] = row
        return padded

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: Any, **kwargs: Any) -> BatchEncoding:
        try:
            return self._tokenised(text, **kwargs)
        except ValueError as error:
            self._raised = error
            raise

    def _tokenised(self, text: Any, **kwargs: Any) -> BatchEncoding:
        samples = [self._samples[i] for i in self._current]
        for sample, expanded in zip(samples, text if isinstance(text, list) else [], strict=False):
            if MARK.findall(expanded) != MARK.findall(sample.template):
                refuse_images(self._backbone, sample.where, "it leaves out texts or writes them elsewhere")
        if not isinstance(text, list) or len(text) != len(samples):
            refuse_images(self._backbone, samples[0].where, "it tokenises pieces of a text one by one")
        spans = [self._spans(i, *row) for i, row in enumerate(zip(text, samples, strict=True))]
        written = [_write(*row) for row in zip(text, spans, samples, strict=True)]
        plans = [self._plan(*row) for row in zip(written, samples, strict=True)]
        encoded = self._encode([row.text for row in written], plans)
        for i, (found, sample) in enumerate(zip(written, samples, strict=True)):
            if stray := self._strays(found, sample, encoded[i]):
                literals = plans[i][1] | stray
                plans[i] = (self._cut(found, self._pieces(found, sample), literals), literals)
                encoded[i] = self._encode([found.text], [plans[i]])[0]
                if self._strays(found, sample, encoded[i]):
                    raise ValueError(f"{sample.where}: the tokenizer makes a control token of a character in it.")
        special = kwargs.get("add_special_tokens", True)  # some processors have it that the template writes them
        rows = [self._tokenise(*row, special) for row in zip(written, samples, encoded, strict=True)]
        for i, row in zip(self._current, rows, strict=True):
            self._done[i] = row
        ids = [row.ids for row in rows]
        data: dict[str, Any] = {
            "input_ids": self._pad(ids, self._pad_id()),
            "attention_mask": self._pad([np.ones_like(row) for row in ids], 0),
        }
        if kwargs.get("return_tensors") is None:  # as a tokenizer does; some processors count in these lists
            data = {name: rows.tolist() for name, rows in data.items()}
        if kwargs.get("return_token_type_ids"):
            data["token_type_ids"] = self._pad([_second_part(row.targets) for row in rows], 0).tolist()
        return _Encoding(data, written, rows)

    def _spans(self, row: int, text: str, sample: Rendered) -> list[Run]:
        """Find the characters that the processor has written for each image."""
        if not sample.images:
            return []
        record = self._records[row] if row < len(self._records) else []
        if (found := recorded_spans(text, record, len(sample.images))) is not None:
            return found
        if self._counter is None:
            self._counter = ImageCounter(self._backbone, self._encoder, self._options)
        return self._counter.spans(text, sample)

    def _plan(self, written: _Written, sample: Rendered) -> tuple[list[Run], set[Run]]:
        """Cut a text into runs that are tokenised one by one. Returns them, and those that are literals."""
        pieces = self._pieces(written, sample)
        literals = {
            (start + match.start(), start + match.end())
            for piece, (start, _) in pieces
            for match in (self._encoder.medium if piece.steers else self._encoder.control).finditer(piece.text)
        }
        return self._cut(written, pieces, literals), literals

    def _strays(self, written: _Written, sample: Rendered, tokens: list[Located]) -> set[Run]:
        """Find the control tokens that the tokenizer's normaliser has made of a text ("＜image＞", in NFKC)."""
        found = [(start, end, token) for token, start, end in tokens if token in self._control_ids]
        return {
            (start, end)
            for piece, (first, last) in self._pieces(written, sample)
            for start, end, token in found
            if first <= start < end <= last and (not piece.steers or token in self._encoder.media_ids)
        }

    def _pieces(self, written: _Written, sample: Rendered) -> list[tuple[TextPiece, Run]]:
        return list(zip(sample.pieces.values(), written.texts, strict=True))

    def _cut(self, written: _Written, pieces: list[tuple[TextPiece, Run]], literals: set[Run]) -> list[Run]:
        runs = sorted(literals)
        bounds = {0, len(written.text), *(bound for run in runs for bound in run)}
        for piece, (start, _) in pieces:
            for cut in piece.cuts:
                before = bisect_left(runs, (start + cut, 0)) - 1  # the last literal that begins before it
                if before < 0 or runs[before][1] <= start + cut:
                    bounds.add(start + cut)
        return list(pairwise(sorted(bounds)))

    def _tokenise(self, written: _Written, sample: Rendered, tokens: list[Located], special: bool) -> Tokens:
        pieces = self._pieces(written, sample)
        if sample.add_special_tokens and special:
            before, after = self._encoder.special_tokens  # what the tokenizer puts around a text (bos, if anything)
            end = tokens[-1][2]
            tokens = [(token, 0, 0) for token in before] + tokens + [(token, end, end) for token in after]
        ids, starts, ends = (np.array(column, dtype=np.int64) for column in zip(*tokens, strict=True))

        slices = np.zeros_like(ids)
        tokens_of_images = set()
        for (start, end), number in zip(written.images, sample.image_slices, strict=True):
            inside = (starts >= start) & (ends <= end) & (ends > starts)
            token = self._image_token(ids[inside], sample.where)
            found = np.flatnonzero(inside & (ids == token))
            slices[found] = number if len(found) > 1 else -number  # see `pool_slices`
            tokens_of_images.add(token)
        if np.isin(ids[slices == 0], list(tokens_of_images)).any():
            refuse_images(self._backbone, sample.where, "it writes image tokens elsewhere than in the images' places")
        targets = np.zeros(len(ids), dtype=bool)
        for piece, (offset, end) in pieces:
            for number, first, last in piece.slices:
                found = np.flatnonzero((starts < offset + last) & (ends > offset + first))
                if not len(found) or slices[found[-1]]:
                    raise ValueError(f"{sample.where}: {piece.text[first:last]!r:.60} has no token of its own.")
                slices[found[slices[found] == 0]] = -number
            if piece.is_target:
                targets |= (starts < end) & (ends > offset - piece.lead)
            if piece.ends_turn:
                targets |= self._end_of_turn(written.text, ids, starts, ends, end)
        return Tokens(ids, slices, targets, starts, ends)

    def _image_token(self, ids: np.ndarray, where: str) -> int:
        """Find the token that stands for an image feature: the most frequent control token of an expanded image.

        Not the one that the processor names: in some families that one opens the image, or is listed among others.
        """
        counts = Counter(token for token in ids.tolist() if token in self._control_ids)
        if not counts:
            refuse_images(self._backbone, where, "the tokenizer has no control token for what it writes of an image")
        return max(counts, key=lambda token: (counts[token], token == self._encoder.image_id))

    def _end_of_turn(
        self, text: str, ids: np.ndarray, starts: np.ndarray, ends: np.ndarray, position: int
    ) -> np.ndarray:
        """Mark the control token after an assistant's text, and whitespace between them. (L,) bool."""
        marked = np.zeros(len(ids), dtype=bool)
        for i in np.flatnonzero(starts >= position):
            marked[i] = True
            if ids[i] in self._control_ids:
                return marked
            if not text[starts[i] : ends[i]].isspace():
                break
        return np.zeros(len(ids), dtype=bool)

    def _encode(self, texts: list[str], plans: list[tuple[list[Run], set[Run]]]) -> list[list[Located]]:
        """Tokenise the runs of all texts, literals as plain text. Returns the tokens of each text."""
        found: dict[tuple[int, Run], list[Located]] = {}
        for as_text in (False, True):
            keys = [
                (i, run) for i, (runs, literals) in enumerate(plans) for run in runs if (run in literals) is as_text
            ]
            found.update(zip(keys, self._encode_runs([(texts[i], run) for i, run in keys], as_text), strict=True))
        for i, (_, literals) in enumerate(plans):
            for run in literals:
                if any(token in self._control_ids for token, _, _ in found[i, run]):  # added, but not special
                    rows = self._encode_runs([(texts[i], (start, start + 1)) for start in range(*run)])
                    found[i, run] = [token for row in rows for token in row]
        return [[token for run in runs for token in found[i, run]] for i, (runs, _) in enumerate(plans)]

    def _encode_runs(self, runs: list[tuple[str, Run]], as_text: bool = False) -> list[list[Located]]:
        # SentencePiece puts a space before the start of a string; after a newline it does not
        strings = [text[start:end] if start == 0 else "\n" + text[start:end] for text, (start, end) in runs]
        newline = self._encoder.newline
        rows = []
        for (text, (start, end)), (ids, offsets) in zip(runs, self._encoder.encode(strings, as_text), strict=True):
            shift = start
            if start:
                if ids[: len(newline)] == newline:
                    ids, offsets, shift = ids[len(newline) :], offsets[len(newline) :], start - 1
                else:
                    ids, offsets = self._encoder.encode([text[start:end]], as_text)[0]
            rows.append([(token, a + shift, b + shift) for token, (a, b) in zip(ids, offsets, strict=True)])
        return rows


class _Encoding(BatchEncoding):
    """Tokens in the form that processors expect, with positions of the backbone's strings."""

    def __init__(self, data: dict[str, Any], written: list[_Written], rows: list[Tokens]) -> None:
        super().__init__(data)
        self._written, self._rows = written, rows

    def char_to_token(self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0) -> int:
        """Return the token that holds a character of a sample, counted without padding."""
        position = self._written[batch_or_char_index].position(char_index or 0)
        row = self._rows[batch_or_char_index]
        return int(np.flatnonzero((row.starts <= position) & (row.ends > position))[0])


def _second_part(targets: np.ndarray) -> np.ndarray:
    """Return the token types (L,) of a prompt, 0, and what the model writes after it, 1.

    A backbone that asks for them lets the prompt see all of itself: a text that is to be learnt must not be in it.
    """
    return np.logical_or.accumulate(targets).astype(np.int64)


def _write(template: str, images: list[Run], sample: Rendered) -> _Written:
    """Put the texts in the place of their marks."""
    chunks, texts, shifts = [], [], []
    length = done = 0
    for match in MARK.finditer(template):
        chunk, text = template[done : match.start()], sample.pieces[int(match[1])].text
        texts.append((length + len(chunk), length + len(chunk) + len(text)))
        chunks += [chunk, text]
        length += len(chunk) + len(text)
        done = match.end()
        shifts.append((done, length - done))
    chunks.append(template[done:])
    written = _Written("".join(chunks), [], texts, shifts)
    written.images.extend((written.position(start), written.position(end - 1) + 1) for start, end in images)
    return written
