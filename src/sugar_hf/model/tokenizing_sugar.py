"""From rendered samples to tokens that know which slice they belong to."""

import re
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from transformers import BatchEncoding, ProcessorMixin

from .encoding_sugar import Encoder
from .locating_sugar import ImageCounter, ImagesNotFoundError, recorded_spans, refuse_images, without_checks
from .rendering_sugar import MARK, Rendered, TextPiece, control_tokens, image_token, placeholder_tokens

Run = tuple[int, int]  # first character, past the last
# What a processor makes for each token of a text (B, L, ...), by the ends of its names.
_OF_TOKENS = ("token_type_ids", "cross_attention_mask")
Located = tuple[int, int, int]  # token id, first character, past the last


@dataclass
class Tokens:
    """The tokens of one sample. L tokens.

    Args:
        ids: (L,) int64 token ids.
        slices: (L,) int64 slice map: 0 = none, k = slice k.
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


class Tokenizing:
    """Stands in for the backbone's tokenizer during one call of the backbone's processor.

    The backbone's processor expands the image placeholders in strings that hold marks; here the marks give way to the
    texts, which are tokenised so that nothing in them becomes a control token. What the processor derives from the
    ids (token type ids, ...) is thereby right too.

    Args:
        backbone: The backbone's processor, a copy of this call's own.
        encoder: Of its tokenizer.
        samples: From `render`.
        length: Pad to this length at least.
        multiple: Pad to a multiple of this.
        side: `"left"` or `"right"`.
    """

    def __init__(
        self,
        backbone: ProcessorMixin,
        encoder: Encoder,
        samples: list[Rendered],
        length: int,
        multiple: int,
        side: str,
    ) -> None:
        self._backbone = backbone
        self._tokenizer = backbone.tokenizer
        self._encoder = encoder
        self._samples = samples
        self._length, self._multiple, self._side = length, multiple, side
        controls = control_tokens(backbone)
        self._control_ids = {self._tokenizer.convert_tokens_to_ids(token) for token in controls}
        self._control = _any_of(controls)
        placeholders = placeholder_tokens(backbone) & controls
        self._placeholder_ids = {self._tokenizer.convert_tokens_to_ids(token) for token in placeholders}
        self._placeholder = _any_of(placeholders)
        self._current: list[int] = []  # the samples of the call that runs
        self._records: list[Any] = []  # what its placeholders expanded to
        self._counter: ImageCounter | None = None  # tells where images are if there is no such record
        self._options: dict[str, Any] = {}
        self._raised: Exception | None = None  # by this class, through the backbone's processor
        self._done: dict[int, Tokens] = {}

    @property
    def rows(self) -> list[Tokens]:
        """The tokens of each sample, once `run` is through."""
        return [self._done[i] for i in range(len(self._samples))]

    def run(self, images_kwargs: dict[str, Any] | None) -> dict[str, np.ndarray | torch.Tensor]:
        """Call the backbone's processor on the samples.

        Samples without images are a call of their own: some processors write a text differently if others in its
        batch have images.

        Returns:
            `input_ids`, `attention_mask` and token type ids, padded (B, L), and what the processor makes of the
            images. The token rows are left in `rows`.
        """
        self._options = {} if images_kwargs is None else {"images_kwargs": images_kwargs}
        self._counter = None
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
        rows = [row.ids for row in self.rows]
        features["input_ids"] = self.pad(rows, self._pad_id())
        features["attention_mask"] = self.pad([np.ones_like(row) for row in rows], 0)
        for key, found in of_tokens.items():
            self._check_places(key, found)
            features[key] = self.pad([found.get(i, np.zeros_like(row)) for i, row in enumerate(rows)], 0)
        return features

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
                    Tokenizing(self._backbone, self._encoder, [self._samples[at]], 0, 1, self._side).run(
                        self._options.get("images_kwargs")
                    )
                except ValueError as of_sample:
                    return of_sample
            where = f"{self._samples[self._current[0]].where} and others"
            return ValueError(f"{where}: {name} cannot process them together ({error}). Process them apart.")
        sample = self._samples[at]
        if not sample.images:
            return ValueError(f"{sample.where}: {name} cannot process a sample without images ({error}).")
        try:
            ImageCounter(self._backbone, self._options).check(sample.where)
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

    def pad(self, rows: list[np.ndarray], value: int) -> np.ndarray:
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
            "input_ids": self.pad(ids, self._pad_id()),
            "attention_mask": self.pad([np.ones_like(row) for row in ids], 0),
        }
        if kwargs.get("return_tensors") is None:  # as a tokenizer does; some processors count in these lists
            data = {name: rows.tolist() for name, rows in data.items()}
        if kwargs.get("return_token_type_ids"):
            data["token_type_ids"] = self.pad([_second_part(row.targets) for row in rows], 0).tolist()
        return _Encoding(data, written, rows)

    def _spans(self, row: int, text: str, sample: Rendered) -> list[Run]:
        """Find the characters that the processor has written for each image."""
        if not sample.images:
            return []
        record = self._records[row] if row < len(self._records) else []
        if (found := recorded_spans(text, record, len(sample.images))) is not None:
            return found
        if self._counter is None:
            self._counter = ImageCounter(self._backbone, self._options)
        return self._counter.spans(text, sample)

    def _plan(self, written: _Written, sample: Rendered) -> tuple[list[Run], set[Run]]:
        """Cut a text into runs that are tokenised one by one. Returns them, and those that are literals."""
        pieces = self._pieces(written, sample)
        literals = {
            (start + match.start(), start + match.end())
            for piece, (start, _) in pieces
            for match in (self._placeholder if piece.steers else self._control).finditer(piece.text)
        }
        return self._cut(written, pieces, literals), literals

    def _strays(self, written: _Written, sample: Rendered, tokens: list[Located]) -> set[Run]:
        """Find the control tokens that the tokenizer's normaliser has made of a text ("＜image＞", in NFKC)."""
        found = [(start, end, token) for token, start, end in tokens if token in self._control_ids]
        return {
            (start, end)
            for piece, (first, last) in self._pieces(written, sample)
            for start, end, token in found
            if first <= start < end <= last and (not piece.steers or token in self._placeholder_ids)
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
            slices[inside & (ids == token)] = number
            tokens_of_images.add(token)
        if np.isin(ids[slices == 0], list(tokens_of_images)).any():
            refuse_images(self._backbone, sample.where, "it writes image tokens elsewhere than in the images' places")
        targets = np.zeros(len(ids), dtype=bool)
        for piece, (offset, end) in pieces:
            for number, first, last in piece.slices:
                found = np.flatnonzero((starts < offset + last) & (ends > offset + first))
                if not len(found) or slices[found[-1]]:
                    raise ValueError(f"{sample.where}: {piece.text[first:last]!r:.60} has no token of its own.")
                slices[found[-1]] = number
            if piece.is_target:
                targets |= (starts < end) & (ends > offset - piece.lead)
            if piece.ends_turn:
                targets |= self._end_of_turn(written.text, ids, starts, ends, end)
        return Tokens(ids, slices, targets, starts, ends)

    def _image_token(self, ids: np.ndarray, where: str) -> int:
        """Find the token that stands for an image feature: the most frequent control token of an expanded image.

        Not the one that the processor names: in some families that one opens the image, or is listed among others.
        """
        named = self._tokenizer.convert_tokens_to_ids(image_token(self._backbone))
        counts = Counter(token for token in ids.tolist() if token in self._control_ids)
        if not counts:
            refuse_images(self._backbone, where, "the tokenizer has no control token for what it writes of an image")
        return max(counts, key=lambda token: (counts[token], token == named))

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


def _any_of(tokens: frozenset[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")


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
