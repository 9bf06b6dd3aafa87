"""Local tasks, drawn from the picturebook, run by lmms-eval itself on the mini checkpoint."""

import json
import os
import re
import subprocess
import sys
import weakref
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
import yaml
from builders import picture
from datasets import Dataset, Features, Image, List, Value
from lmms_eval.api.instance import Instance
from lmms_eval.evaluator import evaluate
from lmms_eval.models import get_model
from lmms_eval.tasks import TaskManager, get_task_dict
from PIL import Image as PILImage

from sugar_hf import picturebook
from sugar_hf.data import to_sample
from sugar_hf.evaluation.harnesses.lmms_eval_sugar import SugarChatModel, generation_options_of, place_images
from sugar_hf.model import SugarForConditionalGeneration, SugarGenerationPipeline, SugarProcessor

DOCS = Path(__file__).parents[2] / "docs" / "harnesses.md"
MINI = picturebook.checkpoint("mini-sugar")
SIZE = 10
UTILS = """
def picture(doc):
    return [doc["image"]]

def frames(doc):
    return doc["images"]

def story(doc, lmms_eval_specific_kwargs=None):
    parts = []
    for sentence, image in zip(doc["sentences"], doc["images"]):
        parts += [{"type": "text", "text": sentence}, {"type": "image", "url": image}]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": doc["question"]}]}]

def rounds(doc, round_idx=None, previous_output=None, previous_round_info=None, lmms_eval_specific_kwargs=None):
    content = [{"type": "image", "url": doc["image"]}, {"type": "text", "text": doc["question"]}]
    ask = [{"role": "user", "content": content}]
    if round_idx is None:
        return ask
    if round_idx == 2:
        return None, True, previous_output, previous_round_info
    more = [{"role": "assistant", "content": [{"type": "text", "text": previous_output[-1]}]},
            {"role": "user", "content": [{"type": "text", "text": "what is it?"}]}]
    return ask + more, False, previous_output, previous_round_info

def keep(doc, results):
    return {"rounds": len(results[0])}
"""


