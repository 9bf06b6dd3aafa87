"""The data that rows are trained on: documents (discriminative) and chats (generative), as the paper mixes them."""

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, load_from_disk

from sugar_hf.data import FEATURES, PAIR_FEATURES, image_part, text_part, to_samples
from sugar_hf.model import SugarProcessor
from sugar_hf.picturebook import Scene, checkpoint, load, mini_teachers
from sugar_hf.picturebook.world import encode
from sugar_hf.structure import TripleTeacher

from .exercises import Draw, Exercise, all_exercises
from .exercises.contrasts import REORDERINGS, draw_reordering
from .recipe.vlm_recipe import IMAGE_TOKENS
from .stage_files import is_whole, mark_whole

PARTS = ("all", "generative", "discriminative", "paired")
PAIRS_SHARE = 0.8  # of the rows
SHORT = 45  # words
STRETCH = 96  # rows
_TURNS = ("question", "describe")
_PLAIN = 5  # one question in so many stays what the picturebook has, the others become exercises
#: What a block of rows of the first part holds: documents and chats.
_BLOCKS = {"all": "ddddddddcccc", "generative": "cccccccccccc", "discriminative": "dddddddddddd"}
_OTHER_SEED = 1000  # of the first part, so that the second one has rows of its own
PAIR_EVERY = 6  # rows of `paired`, of which one is a pair


