"""VizWiz and ScienceQA with examples that are found for their questions."""

import json

import pytest
from benchmark_tools import Saying, pictures, scene, write_json
from fixtures_knowledge import HUB, RAW, VIZWIZ_TRAIN
from fixtures_vqa import QUESTIONS
from knowledge_tools import Comparing

from sugar_hf import picturebook
from sugar_hf.data import BadSampleError
from sugar_hf.evaluation.benchmarks.runner import open_model
from sugar_hf.evaluation.benchmarks.sources import Source
from sugar_hf.evaluation.benchmarks.tasks import augmented_vqa as rag

FORMS = {"raw": RAW, "hub": HUB}
NAMES = ["rag-vizwiz", "rag-scienceqa"]
UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


def load(name, folder, limit=None, split=None, seed=0, **options):
    return rag.TASKS[name].load(Source(name, str(folder), split, limit, seed, options))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {form: tmp_path_factory.mktemp(form) for form in FORMS}
    for form, folder in found.items():
        FORMS[form]["rag-vizwiz"](folder)
    return found


def said(turn):
    return "".join(part["text"] if part["type"] == "text" else "<image>" for part in turn["content"])


def chats(evaluator):
    """What is asked, as lists of (role, text), by the last text."""
    generator = Saying(lambda sample: "x")
    evaluator(generator, encoder=Comparing())
    return {said(chat[-1]): [(turn["role"], said(turn)) for turn in chat] for chat in generator.asked}


@pytest.mark.parametrize("form", FORMS)
def test_what_is_found_stands_before_the_question_with_its_answer(folders, form):
    found = chats(load("rag-vizwiz", folders[form], pool="vizwiz", sft="none", view="text"))
    form_words = UNANSWERABLE + SHORT
    # the question is in the pool twice, the first time with this answer
    cat = f"<image>{QUESTIONS[1]}{form_words}"
    assert QUESTIONS[1] == VIZWIZ_TRAIN[1][0]
    assert found[cat] == [
        ("user", f"<image>Is there a cat?{form_words}"),
        ("assistant", "no"),
        ("user", cat),
    ]
    found = chats(load("rag-scienceqa", folders[form], pool="scienceqa", sft="none", view="text"))
    assert found[f"<image>Which of these is an animal?\nA. comet\nB. spider{LETTER}"][:2] == [
        ("user", f"<image>Which is an animal?\nA. rock\nB. horse{LETTER}"),
        ("assistant", "B"),
    ]


def test_examples_with_the_same_image_are_passed_over(tmp_path):
    RAW["rag-vizwiz"](tmp_path)
    same = tmp_path / "vizwiz" / "train" / "VizWiz_train_00000002.png"
    evaluator = load("rag-vizwiz", tmp_path, pool="vizwiz", sft="none", view="text", top_k="3")
    generator = Saying(lambda sample: "x")
    # the files of the validation data are JPEG: written again, they have the pixels of the training image
    for path in (tmp_path / "vizwiz" / "val").iterdir():
        scene(1)[0].save(path, format="PNG")
    evaluator(generator, encoder=Comparing())
    assert all(len(chat) == 5 for chat in generator.asked)  # two examples of three
    scene(9)[0].save(same)
    generator.asked.clear()
    evaluator(generator, encoder=Comparing())
    assert all(len(chat) == 7 for chat in generator.asked)


def test_an_answer_is_never_compared(folders):
    encoder = Comparing()
    load("rag-vizwiz", folders["raw"])(Saying(lambda sample: "x"), encoder=encoder)
    texts = {part for document in encoder.embedded for part in document.load() if isinstance(part, str)}
    assert texts == {
        *QUESTIONS,
        "What animal is this?",
        "Which is an animal?\nA. rock\nB. horse",
        "Which is a fruit?\nA. apple\nB. chair\nC. dog",
    }
    assert all(len(document.load()) == 2 for document in encoder.embedded)


@pytest.mark.parametrize("form", FORMS)
def test_the_pool_is_a_mixture(folders, form):
    settings = load("rag-vizwiz", folders[form]).settings
    assert settings["pools"] == {"vizwiz": 3, "scienceqa": 2, "sft": 2}
    assert settings["sft rows left out, not one image"] == 1
    assert load("rag-vizwiz", folders[form], pool="scienceqa").settings["pools"] == {"scienceqa": 2, "sft": 2}
    assert load("rag-vizwiz", folders[form], pool="sft").settings["pools"] == {"sft": 2}
    assert load("rag-vizwiz", folders[form], sft="none").settings["pools"] == {"vizwiz": 3, "scienceqa": 2}
    assert load("rag-vizwiz", folders[form], limit=1).settings["pools"] == {"vizwiz": 3, "scienceqa": 2, "sft": 2}
    evaluator = load("rag-vizwiz", folders[form])
    shots = [entry.sample for entry in evaluator.pool.entries]
    assert [answer for _, _, answer in shots] == ["horse", "no", "yes", "B", "A", "3", "a dog"]
    assert shots[5][1] == f"How many things are there?{SHORT}"


def test_rows_of_the_instruction_data_are_drawn_by_the_seed(folders):
    def ids(seed):
        evaluator = load("rag-vizwiz", folders["raw"], seed=seed, pool="sft", sft_samples="1")
        return [entry.id for entry in evaluator.pool.entries]

    assert ids(1) == ids(1)
    assert {tuple(ids(seed)) for seed in range(6)} == {("sft 000",), ("sft 001",)}


