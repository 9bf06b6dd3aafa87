"""Pipelines `sugar-retrieval` and `sugar-generation`."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm
from transformers import Pipeline

from .embedding_sugar import PrefixCheck, check_prefix_embeddings, embed_list
from .modeling_sugar import SugarForConditionalGeneration
from .processing_sugar import SugarProcessor
from .samples_sugar import Sample, is_chat, parse_sample

DEFAULT_BATCH_SIZE = 8
DEFAULT_NEW_TOKENS = 256
_FURTHER_OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
_FORMS = (
    "Write several inputs as a list of inputs: [['a cat', image], ['a dog']]; one interleaved input as "
    "{'query': ['a cat', image]} or as chat messages."
)


@runtime_checkable
class RetrievalIndex(Protocol):
    """What the retrieval pipeline searches: embeddings in, scores and places in `documents` out."""

    documents: Sequence[Any]

    def search_embeddings(self, embeddings: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return scores (q, k) and indices (q, k) for embeddings (q, d); an index of -1 fills up short results."""


class CandidateIndex:
    """Exact search by cosine over candidates in memory.

    Args:
        documents: N candidates.
        embeddings: (N, d) float32 unit vectors.
    """

    def __init__(self, documents: Sequence[Any], embeddings: np.ndarray) -> None:
        self.documents = documents
        self.embeddings = embeddings

    def search_embeddings(self, embeddings: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return scores (q, k) and indices (q, k), best first, for embeddings (q, d)."""
        scores = embeddings @ self.embeddings.T  # (q, N)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
        return np.take_along_axis(scores, order, axis=1), order


class _Item:
    """Carries a sample through the pipeline's batching, which knows how to batch tensors only."""

    def __init__(self, sample: Sample, name: str) -> None:
        self.sample = sample
        self.name = name


def split_inputs(inputs: Any) -> tuple[list[Sample], bool]:
    """Tell one input from several.

    One: a str, an image, a Path, a part, one chat, or `{"query": sample}`. Several: a list of those and of
    interleaved samples (lists). A flat list of texts, or of images, is several inputs; a flat list of both could be
    one interleaved input as well, and is refused.

    Returns:
        The samples, and whether there was one.

    Raises:
        ValueError: If the list is empty or could be read in both ways.
    """
    if isinstance(inputs, dict):
        return [inputs.get("query", inputs)], True
    if isinstance(inputs, str | bytes | Image.Image | Path) or is_chat(inputs):
        return [inputs], True
    if not isinstance(inputs, Sequence) or not len(inputs):
        raise ValueError(f"cannot read {inputs!r:.80} as an input or a list of inputs. {_FORMS}")
    if not any(isinstance(item, list | tuple) or (isinstance(item, dict) and "query" in item) for item in inputs):
        parts = [parse_sample(item, f"input {i}")[0].parts[0] for i, item in enumerate(inputs)]
        if len({part.is_image for part in parts}) > 1:
            raise ValueError(f"a flat list of texts and images is one interleaved input or several. {_FORMS}")
    return [item["query"] if isinstance(item, dict) and "query" in item else item for item in inputs], False


def candidates_of(candidates: Any) -> list[Sample]:
    """Return the samples of whatever holds candidates.

    Raises:
        ValueError: It is a single thing, a table, or its rows are no samples.
    """
    is_one = isinstance(candidates, str | bytes | Path | Image.Image | Mapping)
    # a table of pandas or polars yields its columns
    if is_one or not isinstance(candidates, Iterable) or type(candidates).__name__ == "DataFrame":
        raise ValueError(
            f"candidates must be a list or an index, got a {type(candidates).__name__}. For one: "
            "candidates=[sample]; for a table: list(table['text']), or [[row['image'], row['text']] for row in rows]."
        )
    return [_sample_of(candidate, f"candidate {i}") for i, candidate in enumerate(candidates)]


def _sample_of(item: Any, where: str) -> Sample:
    """The sample of a row of a data set; anything else as it is."""
    if not isinstance(item, Mapping) or "type" in item or "query" in item:
        return item["query"] if isinstance(item, Mapping) and "query" in item else item
    given = {key: value for key, value in item.items() if value is not None}
    if len(item) == 1:
        [(key, value)] = item.items()
        return picture_part(value) if key == "image" else value
    if given and given.keys() <= {"image", "images", "text"}:
        images = [given["image"]] if "image" in given else []
        images += list(given.get("images", ()))
        return [*map(picture_part, images), *([given["text"]] if "text" in given else [])]
    raise ValueError(
        f"{where}: a row with the columns {', '.join(map(str, item))} does not say which are the sample. Give "
        "[[row['image'], row['text']] for row in rows], with the columns that you mean."
    )


def picture_part(source: Any) -> Any:
    """What can only be an image, as a part of a sample: a str is its path, a `data:` address or base64."""
    return {"type": "image", "image": source} if isinstance(source, str) else source


class SugarPipeline(Pipeline):
    """What both pipelines share: the processor runs in the forward step, on the whole batch, whatever is in it."""

    _load_processor = True
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False
    model: SugarForConditionalGeneration
    processor: SugarProcessor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.model.config.model_type != "sugar":
            raise ValueError(
                f"{self.task or type(self).__name__} needs a Sugar model, got {self.model.config.model_type}. "
                "Wrap it with SugarForConditionalGeneration.from_backbone and train it."
            )
        if self.processor is None:
            raise ValueError("processor is missing: pass processor=SugarProcessor.from_pretrained(...).")

    def preprocess(self, inputs: _Item) -> dict[str, _Item]:
        """Leave the sample as it is."""
        return {"item": inputs}

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Save model and processor, to be loaded with the Auto classes and `pipeline`."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Upload model and processor as `model.push_to_hub` does."""
        return self.model.push_to_hub(repo_id, processor=self.processor, **kwargs)

    def _run(self, samples: list[Sample], names: list[str], batch_size: int | None, **kwargs: Any) -> list[Any]:
        items = [_Item(sample, name) for sample, name in zip(samples, names, strict=True)]
        return super().__call__(items, batch_size=batch_size or self._batch_size or DEFAULT_BATCH_SIZE, **kwargs)

    def _process(self, model_inputs: dict[str, Any], **options: Any) -> dict[str, Any]:
        items = model_inputs["item"]
        items = items if isinstance(items, list) else [items]
        features = self.processor(
            [item.sample for item in items], names=[item.name for item in items], padding_side="left", **options
        )
        return features.to(self.device, dtype=self.model.dtype)


class SugarRetrievalPipeline(SugarPipeline):
    """Embed interleaved queries and find the nearest candidates.

    ```python
    retrieve = pipeline("sugar-retrieval", model="sugar")
    retrieve("a red cat", candidates=[Path("a.jpg"), Path("b.jpg")], top_k=1)
    # [{"index": 1, "score": 0.83, "candidate": PosixPath("b.jpg")}]
    ```

    The embedding of a query or candidate is that at its last slice.
    """

    def __call__(
        self,
        queries: Any,
        candidates: Iterable[Any] | RetrievalIndex | None = None,
        *,
        top_k: int | None = None,
        return_positions: bool | None = None,
        return_embeddings: bool | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
    ) -> Any:
        """Retrieve. Options that are left out are those given to `pipeline`, or their defaults.

        Args:
            queries: One query (str, PIL image, Path, part, chat, or `{"query": interleaved list}`), or a list of
                queries, each of any form, interleaved ones as lists.
            candidates: A list of samples, each a str, an image, a Path, an interleaved list or a chat, or what
                yields such; or an index with `search_embeddings` and `documents`. A `datasets.Dataset` is taken if
                it has one column, or columns `image` or `images` and `text`. What is no index is embedded at each
                call: for more than one call, embed it once with [`encode`] and pass a `CandidateIndex`. Not needed
                with `return_embeddings`.
            top_k: How many results; 5 by default.
            return_positions: Give one result list for each slice end of the query, in order, from one forward pass.
                These are the results of the query's prefixes if `prefix_check` finds so; else a warning says why
                not, once.
            return_embeddings: Give `{"results": ..., "embedding": array (d,)}` for each query, the array (slices, d)
                with `return_positions`; `results` only if there are candidates.
            batch_size: Samples in one forward pass, for queries and candidates; 8 if neither given here nor to
                `pipeline`.
            num_workers: Workers of the data loader.

        Returns:
            For one query its results, a list of `{"index", "score", "candidate"}`, best first; for a list of queries
            a list of that.

        Raises:
            ValueError: If an input cannot be read, or there is nothing to search and no embedding wanted.
        """
        samples, is_single = split_inputs(queries)
        options = {"top_k": top_k, "return_positions": return_positions, "return_embeddings": return_embeddings}
        options = {key: value for key, value in options.items() if value is not None}
        wanted = {**self._postprocess_params, **options}.get("top_k", 1)
        if isinstance(wanted, bool) or not isinstance(wanted, int | np.integer) or wanted < 1:
            raise ValueError(f"top_k={wanted!r}: give a whole number of 1 or more, ask for at least one result.")
        if candidates is None and not {**self._postprocess_params, **options}.get("return_embeddings"):
            raise ValueError("nothing to search: pass candidates=, or return_embeddings=True.")
        if {**self._postprocess_params, **options}.get("return_positions"):
            self._warn_about_positions()
        index: RetrievalIndex | None = None
        if isinstance(candidates, RetrievalIndex):
            index = candidates
        elif candidates is not None:
            documents = candidates_of(candidates)
            index = CandidateIndex(documents, self.encode(documents, batch_size=batch_size, name="candidate"))
        results = self._run(
            samples,
            [f"query {i}" for i in range(len(samples))],
            batch_size,
            num_workers=num_workers,
            index=index,
            **options,
        )
        return results[0] if is_single else results

    def encode(self, samples: Sequence[Sample], *, batch_size: int | None = None, name: str = "sample") -> np.ndarray:
        """Embed samples, each at its last slice. Similar lengths share a batch; a bar appears if it takes long.

        Args:
            samples: A list of samples of any form.
            batch_size: Samples in one forward pass.
            name: What to call them in error messages and in the bar.

        Returns:
            (len(samples), d) float32 unit vectors.

        Raises:
            ValueError: If there are none, or one cannot be read.
        """
        if not len(samples):
            raise ValueError(f"there is no {name} to embed.")
        names = [f"{name} {i}" for i in range(len(samples))]
        step = batch_size or self._batch_size or DEFAULT_BATCH_SIZE
        with tqdm(total=len(samples), desc="Embedding", delay=2) as bar:
            vectors = embed_list(self.model, self.processor, samples, names, bar.update, batch_size=step)
        return np.concatenate(vectors)

    @cached_property
    def prefix_check(self) -> PrefixCheck:
        """Whether results at positions are those of the query's prefixes; found by five short forward passes."""
        return check_prefix_embeddings(self.model, self.processor)

    def _warn_about_positions(self) -> None:
        is_new = "prefix_check" not in vars(self)
        if is_new and not self.prefix_check.is_exact:
            warnings.warn(f"return_positions: {self.prefix_check}", stacklevel=3)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        return {}, {}, kwargs

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        embeds, mask = self.model.get_retrieval_embeddings(**self._process(model_inputs))
        return {"embeds": embeds, "lengths": mask.sum(dim=1)}  # (B, S, d), (B,)

    def postprocess(
        self,
        model_outputs: dict[str, torch.Tensor],
        index: RetrievalIndex | None = None,
        top_k: int = 5,
        return_positions: bool = False,
        return_embeddings: bool = False,
    ) -> Any:
        """Search with the embeddings of one query."""
        embeds = model_outputs["embeds"][0, : int(model_outputs["lengths"][0])].numpy()  # (S, d)
        embeds = embeds if return_positions else embeds[-1:]
        lists: list[list[dict[str, Any]]] = []
        if index is not None:
            found = zip(*index.search_embeddings(embeds, top_k), strict=True)
            lists = [
                [
                    {"index": int(place), "score": float(score), "candidate": index.documents[int(place)]}
                    for score, place in zip(scores, places, strict=True)
                    if place >= 0
                ]
                for scores, places in found
            ]
        results = lists if return_positions or index is None else lists[0]
        if not return_embeddings:
            return results
        answer = {"embedding": embeds if return_positions else embeds[0]}
        return answer if index is None else {"results": results, **answer}


class SugarGenerationPipeline(SugarPipeline):
    """Answer chats and prompts with images in any place.

    ```python
    generate = pipeline("sugar-generation", model="sugar")
    generate("What is this?", images=image)  # [{"generated_text": "A cat."}]
    generate({"query": ["Compare", image, "with", other]})
    ```
    """

    def __call__(
        self,
        inputs: Any,
        images: Any = None,
        *,
        skip_special_tokens: bool | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        **generate_kwargs: Any,
    ) -> Any:
        """Generate.

        Args:
            inputs: One prompt (str, `{"query": interleaved list}`) or chat that ends with the user's turn, or a list
                of those, interleaved prompts as lists. Prompts become the user's turn of a chat if the model has a
                chat template.
            images: An image or a list of images to put before a prompt that is a str; a str is the path of one.
            skip_special_tokens: Leave special tokens out of the answers; `True` if neither given here nor to
                `pipeline`. With `False` those that the model has learnt to write (`<think>`) are shown, and so is the
                end of its turn.
            batch_size: Prompts in one call of `generate`; 8 if neither given here nor to `pipeline`.
            num_workers: Workers of the data loader.
            **generate_kwargs: Passed to `generate`; `max_new_tokens` is 256 if neither given nor set in the model's
                generation config.

        Returns:
            For one input a list of `{"generated_text": str}`, one for each returned sequence; for a list of inputs a
            list of that.

        Raises:
            ValueError: If an input cannot be read.
        """
        if images is not None:
            if not isinstance(inputs, str):
                raise ValueError(f"images= goes with a prompt that is a str. {_FORMS}")
            images = images if isinstance(images, list | tuple) else [images]
            inputs = {"query": [*map(picture_part, images), inputs]}
        samples, is_single = split_inputs(inputs)
        names = [f"input {i}" for i in range(len(samples))]
        chats = [self._as_chat(*row) for row in zip(samples, names, strict=True)]
        if skip_special_tokens is not None:
            generate_kwargs["skip_special_tokens"] = skip_special_tokens
        results = self._run(chats, names, batch_size, num_workers=num_workers, **generate_kwargs)
        return results[0] if is_single else results

    def _as_chat(self, sample: Sample, where: str) -> Sample:
        if is_chat(sample):
            if sample[-1]["role"] == "assistant":
                raise ValueError(f"{where}: the chat ends with the assistant's turn. End it with the user's.")
            return sample
        if self.processor.chat_template is None:
            return sample
        return [{"role": "user", "content": list(sample) if isinstance(sample, list | tuple) else [sample]}]

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        shown = {key: kwargs.pop(key) for key in ("skip_special_tokens",) if key in kwargs}
        return {}, kwargs, shown

    def _forward(self, model_inputs: dict[str, Any], **generate_kwargs: Any) -> dict[str, torch.Tensor]:
        features = self._process(model_inputs, add_generation_prompt=True)
        generate_kwargs = generation_options(self.model, self.processor, generate_kwargs)
        batch, length = features["input_ids"].shape
        sequences = sequences_of(self.model.generate(**features, **generate_kwargs))[:, length:]
        return {"sequences": sequences.reshape(batch, -1, sequences.shape[1])}  # (B, returned sequences, L)

    def postprocess(
        self, model_outputs: dict[str, torch.Tensor], skip_special_tokens: bool = True
    ) -> list[dict[str, str]]:
        """Decode the answers to one input."""
        sequences = model_outputs["sequences"][0]
        texts = self.processor.batch_decode(sequences, skip_special_tokens=skip_special_tokens)
        return [{"generated_text": text.strip()} for text in texts]


PIPELINES = {"sugar-retrieval": SugarRetrievalPipeline, "sugar-generation": SugarGenerationPipeline}


def generation_options(
    model: SugarForConditionalGeneration, processor: SugarProcessor, generate_kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Complete options of `generate` by what neither they nor the generation config say.

    Raises:
        ValueError: An option asks for more than texts, or belongs elsewhere.
    """
    given = {**generate_kwargs.get("generate_kwargs", {}), **generate_kwargs}
    given.pop("generate_kwargs", None)
    if wanted := [name for name in _FURTHER_OUTPUTS if given.get(name)]:
        raise ValueError(
            f"{', '.join(wanted)}: only texts are returned here. For more, call "
            "model.generate(**processor([sample], add_generation_prompt=True), ...)."
        )
    if given.pop("return_full_text", False):
        raise ValueError("return_full_text=True: only what is generated is returned here. Put the prompt before it.")
    if "stop_sequence" in given:
        raise ValueError("stop_sequence: give stop_strings=[...], at each of which `generate` stops.")
    if wrong := {"image", "images"} & given.keys():
        raise ValueError(f"{', '.join(wrong)}=: no images are taken beside an input. {_FORMS}")
    config = given.get("generation_config") or model.generation_config
    # stop_strings and token healing need the tokenizer; nothing else looks at it
    defaults: dict[str, Any] = {"tokenizer": processor.tokenizer}
    if config.max_new_tokens is None and not {"max_new_tokens", "max_length"} & given.keys():
        defaults["max_new_tokens"] = DEFAULT_NEW_TOKENS
    if config.pad_token_id is None:
        tokenizer = processor.tokenizer
        defaults["pad_token_id"] = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return {**defaults, **given}


def sequences_of(output: Any) -> Tensor:
    """The sequences (B, L) of what `generate` returned, with `return_dict_in_generate` or without."""
    return output if isinstance(output, Tensor) else output.sequences