def training_rows(part: str, size: int, seed: int) -> list[dict[str, Any]]:
    """Draw training rows in the common schema, to be taken in order: short ones come first.

    Retrieval of pictures by words is learnt from many pairs, and short rows hold more of them in the same time. So the
    first four fifths are scenes told in words and shown in a picture, which stand next to each other and so meet in a
    batch, captions with their pictures, and chats about one picture: eight documents and four chats in twelve rows.
    The rest has as many of either: stories, processes, captions, scenes and stories told and shown, exercises of all
    kinds in turn, and the picturebook's own questions and descriptions.

    Args:
        part: `all`, or the documents or the chats alone: `discriminative` or `generative`; or `paired`, which is `all`
            with every sixth row replaced by a pair whose negative has the same words: see `known_pairs`.
        size: how many rows, whatever the part is.
        seed: another seed gives other rows.

    Raises:
        ValueError: for another part.
    """
    if part not in PARTS:
        raise ValueError(f"no part {part!r} of the training data; choose one of {', '.join(PARTS)}")
    if part == "paired":
        rows, known = training_rows("all", size, seed), known_pairs(-(-size // PAIR_EVERY), seed)
        return [known[i // PAIR_EVERY] if i % PAIR_EVERY == 0 else row for i, row in enumerate(rows)]
    block = _BLOCKS[part]
    first = round(size * PAIRS_SHARE / len(block)) * len(block)
    last = _long_rows(part, size - first, seed) if size > first else []
    return [*_short_rows(block, first, seed + _OTHER_SEED), *last]


def known_pairs(size: int, seed: int) -> list[dict[str, Any]]:
    """Draw pairs that a teacher of bags of words cannot tell: a text with two pictures, a picture with two texts.

    The two texts have the same words in another order, and each is true of one of the pictures, as in Winoground. A
    row has one of the four as its query, its own counterpart as the positive, and the other one as the negative.

    Args:
        size: how many rows; four of each drawing.
        seed: another seed gives other ones.
    """
    found: list[dict[str, Any]] = []
    for number in range(-(-size // 4)):
        rng = random.Random(f"mix/known/{seed}/{number}")
        contrast = draw_reordering(rng, "train", REORDERINGS[number % len(REORDERINGS)])
        texts = [_sample([text_part(f"{text}.")]) for text in contrast.texts]
        pictures = [_sample([image_part()], [encode(scene)]) for scene in contrast.scenes]
        for side in range(2):
            for name, queries, others in (("text", texts, pictures), ("picture", pictures, texts)):
                found.append(
                    {
                        "id": f"train-known-{seed}-{number}-{name}-{side}",
                        "source": "picturebook",
                        "query": queries[side],
                        "positives": [others[side]],
                        "negatives": [others[1 - side]],
                    }
                )
    return found[:size]


def _sample(content: list[dict[str, Any]], images: Sequence[Any] = ()) -> dict[str, Any]:
    return {"messages": [{"role": "document", "content": content}], "images": list(images)}


def _short_rows(block: str, size: int, seed: int) -> list[dict[str, Any]]:
    counts = {kind: size // len(block) * block.count(kind) for kind in "dc"}
    sources = {"d": _short_documents(counts["d"], seed), "c": _short_chats(counts["c"], seed)}
    return [_plain(next(sources[block[number % len(block)]])) for number in range(size)]


def _short_documents(size: int, seed: int) -> Iterator[dict[str, Any]]:
    """Scenes told and shown, three at a time, and two captions with their pictures."""
    if not size:
        return
    rounds = -(-size // 8)
    told, shown = (load("train", kind, size + 40, seed=seed) for kind in ("words", "pictures"))  # half are stories
    pairs = ((a, b) for a, b in zip(told, shown, strict=True) if len(_parts(a)) == len(_parts(b)) == 1)
    captions = iter(load("train", "caption", 2 * rounds, seed=seed))
    for _ in range(rounds):
        for _ in range(3):
            yield from next(pairs)
        yield next(captions)
        yield next(captions)


def _short_chats(size: int, seed: int) -> Iterator[dict[str, Any]]:
    """Exercises about one picture, of all kinds that are so, and plain questions and descriptions in turn."""
    plain = iter(load("train", "question", size // _PLAIN + 1, seed=seed))
    exercises = _exercises(_short_kinds(), size, seed)
    for number in range(size):
        yield next(exercises) if number % _PLAIN else next(plain)


def _long_rows(part: str, size: int, seed: int) -> list[dict[str, Any]]:
    # each half is half of the whole; so is a half of any twelve, but for the last ones
    drawn = load("train", size=size if part == "all" else 2 * size + 12, seed=seed)
    exercises = _exercises(all_exercises(), size, seed)
    rows = []
    for row in drawn:
        is_chat = row["kind"] in _TURNS
        if part != "all" and is_chat != (part == "generative"):
            continue
        if row["kind"] == "question" and int(row["id"].rpartition("-")[2]) % _PLAIN:
            row = next(exercises)
        rows.append(_plain(row))
    rows = rows[:size]
    # sorted by length in stretches of two batches, so that one of them holds little padding
    return [row for start in range(0, size, STRETCH) for row in sorted(rows[start : start + STRETCH], key=_length)]


def _exercises(draws: Mapping[str, Draw], size: int, seed: int) -> Iterator[dict[str, Any]]:
    """Exercises of some kinds in turn, `size` of each."""
    for number in range(size):
        for kind, draw in draws.items():
            exercise = draw(random.Random(f"mix/{kind}/{seed}/{number}"), "train")
            yield {"id": f"train-{kind}-{seed}-{number}", "source": "picturebook", **exercise.row()}


def _short_kinds() -> dict[str, Draw]:
    """The kinds of exercises that have one picture and few words."""

    def is_short(exercise: Exercise) -> bool:
        pictures = sum(isinstance(part, Scene) for part in exercise.parts)
        words = sum(len(part.split()) for part in (*exercise.parts, exercise.answer) if isinstance(part, str))
        return pictures == 1 and words <= SHORT

    return {
        kind: draw
        for kind, draw in all_exercises().items()
        if all(is_short(draw(random.Random(f"short/{kind}/{number}"), "train")) for number in range(8))
    }


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in FEATURES}


def _length(row: dict[str, Any]) -> int:
    return sum(IMAGE_TOKENS if part["text"] is None else len(part["text"].split()) for part in _parts(row))


def _parts(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [part for message in row["messages"] for part in message["content"]]


def mix_folder(part: str, size: int, seed: int, work: Path) -> Path:
    """Where training rows are kept."""
    return work / "mix" / f"{part}-{size}-{seed}"


def prepare_mix(part: str, size: int, seed: int, work: Path) -> Dataset:
    """The training rows with the teachers' vectors, made once and kept in `work`.

    Args:
        part: see `training_rows`.
        size: see `training_rows`.
        seed: see `training_rows`.
        work: the lab's folder.
    """
    folder = mix_folder(part, size, seed, work)
    names = mini_teachers()
    device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    teacher = TripleTeacher.from_pretrained(names["clip"], names["dino"], names["text"], device=device)
    facts = {"teachers": teacher.fingerprint, "exercises": sorted(all_exercises())}
    if is_whole(folder, facts):
        return load_from_disk(str(folder))
    processor = SugarProcessor.from_pretrained(checkpoint("mini-vlm"))
    teacher.show_progress = False
    features = Features({**FEATURES, **PAIR_FEATURES}) if part == "paired" else FEATURES
    columns = dict.fromkeys(features)  # a row has all of them
    rows = Dataset.from_list([{**columns, **row} for row in training_rows(part, size, seed)], features=features)

    def slices(row: dict[str, Any]) -> list[Any]:
        return [each for sample in to_samples(row) for each in processor.slices(sample)]

    cached = teacher.cache(rows, slices=slices, cache_dir=work / "teachers")
    cached.save_to_disk(str(folder))
    mark_whole(folder, facts)
    return load_from_disk(str(folder))