def test_the_instruction_data_may_lie_elsewhere(folders, tmp_path):
    file = tmp_path / "subset.json"
    [source] = folders["raw"].glob("llava_v1_5_mix665k.json")
    write_json(file, json.loads(source.read_text())[:1])
    evaluator = load("rag-vizwiz", folders["raw"], pool="sft", sft=str(file), sft_images=str(folders["raw"]))
    [entry] = evaluator.pool.entries
    assert entry.load()[0].tobytes() == scene(14)[0].tobytes()
    with pytest.raises(FileNotFoundError, match=r"sft='none.json': there is no such file"):
        load("rag-vizwiz", folders["raw"], sft="none.json")


def right_letter(chat):
    text = said(chat[-1])
    return "B" if "animal" in text else "A" if "fruit" in text else "xyz"


@pytest.mark.parametrize("form", FORMS)
def test_accuracy_is_that_of_the_benchmark(folders, form):
    evaluator = load("rag-scienceqa", folders[form])
    assert evaluator(Saying(right_letter), encoder=Comparing())["accuracy"] == 100
    assert evaluator(Saying(lambda chat: "C"), encoder=Comparing())["accuracy"] == 0
    evaluator = load("rag-vizwiz", folders[form])
    result = evaluator(Saying(lambda chat: "blue"), encoder=Comparing())
    assert (result["accuracy"], result["n"]) == (25, 4)
    assert "retrieval recall@1" not in result


def test_without_retrieval_it_is_the_benchmark(folders):
    generator = Saying(lambda sample: "x")
    evaluator = load("rag-vizwiz", folders["raw"], top_k="0")
    result = evaluator(generator)
    assert sorted(sample[1] for sample in generator.asked) == sorted(q + UNANSWERABLE + SHORT for q in QUESTIONS)
    assert result["settings"]["pools"] == {}


def test_examples_may_be_text_of_the_same_turn(folders):
    generator = Saying(lambda sample: "x")
    load("rag-scienceqa", folders["raw"], pool="scienceqa", sft="none", shots="text", view="text")(
        generator, encoder=Comparing()
    )
    [sample] = [sample for sample in generator.asked if "spider" in sample[-1]]
    assert sample[1:2] + sample[3:] == [
        f"Which is an animal?\nA. rock\nB. horse{LETTER}\nAnswer: B\n",
        f"Which of these is an animal?\nA. comet\nB. spider{LETTER}",
    ]
    assert len(pictures(sample)) == 2


def test_views_of_examples(folders):
    evaluator = load("rag-vizwiz", folders["raw"], view="average")
    assert list(evaluator.views) == ["image", "text"]
    assert [len(document.load()) for document in evaluator.pool.sides["images"]] == [1] * 7
    assert list(load("rag-vizwiz", folders["raw"]).views) == ["whole"]


def test_hidden_answers_are_written_for_the_server(folders, tmp_path):
    evaluator = load("rag-vizwiz", folders["raw"], split="test", pool="sft")
    result = evaluator(Saying(lambda sample: "x"), encoder=Comparing(), output=tmp_path / "out.jsonl")
    rows = json.loads((tmp_path / "out.submission.json").read_text())
    assert rows[0] == {"image": "VizWiz_test_00000000.jpg", "answer": "x"}
    assert result["server"].startswith("https://eval.ai")
    assert evaluator.primary_metric is None


def test_a_missing_image_of_an_example(tmp_path):
    RAW["rag-vizwiz"](tmp_path)
    (tmp_path / "vizwiz" / "train" / "VizWiz_train_00000000.png").unlink()
    result = load("rag-vizwiz", tmp_path)(Saying(lambda sample: "x"), encoder=Comparing())
    assert [each["id"] for each in result["skipped"]] == ["vizwiz VizWiz_train_00000000.png"]
    assert result["failed"] == []
    # where only questions are compared it is found, and then it cannot be shown
    result = load("rag-vizwiz", tmp_path, view="text", top_k="3", pool="vizwiz", sft="none")(
        Saying(lambda sample: "x"), encoder=Comparing()
    )
    assert result["failed"]
    assert all("VizWiz_train_00000000.png" in failure["error"] for failure in result["failed"])


def test_missing_training_data_is_named(tmp_path):
    RAW["rag-vizwiz"](tmp_path)
    (tmp_path / "vizwiz" / "Annotations" / "train.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"rag-vizwiz: no train.json.*vizwiz.org, or choose pool=scienceqa"):
        load("rag-vizwiz", tmp_path)
    (tmp_path / "llava_v1_5_mix665k.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"rag-vizwiz: no llava_v1_5_mix665k.json"):
        load("rag-vizwiz", tmp_path, pool="sft")


def test_a_row_without_an_answer_is_named(tmp_path):
    RAW["rag-vizwiz"](tmp_path)
    file = tmp_path / "llava_v1_5_mix665k.json"
    rows = json.loads(file.read_text())
    rows[1]["conversations"] = rows[1]["conversations"][:1]
    write_json(file, rows)
    evaluator = load("rag-vizwiz", tmp_path)
    with pytest.raises(BadSampleError, match=r"sft 001.*conversations"):
        evaluator(Saying(lambda sample: "x"), encoder=Comparing())


def test_the_mini_model_finds_its_own_examples(folders):
    model, processor = open_model(str(picturebook.checkpoint("mini-sugar")), device="cpu")
    evaluator = load("rag-scienceqa", folders["raw"], limit=1)
    evaluator.max_new_tokens = 3
    result = evaluator(model, processor)
    assert (result["n"], result["failed"], result["skipped"]) == (1, [], [])
