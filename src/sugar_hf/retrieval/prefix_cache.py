"""A cache of prompt prefixes: keys and values that are computed once and reused where that changes nothing."""

import copy
import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from ..model import SugarForConditionalGeneration
from ..model.modeling_sugar import CACHE_NAME, find_cache

Features = dict[str, Tensor]


def belongs_to_tokens(name: str) -> bool:
    """Whether an input of this name is a row of numbers, one for each token; the others are those of the images."""
    return name in ("input_ids", "attention_mask", "slice_map") or name.endswith("token_type_ids")


@dataclass(frozen=True)
class CachedPrefix:
    """The beginning of a prompt of C tokens, and what the model has computed of it.

    Args:
        features: The processor's output for it: ids (1, C), and the inputs of the images that lie in these tokens.
        cache: Keys and values of the C tokens.
    """

    features: Features
    cache: Cache

    @property
    def length(self) -> int:
        """C, its number of tokens."""
        return self.features["input_ids"].shape[1]

    def copied(self) -> "CachedPrefix":
        """Copy it: a cache grows with what is generated after it."""
        return CachedPrefix(self.features, copy.deepcopy(self.cache))

    def cropped(self, length: int) -> "CachedPrefix | None":
        """Cut it to its first `length` tokens, its cache with it; `None` if that has dropped what it would go back to.

        Its images have to lie in these tokens.
        """
        if length < self.length:
            if not all(layer.is_croppable for layer in self.cache.layers):
                return None
            try:
                self.cache.crop(length - self.length)
            except RuntimeError:  # a sliding window that has moved on
                return None
        return CachedPrefix(first_tokens(self.features, length), self.cache)


def encode_prefix(
    model: SugarForConditionalGeneration, features: Features, length: int
) -> tuple[CachedPrefix, Tensor]:
    """Run the first tokens of a sample, keep their keys and values, and embed their slices.

    Args:
        model: The model, in evaluation mode.
        features: The processor's output for one sample, on the model's device, with all of its images in the first
            `length` tokens.
        length: How many tokens.

    Returns:
        What was computed, and (S, d) float32 unit vectors of the S slices that end within these tokens.
    """
    cut = first_tokens(features, length)
    output = model(**cut, use_cache=True, skip_logits=True)
    return CachedPrefix(cut, find_cache(output)), output.retrieval_embeds[0]


def end_of_last_slice(features: Features) -> int:
    """Return the number of tokens of one sample up to the end of its last slice."""
    return int(features["slice_map"][0].nonzero()[-1]) + 1


def shared_length(beginning: Features, features: Features, image_token_id: int | None) -> int:
    """Count the leading tokens of a prompt that a beginning has too; 0 unless they hold all images of the beginning.

    Where no token is known to stand for an image, a beginning with images has to be there as a whole.

    At least one token of the prompt is left for the model, whose output says what comes next.
    """
    count = min(beginning["input_ids"].shape[1], features["input_ids"].shape[1] - 1)
    same = torch.ones(count, dtype=torch.bool, device=features["input_ids"].device)
    for name in features:
        if belongs_to_tokens(name) and name != "slice_map":  # an image makes some of them appear
            found = beginning.get(name)
            ours = features[name][0, :count] if found is None else found[0, :count]
            same &= ours == features[name][0, :count]
    length = count if bool(same.all()) else int(same.int().argmin())
    beyond = beginning["input_ids"][0, length:]
    if image_token_id is None:
        holds_images = any(not belongs_to_tokens(name) for name in beginning)
        return 0 if holds_images and len(beyond) else length
    return 0 if bool((beyond == image_token_id).any()) else length


def remaining_images(prefix: Features, features: Features) -> Features | None:
    """Take the image inputs of a prompt that are not those of its beginning.

    Args:
        prefix: The inputs of the beginning, with its images only.
        features: The inputs of the whole.

    Returns:
        The inputs of the images that are left, empty if there are none; `None` if the whole does not begin with the
        images of the prefix, as where the number of images decides how each is cut.
    """
    remaining: Features = {}
    for name in {*prefix, *features}:
        if belongs_to_tokens(name):
            continue
        if name not in features:
            return None
        whole = features[name]
        if name not in prefix:
            remaining[name] = whole
            continue
        part = prefix[name]
        if part.ndim != whole.ndim or any(a > b for a, b in zip(part.shape, whole.shape, strict=True)):
            return None
        longer = [axis for axis in range(part.ndim) if whole.shape[axis] > part.shape[axis]]
        if not longer:
            if not torch.equal(part, whole):
                return None
            continue
        axis, count = longer[0], part.shape[longer[0]]  # images come before what an image is made of
        # where images are padded to the largest, a larger one may have come
        padded = torch.zeros_like(whole.narrow(axis, 0, count))
        padded[tuple(slice(size) for size in part.shape)] = part
        if not torch.equal(padded, whole.narrow(axis, 0, count)):
            return None
        remaining[name] = whole.narrow(axis, count, whole.shape[axis] - count)
    return remaining


