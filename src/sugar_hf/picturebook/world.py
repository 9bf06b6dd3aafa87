"""The picturebook as data sets in the common schema."""

import io
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value

from ..data import DOCUMENT_ROLE, FEATURES, image_part, text_part
from .scenes import SPLITS, Scene, caption, questions, random_scene, render
from .stories import Story, draw_process, draw_story

CHECKPOINTS = Path(__file__).parent / "checkpoints"
# kind: how many of it in each block of 12 rows of a data set of all kinds
KINDS = {"story": 2, "process": 1, "caption": 1, "words": 1, "pictures": 1, "question": 5, "describe": 1}
SIZES = {"train": 4000, "validation": 500, "test": 1000}
TWINS = ("words", "pictures")
WORLD_FEATURES = Features(
    {**FEATURES, "kind": Value("string"), "question_kinds": List(Value("string"))}  # the latter: one for each answer
)
Row = dict[str, Any]


def checkpoint(name: str) -> str:
    """The folder of a shipped checkpoint: `mini-vlm`, `mini-sugar`, `mini-clip`, `mini-dino` or `mini-bert`.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
    """
    folder = CHECKPOINTS / name
    if not (folder / "config.json").is_file():
        there = sorted(path.parent.name for path in CHECKPOINTS.glob("*/config.json"))
        raise FileNotFoundError(f"no checkpoint {name!r} in the package; there are {', '.join(there) or 'none'}")
    return str(folder)


def mini_teachers() -> dict[str, str]:
    """The folders of the shipped teachers, as `TripleTeacher.from_pretrained` takes them."""
    return {"clip": checkpoint("mini-clip"), "dino": checkpoint("mini-dino"), "text": checkpoint("mini-bert")}


def encode(scene: Scene) -> dict[str, Any]:
    """A scene's picture as `datasets.Image` stores it, losslessly."""
    buffer = io.BytesIO()
    render(scene).save(buffer, format="PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}


def document(story: Story, words_first: bool = True) -> tuple[list[Row], list[Row]]:
    """Messages and images of a story: sentence, picture, sentence, picture, ... or the other way round."""
    pairs = [[text_part(words), image_part()] for words in story.sentences]
    parts = [part for pair in pairs for part in (pair if words_first else reversed(pair))]
    return [{"role": DOCUMENT_ROLE, "content": parts}], [encode(frame) for frame in story.frames]


def conversation(scene: Scene, turns: list[tuple[str, str]]) -> tuple[list[Row], list[Row]]:
    """Messages and images of turns about one picture, which the first one shows."""
    messages = []
    for index, (question, answer) in enumerate(turns):
        shown = [image_part()] if index == 0 else []
        messages.append({"role": "user", "content": [*shown, text_part(question)]})
        messages.append({"role": "assistant", "content": [text_part(answer)]})
    return messages, [encode(scene)]


def draw_twin(kind: str, split: str, rng: random.Random) -> tuple[list[Row], list[Row]]:
    """A scene or story told in words alone, or shown in pictures alone; the same one for the same generator."""
    if rng.random() < 0.5:
        scene = random_scene(rng, split)
        story = Story("caption", (scene,), (caption(scene, rng),))
    else:
        story = draw_story(rng, split)
    shown = story.frames if rng.random() < 0.5 else story.frames[-1:]
    if kind == "words":
        return [{"role": DOCUMENT_ROLE, "content": [text_part(words) for words in story.sentences]}], []
    content = [image_part() for _ in shown]
    return [{"role": DOCUMENT_ROLE, "content": content}], [encode(frame) for frame in shown]


def draw_row(kind: str, split: str, rng: random.Random, words_first: bool | None, frames: int | None) -> Row:
    """Draw one row of a kind."""
    asked: list[str] = []
    if kind in TWINS:
        messages, images = draw_twin(kind, split, rng)
    elif kind in ("story", "process"):
        story = (draw_story if kind == "story" else draw_process)(rng, split, frames)
        messages, images = document(story, rng.random() < 0.5 if words_first is None else words_first)
    else:
        scene = random_scene(rng, split)
        if kind == "caption":
            told = Story(kind, (scene,), (caption(scene, rng),))
            messages, images = document(told, rng.random() < 0.5 if words_first is None else words_first)
        elif kind == "describe":
            messages, images = conversation(scene, [("describe the picture in detail.", caption(scene, rng))])
        else:
            turns = questions(scene, rng)
            # in this order no question gives away what an earlier one asked for, and "what" must be looked up
            chosen = [turns[index] for index in sorted(rng.sample(range(len(turns)), 3))]
            asked = [name for name, _, _ in chosen]
            messages, images = conversation(scene, [(question, answer) for _, question, answer in chosen])
    return {"messages": messages, "images": images, "kind": kind, "question_kinds": asked}


def rows(
    split: str, kinds: list[str], size: int, seed: int, words_first: bool | None, frames: int | None
) -> Iterator[Row]:
    """Draw rows of the kinds in turn; the same for the same seed on every machine."""
    drawn: Counter[str] = Counter()
    for index in range(size):
        kind = kinds[index % len(kinds)]
        number = drawn[kind]
        drawn[kind] += 1
        # not hash(): the same rows on every machine. The twins with one number share their generator
        rng = random.Random(f"picturebook/{split}/{'twins' if kind in TWINS else kind}/{seed}/{number}")
        row = draw_row(kind, split, rng, words_first, frames)
        yield {"id": f"{split}-{kind}-{seed}-{number}", "source": "picturebook", **row}


def load(
    split: str = "train",
    kind: str | None = None,
    size: int | None = None,
    *,
    seed: int = 0,
    words_first: bool | None = None,
    frames: int | None = None,
) -> Dataset:
    """The picturebook, drawn anew and always the same.

    Training rows hold none of the combinations of things, or of things and backgrounds, that are kept for validation
    and test; each validation and test row holds at least one of its own.

    Args:
        split: `train`, `validation` or `test`.
        kind: `story`, `process` and `caption` interleave words and pictures. `words` and `pictures` with the same
            number in their ids tell and show the same scene or story, or show its last picture. `question` and
            `describe` are chats about a picture. If None, blocks of 12 rows hold all kinds in fixed shares, each
            `words` row with its `pictures` row: taken in order, twins meet in a batch.
        size: number of rows; by default 4000, 500 and 1000 for the three splits.
        seed: another seed gives other rows.
        words_first: in documents, whether each sentence comes before its picture; drawn row by row if None.
        frames: length of stories and processes; 3 to 6 if None.

    Returns:
        A data set in the common schema of `sugar_hf.data` with two more columns: `kind`, and `question_kinds`, the
        kind of each question of a `question` row.

    Raises:
        ValueError: for a split or a kind that there is not.
    """
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; choose one of {', '.join(SPLITS)}")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"no kind {kind!r}; choose one of {', '.join(KINDS)}, or None for all")
    turns = [name for turn in range(max(KINDS.values())) for name, share in KINDS.items() if turn < share]
    drawn = rows(split, [kind] if kind else turns, SIZES[split] if size is None else size, seed, words_first, frames)
    return Dataset.from_list(list(drawn), features=WORLD_FEATURES)
