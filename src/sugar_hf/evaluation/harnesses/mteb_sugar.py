"""Sugar models in mteb."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ...model.pipeline_sugar import picture_part
from ...retrieval import SugarEmbedder

try:
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction
except ImportError as error:
    raise ImportError('mteb is missing: pip install "sugar-hf[mteb]"') from error

ORDERS = ("image_text", "text_image")
OTHER_MODALITIES = ("audio", "video")
WINDOW = 8  # batches that are collected, to be sorted by length and because some of mteb's loaders give one row each


class SugarMTEB(AbsEncoder):
    """A Sugar model as an encoder of mteb, with the vectors of `SugarEmbedder`.

    ```python
    model = SugarMTEB("sugar", dtype="bfloat16")
    mteb.evaluate(model, mteb.get_tasks(["MSCOCOI2TRetrieval"]), encode_kwargs={"batch_size": 16})
    ```

    A row of mteb becomes one interleaved sample: its text, its image, or both in one sample, embedded at the last
    slice. Queries and documents are embedded alike. The prompts that mteb keeps for its tasks are not used, as no
    Sugar model is trained with instructions; an instruction that is a column of a data set is part of the text, since
    mteb joins the two. Conversations come as the text into which mteb flattens them.

    Args:
        model: Hub name or folder of a Sugar checkpoint, or an embedder, which is used as it is.
        device: See `SugarEmbedder.from_pretrained`; only with a name.
        order: What comes first in a row with both: `"image_text"` or `"text_image"`.
        **options: Those of `SugarEmbedder.from_pretrained`; only with a name.

    Attributes:
        mteb_model_meta: Names the model by its Hub name, or `local/FOLDER`. The revision is made from the model's
            fingerprint and the settings, so that mteb does not take stored results of other weights for this model's.

    Raises:
        ImportError: mteb is not installed.
        ValueError: An unknown `order`, or loading options beside an embedder.
    """

    def __init__(
        self,
        model: str | Path | SugarEmbedder,
        *,
        device: str | None = None,
        order: str = "image_text",
        **options: Any,
    ) -> None:
        if order not in ORDERS:
            raise ValueError(f"order={order!r}: give one of {', '.join(ORDERS)}.")
        if isinstance(model, SugarEmbedder):
            if given := [*options, *(["device"] if device else [])]:
                raise ValueError(f"{', '.join(given)}: loading options have no effect on an embedder.")
            self.embedder = model
        else:
            self.embedder = SugarEmbedder.from_pretrained(model, device=device, **options)
        self.order = order
        self.model = self.embedder.model
        self.mteb_model_meta = describe(self.embedder, order)

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Embed the rows of a data loader.

        Args:
            inputs: Batches with columns `text` (str) or `image` (PIL images, or lists of them), or both, of B rows.
            task_metadata: Whose `name` errors give.
            hf_split: Named in errors.
            hf_subset: Not used.
            prompt_type: Not used: queries and documents are embedded alike.
            **kwargs: mteb's `batch_size`, samples in one forward pass, the embedder's if it is not there; and
                `show_progress_bar`.

        Returns:
            (rows, dim) float32 unit vectors.

        Raises:
            ValueError: The rows have audio or video, or a row has neither text nor image or cannot be read.
        """
        batch_size = kwargs.get("batch_size") or self.embedder.batch_size
        where = f"{task_metadata.name} ({hf_split})"
        bar = tqdm(inputs, desc="Embedding", delay=2, disable=not kwargs.get("show_progress_bar", True))
        found = [np.zeros((0, self.embedder.dim), np.float32)]
        done = 0
        for samples in _windows((samples_of(batch, self.order, where) for batch in bar), WINDOW * batch_size):
            names = [f"{where}, row {done + i}" for i in range(len(samples))]
            found.append(self.embedder.encode(samples, batch_size=batch_size, show_progress=False, names=names))
            done += len(samples)
        return np.concatenate(found)


def samples_of(batch: Mapping[str, Any], order: str = "image_text", where: str = "batch") -> list[list[Any]]:
    """Make a sample of each row of a batch of mteb. Texts without a word and images that are None are left out.

    Raises:
        ValueError: The batch has audio or video, or neither text nor image.

    >>> samples_of({"text": ["a dog", "a cat"], "image": [None, None]})
    [['a dog'], ['a cat']]
    """
    if unknown := [name for name in OTHER_MODALITIES if name in batch]:
        raise ValueError(f"{where}: has {' and '.join(unknown)}. A Sugar model embeds texts and images only.")
    columns: dict[str, list[list[Any]]] = {}
    if "text" in batch:
        columns["text"] = [[text] if text is not None and text.strip() else [] for text in batch["text"]]
    if "image" in batch:
        columns["image"] = [_images(image) for image in batch["image"]]
    if not columns:
        raise ValueError(f"{where}: there is no column text or image, only {', '.join(batch) or 'nothing'}.")
    parts = [columns[name] for name in order.split("_") if name in columns]
    return [[part for some in row for part in some] for row in zip(*parts, strict=True)]


def describe(embedder: SugarEmbedder, order: str = "image_text") -> ModelMeta:
    """What mteb writes into its results about a model."""
    name = str(embedder.model.config.name_or_path)
    settings = embedder.settings.to_dict()
    del settings["model"], settings["positions"]  # by which no vector differs
    identity = json.dumps([embedder.fingerprint.to_dict()["parts"], settings, order], sort_keys=True)
    return ModelMeta.create_empty(
        overwrites={
            "name": f"local/{Path(name).name or 'sugar'}" if Path(name).is_dir() else name,
            "revision": hashlib.sha256(identity.encode()).hexdigest()[:16],
            "modalities": ["text", "image"],
            "embed_dim": embedder.dim,
            "n_parameters": sum(parameter.numel() for parameter in embedder.model.parameters()),
            "max_tokens": embedder.max_length,
            "similarity_fn_name": ScoringFunction.COSINE,
            "use_instructions": False,
            "framework": ["PyTorch", "Transformers"],
        }
    )


def _images(image: Any) -> list[Any]:
    if image is None:
        return []
    # in a column of images, a str can only be the path of one
    return [picture_part(each) for each in (image if isinstance(image, list | tuple) else [image])]


def _windows(batches: Iterable[list[Any]], size: int) -> Iterator[list[Any]]:
    """Join batches to lists of `size` or a little more; the last one may be shorter."""
    window: list[Any] = []
    for batch in batches:
        window += batch
        if len(window) >= size:
            yield window
            window = []
    if window:
        yield window