def matching(prefix: CachedPrefix, features: Features, image_token_id: int | None) -> CachedPrefix | None:
    """Cut a prefix, which is changed, to what a prompt begins with; `None` if that is nothing that can be used."""
    length = shared_length(prefix.features, features, image_token_id)
    if not length or remaining_images(prefix.features, features) is None:
        return None
    return prefix.cropped(length)


def why_not_beginning(prefix: CachedPrefix, features: Features, image_token_id: int | None) -> str | None:
    """Say why a prompt does not begin with a prefix; `None` if it does."""
    if shared_length(prefix.features, features, image_token_id) < prefix.length:
        return "the beginning of a prompt is written otherwise when more follows"
    if remaining_images(prefix.features, features) is None:
        return "images are read otherwise when more of them follow"
    return None


class PromptCache:
    """The prefixes that were used last, for any number of threads.

    Args:
        model: The model that computed them.
        size: How many are kept, on the model's device: a token takes keys and values of every layer.
    """

    def __init__(self, model: SugarForConditionalGeneration, size: int) -> None:
        self._image_token_id = model.config.image_token_id
        self.size = size
        self._entries: list[CachedPrefix] = []  # the last used is the last
        self._changing = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, prefix: CachedPrefix) -> None:
        """Keep a prefix, which nobody else may change from now on."""
        with self._changing:
            self._entries = [*self._entries, prefix][-self.size :] if self.size else []

    def find(self, features: Features) -> CachedPrefix | None:
        """Return a copy of the longest beginning of a prompt that is known; `None` if none is."""
        entries = self._entries  # never changed, only replaced
        lengths = [shared_length(entry.features, features, self._image_token_id) for entry in entries]
        for place in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
            entry, length = entries[place], lengths[place]
            if not length or remaining_images(entry.features, features) is None:
                continue
            found = entry.copied().cropped(length)
            if found is not None:
                with self._changing:
                    others = [each for each in self._entries if each is not entry]
                    self._entries = [*others, entry][-self.size :]
                return found
        return None


def generate_after(
    model: SugarForConditionalGeneration, prefix: CachedPrefix, features: Features, **generate_kwargs: Any
) -> Any:
    """Generate from a prompt whose beginning is already computed. The cache of the prefix grows with it.

    Args:
        model: The model.
        prefix: From [`encode_prefix`], or from [`PromptCache`]; all of its tokens are the prompt's first ones.
        features: The processor's output for the whole prompt, a batch of one on the model's device.
        **generate_kwargs: Passed to `generate`.

    Returns:
        What `generate` returns; sequences hold the whole prompt.

    Raises:
        ValueError: If the prompt does not begin with the prefix.
    """
    obstacle = why_not_beginning(prefix, features, model.config.image_token_id)
    if obstacle is not None:
        raise ValueError(f"{obstacle}: generate without what is cached.")
    images = remaining_images(prefix.features, features) or {}
    inputs = {name: value for name, value in features.items() if name != "slice_map"}
    # From the whole prompt, as for a new one: some backbones count an image otherwise than by its tokens, and keep
    # from the last forward pass, which may have been another prompt's, what the counting goes on from.
    positions = model.vlm._prepare_position_ids_for_generation(inputs["input_ids"], inputs)
    tokens = {name: value for name, value in inputs.items() if belongs_to_tokens(name)}
    return model.generate(**tokens, **images, position_ids=positions, **{CACHE_NAME: prefix.cache}, **generate_kwargs)


def first_tokens(features: Features, length: int) -> Features:
    """Cut what the processor made of a sample to its first tokens, which hold all of its images."""
    return {name: value[:, :length] if belongs_to_tokens(name) else value for name, value in features.items()}
