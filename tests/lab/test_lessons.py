"""What the mini VLM's lessons are made of: exercises as tokens, marked questions, cells, and the optimizer."""

import random

import pytest
import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from sugar_hf import SugarProcessor, picturebook
from sugar_hf.data import to_sample
from sugar_hf.picturebook.glyphs import CONCEPTS
from sugar_hf.picturebook.scenes import BACKGROUNDS, random_scene
from sugar_hf.picturebook.signs import CHARACTERS
from sugar_lab.exercises import Exercise, all_exercises
from sugar_lab.recipe import lessons
from sugar_lab.recipe.interviews import draw_interview
from sugar_lab.recipe.lessons import draw_cells, draw_signs, draw_words, lesson_plan
from sugar_lab.recipe.loop import MuonWithAdamW
from sugar_lab.recipe.pieces import by_length, pieces
from sugar_lab.recipe.vlm_recipe import Collator, Marked, Picture, draw_chat, text_of

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
    batch = Collator(LlavaProcessor.from_pretrained(backbone))([pieces(exercise)])
    processor = SugarProcessor.from_pretrained(backbone)
    expected = processor([to_sample({"id": "x", "source": "x", **exercise.row()})], return_labels=True)
    assert batch["input_ids"].tolist() == expected["input_ids"].tolist()
    assert batch["labels"].tolist() == expected["labels"].tolist()


def test_all_kinds_of_exercises_have_the_tokens_that_the_processors_make():
    backbone = picturebook.checkpoint("mini-vlm")
    collate, processor = Collator(LlavaProcessor.from_pretrained(backbone)), SugarProcessor.from_pretrained(backbone)
    for kind, draw in all_exercises().items():
        drawn = [draw(random.Random(f"{kind}/{number}"), "train") for number in range(3)]
        batch = collate([pieces(exercise) for exercise in drawn])
        samples = [to_sample({"id": kind, "source": "x", **exercise.row()}) for exercise in drawn]
        expected = processor(samples, return_labels=True, padding_side="right")
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
    text = "".join(text_of(piece) for piece in draw_signs(random.Random(1)) if not isinstance(piece, Picture))
    assert text.count("does the sign") == 4
    assert text.count("</s>") == 7


def test_names_in_marked_texts_learn_whether_they_are_there():
    processor = LlavaProcessor.from_pretrained(picturebook.checkpoint("mini-vlm"))
    question = Marked("\nis there a dog or a cat on red? ASSISTANT:", frozenset({"cat", "red"}))
    batch = Collator(processor)([[("USER: ", False), question, (" yes</s>", True)]])
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    words = processor.tokenizer.convert_ids_to_tokens(ids)
    # a causal model's output at i is compared with the label at i + 1
    learnt = [
        (word.strip("Ġ"), processor.tokenizer.decode([label]).strip())
        for word, label in zip(words, labels[1:], strict=False)
        if label >= 0
    ]
    assert learnt == [("dog", "no"), ("cat", "yes"), ("red", "yes"), (":", "yes"), ("yes", "</s>")]


def test_half_of_the_listed_words_are_of_what_is_there():
    processor = LlavaProcessor.from_pretrained(picturebook.checkpoint("mini-vlm"))
    batch = Collator(processor)([draw_words(random.Random(number)) for number in range(40)])
    learnt = batch["labels"][batch["labels"] >= 0]
    said = [processor.tokenizer.decode([token]).strip() for token in learnt.tolist()]
    assert len(said) == 40 * lessons.BOARD_WORDS
    assert 0.45 < said.count("yes") / len(said) < 0.6
    assert set(said) == {"yes", "no"}


def test_cells_are_asked_for_what_they_show(monkeypatch):
    shown = {}
    render = lessons.render_array
    monkeypatch.setattr(lessons, "render_array", lambda scene: shown.setdefault("scene", scene) and render(scene))
    _, targets = draw_cells(random.Random(4))
    scene = shown["scene"]
    assert any(item.text for item in scene.items)
    for place, (name, kind, background, *characters) in enumerate(targets):
        item = scene.at(place)
        assert background == tuple(BACKGROUNDS).index(scene.background)
        assert (name >= 0) == (item is not None and not item.text)
        assert lessons.KINDS[kind] == ("nothing" if item is None else "sign" if item.text else item.size)
        if item is not None and item.text:
            assert "".join(CHARACTERS[index] for index in characters) == item.text
        elif item is not None:
            assert CONCEPTS[name] == item.concept


def test_names_come_first_and_every_lesson_has_its_turn():
    plan = lesson_plan(400)
    assert len(plan) == 400
    assert plan[:100] == [draw_words] * 100
    assert {draw_interview, draw_signs, draw_chat} <= set(plan[100:])
    assert draw_words not in plan[100:]


def test_the_optimizer_goes_on_from_its_state():
    model = LlavaForConditionalGeneration.from_pretrained(picturebook.checkpoint("mini-vlm"))
    model.model.vision_tower.requires_grad_(False)

    def optimizer():
        return MuonWithAdamW(model, learning_rate=0.1, other_learning_rate=0.2)

    def step(chosen):
        for number, weight in enumerate(trained):
            weight.grad = torch.full_like(weight, 0.1 + number % 7) + torch.linspace(0, 1, weight.shape[-1])
        chosen.step()

    trained = [weight for weight in model.parameters() if weight.requires_grad]
    first = optimizer()
    assert {id(weight) for group in first.param_groups for weight in group["params"]} == set(map(id, trained))
    assert sorted(group["lr"] for group in first.param_groups) == [0.1, 0.2]
    step(first)
    weights, state = [weight.detach().clone() for weight in trained], first.state_dict()
    step(first)
    wanted = [weight.detach().clone() for weight in trained]
    for weight, before in zip(trained, weights, strict=True):
        weight.data.copy_(before)
    again = optimizer()
    again.load_state_dict(state)
    for group in again.param_groups:
        group["lr"] /= 2  # as a schedule does
    step(again)
    moved = [(w.detach() - b).abs().max() for w, b in zip(trained, weights, strict=True)]
    assert all(0 < float(m) < float((x - b).abs().max()) for m, x, b in zip(moved, wanted, weights, strict=True))
