"""Retrieval tasks of the picturebook, each made of test rows: queries, candidates and what belongs to what."""

from dataclasses import dataclass
from typing import Any

from ..data import to_sample
from .world import load

Sample = list[Any]
STORY_FRAMES = 5


@dataclass(frozen=True)
class RetrievalTask:
    """Query i asks for candidate `targets[i]`. Queries and candidates are interleaved samples."""

    name: str
    queries: list[Sample]
    candidates: list[Sample]
    targets: list[int]


def retrieval_tasks(split: str = "test", size: int = 200, seed: int = 0) -> list[RetrievalTask]:
    """Four tasks over pools of `size` candidates.

    `text to image` and `image to text` are over scenes and their full captions. `5 captions` and `5 captions + 4
    images` ask for the last picture of a story of five frames, among the last pictures of all stories, from its five
    sentences, without and with the four pictures before (the form of the paper's VIST experiment).

    Args:
        split: `train`, `validation` or `test`.
        size: number of queries and candidates of each task.
        seed: another seed gives other tasks.
    """
    pairs = [to_sample(row) for row in load(split, kind="caption", size=size, seed=seed, words_first=True)]
    stories = [
        to_sample(row)
        for row in load(split, kind="story", size=size, seed=seed, words_first=True, frames=STORY_FRAMES)
    ]
    words, pictures = [[pair[0]] for pair in pairs], [[pair[1]] for pair in pairs]
    last_pictures = [story[-1:] for story in stories]
    targets = list(range(size))
    return [
        RetrievalTask("text to image", words, pictures, targets),
        RetrievalTask("image to text", pictures, words, targets),
        RetrievalTask("5 captions", [story[::2] for story in stories], last_pictures, targets),
        RetrievalTask("5 captions + 4 images", [story[:-1] for story in stories], last_pictures, targets),
    ]
