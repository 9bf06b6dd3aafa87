"""examples/train_sugar.py from files on disk to a model that loads, retrieves and generates."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from builders import build_tiny_llava, picture
from tiny_teachers import save_tiny_teachers
from transformers import AutoModel, AutoProcessor, pipeline

from sugar_hf.model import SugarForConditionalGeneration

SCRIPT = Path(__file__).parents[2] / "examples" / "train_sugar.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_sugar", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_sugar"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["train_sugar"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A plain vision-language model, teachers, and a JSONL of chat messages with images beside it."""
    folder = tmp_path_factory.mktemp("files")
    model, processor = build_tiny_llava()
    model.save_pretrained(folder / "vlm")
    processor.save_pretrained(folder / "vlm")
    save_tiny_teachers(folder)
    (folder / "images").mkdir()
    rows = []
    for i in range(6):
        picture(i).save(folder / "images" / f"{i}.png")
        turns = [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": f"What is picture {i}?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": f"A cat and {i} dogs."}]},
        ]
        rows.append({"id": f"row-{i}", "messages": turns, "images": [f"{i}.png"]})
    (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def command(files, output, *more):
    teachers = [part for role in ("clip", "dino", "text") for part in (f"--{role}", str(files / role))]
    settings = (
        f"--model {files / 'vlm'} --dataset {files / 'chat.jsonl'} --image_root {files / 'images'} "
        f"--output_dir {output} --retrieval_dim 16 --max_steps 2 --per_device_train_batch_size 3 "
        "--use_cpu --report_to none --save_steps 1 "
        "--teacher_device cpu"
    )
    return [*settings.split(), *teachers, *more]


def test_all_weights(script, files, tmp_path):
    script.main(command(files, tmp_path, "--eval_size", "2", "--format", "chat"))
    model = AutoModel.from_pretrained(tmp_path)
    assert isinstance(model, SugarForConditionalGeneration)
    inputs = AutoProcessor.from_pretrained(tmp_path)([["A cat.", picture(1)]])
    embeddings, mask = model.get_retrieval_embeddings(**inputs)
    assert embeddings.shape == (1, 2, 16)
    assert mask.all()
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["global_step"] == 2
    retrieve = pipeline("sugar-retrieval", model=str(tmp_path))
    [best] = retrieve("a cat", candidates=[picture(1), picture(2)], top_k=1)
    assert best["index"] in (0, 1)


def test_lora_saves_the_adapter_and_the_merged_model(script, files, tmp_path):
    script.main(command(files, tmp_path, "--lora", "--lora_r", "4", "--lora_alpha", "8"))
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "adapter_config.json").exists()
    model = AutoModel.from_pretrained(tmp_path)
    assert not [name for name, _ in model.named_parameters() if "lora" in name]


def test_sugar_checkpoint_is_trained_further(script, files, tmp_path):
    script.main(command(files, tmp_path / "first", "--alpha", "0"))
    script.main([*command(files, tmp_path / "second", "--max_steps", "1"), "--model", str(tmp_path / "first")])
    heads = [AutoModel.from_pretrained(tmp_path / name).retrieval_head.up_proj.weight for name in ("first", "second")]
    assert not torch.equal(*heads)
    torch.testing.assert_close(*heads, atol=1e-3, rtol=0)


def test_teacher_vectors_of_an_earlier_run_are_found(script, files, tmp_path, monkeypatch):
    script.main(command(files, tmp_path, "--eval_size", "2"))
    cache = tmp_path / "_teacher_cache"
    assert len(list(cache.iterdir())) == 2  # of the training set and of the evaluation set

    def fail(*args):
        raise AssertionError("computed again")

    monkeypatch.setattr(script.TripleTeacher, "_embed", fail)
    script.main(command(files, tmp_path, "--eval_size", "2", "--learning_rate", "1e-5"))


def test_missing_model_is_said(script, files, tmp_path):
    with pytest.raises(SystemExit, match="--model is missing"):
        script.main(["--dataset", str(files / "chat.jsonl"), "--output_dir", str(tmp_path)])
