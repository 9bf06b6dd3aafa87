"""What the lab trains: exercises as tokens, the base, and the rows."""

import random

import pytest
from transformers import LlavaProcessor

from sugar_hf import SugarProcessor, picturebook
from sugar_hf.data import to_sample
from sugar_hf.lab.pieces import by_length, draw_signs, pieces
from sugar_hf.picturebook.exercises import Exercise
from sugar_hf.picturebook.recipe.vlm import Picture, collator
from sugar_hf.picturebook.scenes import random_scene

RNG = random.Random(0)
A, B, C = (random_scene(RNG, "train") for _ in range(3))


@pytest.mark.parametrize(
    "parts",
    [
        (A, "what is there?"),
        (A, B, C, "which one has a dog?"),
        ("first: ", A, "then: ", B, "what is next?"),
        ("read this. ", A, " and this."),
        ("a dog runs.", "what does it do?"),
        ("fact: dogs run.", A, "what does it do?", "say yes or no.", B),
    ],
    ids=lambda parts: "".join("i" if isinstance(part, picturebook.Scene) else "t" for part in parts),
)
def test_an_exercise_has_the_tokens_that_the_processors_make(parts):
    exercise = Exercise("kind", parts, "the dog does.")
    backbone = picturebook.checkpoint("mini-vlm")
    batch = collator(LlavaProcessor.from_pretrained(backbone))([pieces(exercise)])
    processor = SugarProcessor.from_pretrained(backbone)
    expected = processor([to_sample({"id": "x", "source": "x", **exercise.row()})], return_labels=True)
    assert batch["input_ids"].tolist() == expected["input_ids"].tolist()
    assert batch["labels"].tolist() == expected["labels"].tolist()


def test_kinds_of_like_length_share_a_batch():
    def of(words, pictures):
        return lambda rng, split: Exercise("", (*(A for _ in range(pictures)), "word " * words), "yes")

    exercises = {"long": of(30, 3), "tiny": of(1, 1), "short": of(3, 1), "mid": of(20, 2)}
    groups = by_length(exercises, 2)
    assert [group.draws for group in groups] == [
        (exercises["tiny"], exercises["short"]),
        (exercises["mid"], exercises["long"]),
    ]
    assert len(by_length(exercises, 9)) == 4
    drawn = groups[0](random.Random(0))
    assert sum(isinstance(piece, Picture) for piece in drawn) == 1


def test_signs_are_asked_for_by_place():
    text = "".join(piece[0] for piece in draw_signs(random.Random(1)) if not isinstance(piece, Picture))
    assert text.count("does the sign") == 4
    assert text.count("</s>") == 7