def write_task(folder, name, rows, features, **config):
    data = folder / f"{name}.parquet"
    Dataset.from_list(rows, features=Features(features)).to_parquet(data)
    config = {
        "task": name,
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "question",
        "doc_to_target": "answer",
        "generation_kwargs": {"max_new_tokens": 8, "temperature": 0, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        **config,
    }
    text = yaml.safe_dump(config)
    for function in ("picture", "frames", "story", "rounds", "keep"):
        text = text.replace(f"'!{function}'", f"!function utils.{function}")
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder of tasks, and for each the chats that its documents stand for."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "utils.py").write_text(UTILS, encoding="utf-8")
    chats: dict[str, list] = {}

    asked = [to_sample(row) for row in picturebook.load("test", kind="question", size=SIZE, seed=3)]
    shown = [chat[0]["content"][0]["image"] for chat in asked]
    questions = [chat[0]["content"][1]["text"] for chat in asked]
    rows = [
        {"image": image, "question": question, "answer": chat[1]["content"][0]["text"]}
        for image, question, chat in zip(shown, questions, asked, strict=True)
    ]
    one_picture = {"image": Image(), "question": Value("string"), "answer": Value("string")}
    write_task(folder, "book_questions", rows, one_picture, doc_to_visual="!picture")
    chats["book_questions"] = [
        [{"role": "user", "content": [{"type": "image", "image": image}, question]}]
        for image, question in zip(shown, questions, strict=True)
    ]
    write_task(
        folder,
        "book_rounds",
        rows,
        one_picture,
        output_type="generate_until_multi_round",
        doc_to_visual="!picture",
        doc_to_messages="!rounds",
        process_results="!keep",
        metric_list=[{"metric": "rounds", "aggregation": "mean", "higher_is_better": True}],
    )

    stories = [to_sample(row) for row in picturebook.load("test", kind="story", size=SIZE, seed=4, words_first=True)]
    question = "what is in the last picture?"
    rows = [
        {"sentences": story[::2], "images": story[1::2], "question": question, "answer": "a dog"} for story in stories
    ]
    many = {
        "sentences": List(Value("string")),
        "images": List(Image()),
        "question": Value("string"),
        "answer": Value("string"),
    }
    write_task(folder, "book_stories", rows, many, doc_to_visual="!frames", doc_to_messages="!story")
    chats["book_stories"] = [[{"role": "user", "content": [*story, question]}] for story in stories]

    rows = [
        {**row, "question": "before <image> after <image> what moved?", "images": row["images"][:2]} for row in rows
    ]
    write_task(folder, "book_marks", rows, many, doc_to_visual="!frames")
    chats["book_marks"] = [
        [{"role": "user", "content": ["before ", story[1], " after ", story[3], " what moved?"]}] for story in stories
    ]
    return folder, chats


@pytest.fixture(scope="module")
def pipe():
    return SugarGenerationPipeline(
        model=SugarForConditionalGeneration.from_pretrained(MINI).eval(),
        processor=SugarProcessor.from_pretrained(MINI),
        task="sugar-generation",
        device="cpu",
    )


@pytest.fixture(scope="module")
def manager(tasks):
    return TaskManager("ERROR", include_path=str(tasks[0]), model_name="sugar")


def run(manager, names, **options):
    """What the command line does, without what it changes in the process. Returns results and replies by task."""
    lm = SugarChatModel(MINI, device="cpu", **options)
    found = get_task_dict(names, manager, "chat")
    lm.task_dict = {name: task.dataset for name, task in found.items()}
    results = evaluate(lm, found, log_samples=True, bootstrap_iters=0)
    replies = {
        name: [sample["resps"][0][0] for sample in sorted(results["samples"][name], key=lambda row: row["doc_id"])]
        for name in names
    }
    return results["results"], replies


@pytest.fixture(scope="module")
def singly(tasks, manager):
    return run(manager, sorted(tasks[1]), batch_size=1)


@pytest.fixture(scope="module")
def by_four(tasks, manager):
    return run(manager, sorted(tasks[1]), batch_size="4")


def test_the_entry_point_names_the_model():
    (found,) = entry_points(group="lmms_eval.models", name="sugar")
    assert found.load().model_id == "sugar"
    assert get_model("sugar") is SugarChatModel


def test_answers_are_those_of_the_pipeline(tasks, by_four, pipe, subtests):
    for name in ["book_questions", "book_stories", "book_marks"]:
        with subtests.test(name=name):
            replies = pipe(tasks[1][name], batch_size=4, max_new_tokens=8, do_sample=False)
            assert by_four[1][name] == [reply[0]["generated_text"] for reply in replies]
            assert len(set(by_four[1][name])) > 1


def test_batch_size_changes_nothing(singly, by_four):
    assert singly == by_four


def test_the_score_is_that_of_the_answers(tasks, by_four):
    results, replies = by_four
    table = Dataset.from_parquet(str(tasks[0] / "book_questions.parquet"), cache_dir=str(tasks[0] / "cache"))
    hits = [reply == answer for reply, answer in zip(replies["book_questions"], table["answer"], strict=True)]
    assert results["book_questions"]["exact_match,none"] == pytest.approx(sum(hits) / SIZE)
    assert sum(hits) > SIZE / 2


def test_rounds_go_on_until_the_task_ends_them(tasks, manager, pipe):
    results, replies = run(manager, ["book_rounds"], batch_size=4)
    assert results["book_rounds"]["rounds,none"] == 2
    first = tasks[1]["book_questions"]
    firsts = [reply[0]["generated_text"] for reply in pipe(first, batch_size=4, max_new_tokens=8, do_sample=False)]
    second = [
        [*chat, {"role": "assistant", "content": [said]}, {"role": "user", "content": ["what is it?"]}]
        for chat, said in zip(first, firsts, strict=True)
    ]
    seconds = [reply[0]["generated_text"] for reply in pipe(second, batch_size=4, max_new_tokens=8, do_sample=False)]
    assert replies["book_rounds"] == [list(pair) for pair in zip(firsts, seconds, strict=True)]


@pytest.mark.slow
def test_command_line_writes_results(tasks, singly, tmp_path):
    command = [sys.executable, "-m", "lmms_eval", "--model", "sugar", "--model_args", f"pretrained={MINI},device=cpu"]
    command += ["--tasks", "book_questions", "--include_path", str(tasks[0]), "--batch_size", "4", "--log_samples"]
    command += ["--output_path", str(tmp_path / "out")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(picturebook.__file__).parents[2])}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    written = list((tmp_path / "out").rglob("*_results.json"))
    assert len(written) == 1, done.stdout[-2000:] + done.stderr[-2000:]
    score = json.loads(written[0].read_text(encoding="utf-8"))["results"]["book_questions"]["exact_match,none"]
    assert score == singly[0]["book_questions"]["exact_match,none"]
    (samples,) = (tmp_path / "out").rglob("*_samples_*.jsonl")
    assert len(samples.read_text(encoding="utf-8").splitlines()) == SIZE


