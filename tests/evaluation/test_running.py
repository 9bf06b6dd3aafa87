"""Models by name, and what a run is called."""

import json

import pytest
from benchmark_tools import write_json
from builders import build_tiny_llava, cached_sugar
from fixtures_vqa import RAW
from peft import LoraConfig, get_peft_model

from sugar_hf import picturebook
from sugar_hf.evaluation.benchmarks.runner import Models, is_sugar, open_model, run_name, run_task
from sugar_hf.evaluation.benchmarks.sources import Source
from sugar_hf.evaluation.benchmarks.tasks import all_tasks
from sugar_hf.model import SugarForConditionalGeneration

TASKS = all_tasks()
MINI = picturebook.checkpoint("mini-sugar")


@pytest.fixture(scope="module")
def gqa(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gqa")
    RAW["gqa"](folder)
    return Source("gqa", str(folder))


@pytest.fixture(scope="module")
def sugar_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "sugar"
    model, processor = cached_sugar("llava")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_adapters_are_measured_as_what_they_are_on(sugar_folder, gqa, tmp_path):
    model = SugarForConditionalGeneration.from_pretrained(sugar_folder)
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "tuned")
    cached_sugar("llava")[1].save_pretrained(tmp_path / "tuned")
    assert is_sugar(str(tmp_path / "tuned"))
    results = [
        run_task(TASKS["gqa"], gqa, Models(str(folder), device="cpu"), tmp_path / "results")
        for folder in (sugar_folder, tmp_path / "tuned")
    ]
    assert [result["run"] for result in results] == ["sugar", "tuned"]
    digests = [result["settings"]["digest"] for result in results]
    assert digests[0] != digests[1]


def test_a_plain_model_answers_as_it_does_without_us(gqa, tmp_path):
    backbone, processor = build_tiny_llava(seed=0)
    backbone.save_pretrained(tmp_path / "vlm")
    processor.save_pretrained(tmp_path / "vlm")
    model, _ = open_model(str(tmp_path / "vlm"), device="cpu")
    assert type(model) is type(backbone)
    result = run_task(TASKS["gqa"], gqa, Models(str(tmp_path / "vlm"), device="cpu"), tmp_path / "results")
    assert result["n"] == 4
    assert result["failed"] == []


def test_what_cannot_do_a_task_says_so(gqa, tmp_path):
    clip = picturebook.checkpoint("mini-clip")
    with pytest.raises(ValueError, match=r"mini-clip \(clip\) is no image-text-to-text model"):
        run_task(TASKS["gqa"], gqa, Models(clip, device="cpu"), tmp_path)
    with pytest.raises(ValueError, match="without a trained retrieval head"):
        Models(picturebook.checkpoint("mini-vlm"), device="cpu").arguments(TASKS["coco"])


def test_a_result_is_written_whole(gqa, tmp_path):
    result = run_task(TASKS["gqa"], gqa, Models(MINI, device="cpu"), tmp_path, name="mine")
    written = json.loads((tmp_path / "gqa" / "mine.json").read_text())
    assert written == result
    assert written["primary_metric"] in written["metrics"]
    assert set(written["versions"]) == {"python", "sugar-hf", "torch", "transformers", "datasets"}
    assert sorted(path.name for path in (tmp_path / "gqa").iterdir()) == [
        "mine.json",
        "mine.jsonl",
        "mine.submission.json",
    ]


def test_runs_that_differ_have_names_that_differ():
    clip = Models("me/sugar", retriever="openai/clip-vit", mode="image")
    plain = Source("fvqa", "data")
    assert run_name(TASKS["gqa"], plain, clip) == "sugar"
    assert run_name(TASKS["fvqa"], plain, clip) == "sugar+clip-vit-image"
    options = Source("fvqa", "data", split="test", limit=5, seed=2, options={"view": "image"})
    assert run_name(TASKS["fvqa"], options, Models("me/sugar")) == "sugar.test.view=image.seed=2.first-5"
    assert run_name(TASKS["coco"], plain, Models("openai/clip-vit", mode="text")) == "clip-vit-text"


def test_a_sentence_as_an_option_makes_no_file_name_too_long():
    told = [Source("vist", "data", options={"instruction": f"{'Find the last image. ' * 20}{n}"}) for n in (1, 2)]
    names = [run_name(TASKS["vist"], source, Models("me/sugar")) for source in told]
    assert names[0] != names[1]
    assert max(map(len, names)) < 110


def test_a_file_of_results_does_not_change_a_run(gqa, tmp_path):
    write_json(tmp_path / "gqa" / "mini-sugar.json", {"old": True})
    result = run_task(TASKS["gqa"], gqa, Models(MINI, device="cpu"), tmp_path)
    assert json.loads((tmp_path / "gqa" / "mini-sugar.json").read_text()) == result
