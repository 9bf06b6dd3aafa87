"""What the mini VLM's probes are asked for, and that their losses reach the model."""

import random

import pytest
import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from sugar_hf import picturebook
from sugar_hf.picturebook.scenes import PLACES, SIZES, Item, Scene, render_array
from sugar_lab.recipe.gist import INDEX, WORDS, GistCollator, Probed, draw_album, draw_wheres, gist_plan
from sugar_lab.recipe.vlm_recipe import Picture, draw_chat

SCENE = Scene((Item("dog", "small", 2), Item("key", "large", 6)), "blue", 7)


@pytest.fixture(scope="module")
def collator():
    return GistCollator(LlavaProcessor.from_pretrained(picturebook.checkpoint("mini-vlm")))


def words_of(gist):
    return {WORDS[index] for index in gist.nonzero()[:, 0].tolist()}


def test_each_slice_is_asked_for_what_was_told_or_shown_so_far(collator):
    document = [("a small owl.", True), ("\n", False), Picture(render_array(SCENE), scene=SCENE), ("\n", False)]
    batch = collator([[*document, ("the ant leaves.", True)]])
    assert [words_of(gist) for gist in batch["gists"]] == [
        {"owl"},
        {"owl", "dog", "key", "blue"},
        {"owl", "dog", "key", "blue", "ant"},
    ]
    ids = batch["input_ids"][0].tolist()
    image = collator.tokenizer.convert_tokens_to_ids("<image>")
    text, picture, end = batch["spans"].tolist()
    assert (text[0], collator.tokenizer.decode(ids[text[1] : text[2]])) == (0, ".")
    assert picture[1:] == [ids.index(image), ids.index(image) + ids.count(image)]
    assert end[1:] == [len(ids) - 1, len(ids)]
    assert "marks" not in batch


def test_names_in_questions_are_asked_for_place_and_size(collator):
    pieces = draw_wheres(random.Random(1))
    (scene,) = [piece.scene for piece in pieces if isinstance(piece, Picture)]
    things = {item.concept: item for item in scene.items}
    batch = collator([draw_chat(random.Random(0)), pieces])
    assert len(batch["marks"])
    assert "gists" not in batch
    for row, position, place, size in batch["marks"].tolist():
        item = things[collator.words[int(batch["input_ids"][row, position])]]
        assert (row, place, size) == (1, item.place, tuple(SIZES).index(item.size))


def test_chats_have_no_gist_and_no_marks(collator):
    assert {"spans", "gists", "marks"}.isdisjoint(collator([draw_chat(random.Random(3)) for _ in range(4)]))


def test_the_loss_is_that_of_the_model_and_of_the_probes(collator):
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration.from_pretrained(picturebook.checkpoint("mini-vlm"))
    probed = Probed(model)
    chats = collator([draw_chat(random.Random(number)) for number in range(3)])
    torch.testing.assert_close(probed(**chats)["loss"], model(**chats).loss)
    batch = collator([[("a small owl.", True), ("\n", False), Picture(render_array(SCENE), scene=SCENE)]])
    hidden = model.model(**{name: batch[name] for name in ("input_ids", "pixel_values", "attention_mask")})[0][0]
    expected = model(**{name: batch[name] for name in ("input_ids", "pixel_values", "attention_mask", "labels")}).loss
    for (_, first, end), words in zip(batch["spans"], (("owl",), ("owl", "dog", "key", "blue")), strict=True):
        scores = probed.gist(hidden[first:end].mean(0)).log_softmax(-1)
        expected = expected - scores[[INDEX[word] for word in words]].mean() / 2
    torch.testing.assert_close(probed(**batch)["loss"], expected)
    wheres = collator([draw_wheres(random.Random(4))])
    probed(**wheres)["loss"].backward()
    assert all(probe.weight.grad.abs().sum() > 0 for probe in (probed.place, probed.size))
    assert probed.place.out_features == len(PLACES)


def test_the_plan_ends_with_documents_and_questions():
    plan = gist_plan(400)
    assert len(plan) == 400
    assert plan[-100:].count(draw_album) > 30
    assert plan[-100:].count(draw_wheres) > 5