def request(messages, number=0, **options):
    arguments = (f"question {number}", lambda doc: messages, options, number, "made", "test")
    return Instance("generate_until", arguments, 0, {"task": "made", "doc_id": number, "repeats": 1})


@pytest.fixture(scope="module")
def model():
    made = SugarChatModel(MINI, device="cpu", batch_size=3)
    made.task_dict["made"] = {"test": [{}] * 10}
    return made


def user(*content):
    *images, text = content
    shown = [{"type": "image", "url": image} for image in images]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]


def test_each_request_has_its_own_options(model):
    chat = user(picture(0), "describe the picture in detail.")
    lengths = [8, 2, 8, 2]
    replies = model.generate_until([request(chat, i, max_new_tokens=length) for i, length in enumerate(lengths)])
    assert replies[0] == replies[2] != replies[1] == replies[3]
    assert replies[0].startswith(replies[1])
    word = replies[0].split()[2]
    (cut_reply,) = model.generate_until([request(chat, max_new_tokens=8, until=["\n\n", word])])
    assert cut_reply == " ".join(replies[0].split()[:2])


def test_options_are_not_changed_and_answers_are_handed_to_the_cache(model):
    kept = []
    asked = request(user("what is it?"), max_new_tokens=2, temperature=0, until=None)
    model.cache_hook.add_partial, before = lambda *row: kept.append(row), model.cache_hook.add_partial
    (reply,) = model.generate_until([asked])
    model.cache_hook.add_partial = before
    assert asked.args[2] == {"max_new_tokens": 2, "temperature": 0, "until": None}
    assert kept == [("generate_until", ("question 0", asked.args[2]), reply)]


def test_sampling_is_as_the_task_says():
    assert generation_options_of({}) == ({"do_sample": False}, [], [])
    assert generation_options_of({"temperature": 0.0, "top_p": 0.9, "do_sample": True})[0] == {"do_sample": False}
    assert generation_options_of({"temperature": 0.5, "do_sample": False})[0] == {"do_sample": False}
    assert generation_options_of({"temperature": 0.5, "top_p": None, "max_gen_toks": 3.0})[0] == {
        "do_sample": True,
        "max_new_tokens": 3,
        "temperature": 0.5,
    }
    assert generation_options_of({"num_beams": 3, "until": "Q:", "seed": 1}) == (
        {"do_sample": False, "num_beams": 3},
        ["Q:"],
        ["seed"],
    )


def test_marks_that_are_not_as_many_as_images_stay_text():
    image = {"type": "image", "path": "a.png"}
    assert place_images([image, image, "<image><image> which?"]) == [image, image, " which?"]
    assert place_images([image, "is <image> a tag in <image>?"]) is None
    assert place_images(["before", image, "<image>"]) == ["before", image, "<image>"]
    assert place_images(["no image <image>"]) == ["no image <image>"]
    assert place_images([]) == []


