"""The recipe of the mini checkpoints runs end to end, resumes, and feeds the models what their processors would."""

import random
import shutil
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer,
    BertModel,
    CLIPModel,
    CLIPProcessor,
    Dinov2Model,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from sugar_hf import picturebook
from sugar_hf.picturebook import scenes
from sugar_hf.picturebook.scenes import random_scene, render, render_array
from sugar_lab.recipe import checkpoint_report as report
from sugar_lab.recipe import gist, lessons, loop
from sugar_lab.recipe import teacher_recipes as teachers
from sugar_lab.recipe import vlm_recipe as vlm
from sugar_lab.recipe.mini_tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    work, out = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("out")
    for recipe in (teachers.train_clip, teachers.train_dino, teachers.train_bert, vlm.train_vlm):
        recipe(work, out, steps=2, batch_size=4)
    return work, out


def test_every_checkpoint_loads_in_float32(trained):
    _, out = trained
    for cls, name in (
        (CLIPModel, "mini-clip"),
        (Dinov2Model, "mini-dino"),
        (BertModel, "mini-bert"),
        (LlavaForConditionalGeneration, "mini-vlm"),
    ):
        model, info = cls.from_pretrained(out / name, output_loading_info=True)
        assert model.dtype == torch.float32
        assert {key for key in info["missing_keys"] if not key.startswith("pooler.")} == set()
        assert not info["unexpected_keys"]


def test_report_runs(trained, capsys):
    rng = random.Random(0)
    scenes = [random_scene(rng, "test") for _ in range(3)]
    report.report_teachers(trained[1], scenes)
    report.report_vlm(trained[1] / "mini-vlm", scenes)
    assert "mini-vlm: exact answers" in capsys.readouterr().out


def test_pixels_are_the_processors(trained):
    scene = random_scene(random.Random(1), "train")
    for processor in (CLIPProcessor.from_pretrained(trained[1] / "mini-clip"), loop.image_processor()):
        image_processor = processor.image_processor if isinstance(processor, CLIPProcessor) else processor
        expected = image_processor(render(scene), return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(loop.pixel_values([render_array(scene)]), expected)


def test_collated_chat_is_what_the_processor_makes(trained):
    processor = LlavaProcessor.from_pretrained(trained[1] / "mini-vlm")
    scene = random_scene(random.Random(2), "train")
    pieces = [
        ("USER: ", False),
        vlm.Picture(render_array(scene)),
        ("\nwhat is there? ASSISTANT:", False),
        (" a dog</s>", True),
    ]
    batch = vlm.Collator(processor)([pieces])
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is there?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a dog"}]},
    ]
    text = processor.apply_chat_template(messages)
    expected = processor(text=text, images=[render(scene)], return_tensors="pt")
    assert batch["input_ids"].tolist() == expected["input_ids"].tolist()
    learnt = batch["labels"][batch["labels"] >= 0]
    assert processor.tokenizer.decode(learnt) == " a dog</s>"


def test_cells_learn_the_name_of_what_they_show(trained):
    processor = LlavaProcessor.from_pretrained(trained[1] / "mini-vlm")
    names = ["dog", None, "key", None, None, "ant", None, None, "owl"]
    batch = vlm.Collator(processor)([[("USER: ", False), vlm.Picture(np.zeros((96, 96, 3), np.uint8), names)]])
    (image,) = (batch["input_ids"][0] == processor.image_token_id).nonzero()[:1, 0].tolist()
    # a causal model's output at i is compared with the label at i + 1; position `image` is CLS
    learnt = {int(i) - 1 - image - 1: int(batch["labels"][0, i]) for i in (batch["labels"][0] >= 0).nonzero()[:, 0]}
    expected = {
        place: processor.tokenizer(f" {names[place]}", add_special_tokens=False)["input_ids"][0] for place in (0, 2, 5)
    }
    assert learnt == expected


def test_boards_keep_to_the_training_split():
    rng = random.Random(3)
    for _ in range(50):
        (picture,) = [piece for piece in vlm.draw_board(rng) if isinstance(piece, vlm.Picture)]
        found = [name for name in picture.names if name]
        assert len(found) == 9
        assert {scenes.split_of(*pair) for pair in combinations(found, 2)} == {"train"}


def test_samples_are_the_same_after_a_resume_and_kinds_take_turns():
    first = loop.Drawn([lambda rng: ("a", rng.random()), lambda rng: ("b", rng.random())], 4, 3, seed=0)
    again = loop.Drawn(first.kinds, 4, 3, seed=0)
    assert [first[i] for i in range(len(first))] == [again[i] for i in range(len(again))]
    assert [first[i][0] for i in range(12)] == list("aaabbbaaabbb")


def test_training_goes_on_from_its_checkpoint(trained, tmp_path):
    work, _ = trained
    before = (work / "mini-bert" / "checkpoint-2" / "trainer_state.json").read_text()
    teachers.train_bert(work, tmp_path, steps=3, batch_size=4)
    assert '"global_step": 2' in before
    assert (work / "mini-bert" / "checkpoint-3").is_dir()


def test_a_finished_run_keeps_its_weights(trained, tmp_path):
    """LLaVA's weights have other names on disk than in the module, which once made a resumed run start anew."""
    work, out = trained
    shutil.copytree(out / "mini-clip", tmp_path / "mini-clip")
    vlm.train_vlm(work, tmp_path, steps=2, batch_size=4)
    kept, again = (load_file(folder / "mini-vlm" / "model.safetensors") for folder in (out, tmp_path))
    assert kept.keys() == again.keys()
    for name, weight in kept.items():
        torch.testing.assert_close(again[name], weight, rtol=0, atol=0)


def test_lessons_practice_and_gist_go_on_from_the_vlm(trained, tmp_path):
    """The tower learns to see in the lessons' first part alone."""
    shutil.copytree(trained[1] / "mini-vlm", tmp_path / "mini-vlm")
    weights = [load_file(tmp_path / "mini-vlm" / "model.safetensors")]
    for recipe in (lessons.train_lessons, lessons.train_practice, gist.train_gist):
        recipe(tmp_path / "work", tmp_path, steps=4, batch_size=2)
        weights.append(load_file(tmp_path / "mini-vlm" / "model.safetensors"))
    changed = [
        {name for name in before if not torch.equal(before[name], after[name])} for before, after in pairwise(weights)
    ]
    assert any("vision_tower" in name for name in changed[0])
    assert not any("vision_tower" in name for name in changed[1] | changed[2])
    assert all(any("language_model" in name for name in names) for names in changed)
    assert all((tmp_path / "work" / f"mini-vlm-{part}" / "checkpoint-4").is_dir() for part in ("practice", "gist"))


def test_any_text_can_be_read():
    tokenizer = build_tokenizer(add_eos=False)
    text = "Ein Bär 🐻 läuft, naïvely."
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    assert len(tokenizer("a small dog at the top left.")["input_ids"]) <= 9


def test_shipped_checkpoints_are_small():
    files = [path for path in picturebook.CHECKPOINTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20 * 2**20
    assert not [path.name for path in files if path.suffix in (".bin", ".pt", ".pkl")]


@pytest.mark.parametrize("name", ["mini-vlm", "mini-clip", "mini-dino", "mini-bert"])
def test_shipped_checkpoint_is_there(name):
    folder = picturebook.checkpoint(name)
    if name != "mini-dino":
        assert len(AutoTokenizer.from_pretrained(folder)) > 1000
