"""Pairs of images and texts: Winoground and MMVP-VLM."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np


def winoground_scores(scores: np.ndarray) -> dict[str, float]:
    """The three scores of Winoground.

    With s(c, i) for caption c and image i: text is right if each image scores its own caption higher than the other,
    image if each caption does so with its image, group if both are. As in the paper, only strictly greater counts;
    mteb takes the index of the maximum, by which ties can pass.

    Args:
        scores: shape (items, 2, 2) as [item, caption, image].

    Returns:
        `text`, `image` and `group` in percent. Chance is 25, 25 and 16.7.

    Raises:
        ValueError: for another shape, or if a score is not a number.

    >>> winoground_scores(np.array([[[0.9, 0.5], [0.6, 0.8]]]))
    {'text': 100.0, 'image': 100.0, 'group': 100.0}
    """
    scores = _checked(scores)
    own, other_caption = scores[:, [0, 1], [0, 1]], scores[:, [1, 0], [0, 1]]  # (items, images)
    other_image = scores[:, [0, 1], [1, 0]]  # (items, captions)
    text, image = (own > other_caption).all(axis=1), (own > other_image).all(axis=1)
    return {
        "text": 100.0 * float(text.mean()),
        "image": 100.0 * float(image.mean()),
        "group": 100.0 * float((text & image).mean()),
    }


def pair_accuracy(scores: np.ndarray, types: Sequence[str]) -> dict[str, float]:
    """MMVP-VLM as the official script scores it with CLIP.

    The probabilities of the two images for a statement are a softmax over their scores, and image 1 is taken if its
    probability is above one half, that is if it scores strictly higher. A pair is right if the first statement takes
    image 1 and the second image 2; a tie takes image 2. The script puts pairs into types by their row, 15 each; here
    the types are given.

    Args:
        scores: shape (pairs, 2, 2) as [pair, statement, image]; cosines or logits.
        types: the type of each pair.

    Returns:
        In percent `accuracy`, the mean over types, and `accuracy, {type}` for each.

    Raises:
        ValueError: for another shape, if a score is not a number or lengths differ.
    """
    scores = _checked(scores)
    takes_first = scores[:, :, 0] > scores[:, :, 1]  # (pairs, statements)
    return _by_type(takes_first[:, 0] & ~takes_first[:, 1], types)


def pair_hits(hits: np.ndarray, types: Sequence[str]) -> dict[str, float]:
    """MMVP-VLM as two-choice questions: a pair is right if the replies for both its images are.

    Args:
        hits: right or wrong, shape (pairs, 2).
        types: the type of each pair.

    Returns:
        In percent `accuracy`, the mean over types, and `accuracy, {type}` for each.

    Raises:
        ValueError: for another shape or other values, or if lengths differ.

    >>> pair_hits(np.array([[1, 1], [1, 0]]), ["Texts", "Texts"])
    {'accuracy': 50.0, 'accuracy, Texts': 50.0}
    """
    hits = np.asarray(hits)
    if hits.ndim != 2 or hits.shape[1] != 2 or not np.isin(hits, (0, 1)).all():
        raise ValueError(f"hits: need true and false in a shape of (pairs, 2), got {hits.dtype} of {hits.shape}")
    return _by_type((hits[:, 0] == 1) & (hits[:, 1] == 1), types)


def _by_type(right: np.ndarray, types: Sequence[str]) -> dict[str, float]:
    if len(right) != len(types) or not len(right):
        raise ValueError(f"{len(right)} pairs need as many types, and at least one: got {len(types)}")
    groups: dict[str, list[bool]] = defaultdict(list)
    for name, hit in zip(types, right, strict=True):
        groups[name].append(bool(hit))
    shares = {name: 100.0 * float(np.mean(own)) for name, own in groups.items()}
    return {
        "accuracy": float(np.mean(list(shares.values()))),
        **{f"accuracy, {name}": share for name, share in shares.items()},
    }


def _checked(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 3 or scores.shape[1:] != (2, 2) or not len(scores):
        raise ValueError(f"scores: need a shape of (items, 2, 2), got {scores.shape}")
    faulty = np.isnan(scores).any(axis=(1, 2))
    if faulty.any():
        raise ValueError(f"the scores of item {int(faulty.argmax())} are not numbers")
    return scores