def test_images_may_be_files(model, tmp_path):
    picture(1).save(tmp_path / "1.png")
    asked = [request(user(image, "what is it?"), max_new_tokens=4) for image in (picture(1), str(tmp_path / "1.png"))]
    first, second = model.generate_until(asked)
    assert first == second


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_video_and_audio_are_refused(model, kind):
    chat = [{"role": "user", "content": [{"type": kind, "url": "a.mp4"}, {"type": "text", "text": "who?"}]}]
    with pytest.raises(ValueError, match=f"made, document 7: has {kind}.*takes texts and images"):
        model.generate_until([request(chat, 7)])


def test_a_broken_image_names_its_document(model):
    broken = PILImage.new("RGB", (0, 3))
    with pytest.raises(ValueError, match="made, document 5"):
        model.generate_until([request(user(broken, "what?"), 5)])


def test_requests_for_simple_models_are_refused(model):
    made = request(user("who?"))
    made.arguments = ("who?", {}, list, 0, "made", "test")
    with pytest.raises(ValueError, match=r"made: lmms-eval made requests without messages.*--include_path"):
        model.generate_until([made])


def test_no_log_likelihood(model):
    with pytest.raises(NotImplementedError, match="generation requests only"):
        model.loglikelihood([])


def test_a_plain_model_is_wrapped(pipe, tmp_path):
    plain = picturebook.checkpoint("mini-vlm")
    made = SugarChatModel(plain, device="cpu", dtype="float64", attn_implementation="eager", batch_size=2)
    made.task_dict["made"] = {"test": [{}]}
    assert made._model.dtype == torch.float64
    assert made._model.config.vlm_config._attn_implementation == "eager"
    (reply,) = made.generate_until([request(user(picture(0), "what is it?"), max_new_tokens=4)])
    assert isinstance(reply, str)


def test_the_model_is_where_the_device_map_says(model):
    made = SugarChatModel(MINI, device_map="cpu")
    made.task_dict["made"] = {"test": [{}]}
    asked = request(user(picture(0), "what is it?"), max_new_tokens=4)
    assert made.generate_until([asked]) == model.generate_until([asked])
    watched = weakref.ref(made._model)
    made.clean()  # as lmms-eval does before it loads a judge
    assert watched() is None


def test_what_the_model_is_without_arguments(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert SugarChatModel.create_from_arg_string("device=cpu")._model.config.name_or_path == MINI


def test_system_prompt_and_template_are_used(tmp_path, pipe):
    template = tmp_path / "template.jinja"
    template.write_text(pipe.processor.chat_template, encoding="utf-8")
    made = SugarChatModel(MINI, device="cpu", system_prompt="be brief.", chat_template=str(template))
    made.task_dict["made"] = {"test": [{}]}
    chat = [{"role": "system", "content": ["be brief."]}, {"role": "user", "content": [picture(0), "what is it?"]}]
    (reply,) = made.generate_until([request(user(picture(0), "what is it?"), max_new_tokens=4)])
    assert reply == pipe(chat, max_new_tokens=4, do_sample=False)[0]["generated_text"]


def test_arguments_that_cannot_be(subtests):
    for options, message in [
        ({"batch_size": "auto"}, "batch_size='auto': give a whole number"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"device": "cpu", "device_map": "auto"}, "give one of them"),
    ]:
        with (
            subtests.test(message=message),
            pytest.raises(ValueError, match=message),
        ):
            SugarChatModel(MINI, **options)


def test_the_tasks_of_the_docs_are_there(manager):
    section = DOCS.read_text(encoding="utf-8").split("## lmms-eval")[1].split("## mteb")[0]
    names = re.findall(r"^\| [^|`]+ \| `(\w+)`", section, re.MULTILINE)
    assert len(names) > 10
    assert set(names) <= set(manager.all_tasks)
