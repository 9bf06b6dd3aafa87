"""VQAv2, GQA, VizWiz and TextVQA, from official files and from rows."""

import json

import pytest
from benchmark_tools import Saying, pictures, words, write_json
from fixtures_vqa import ANSWERS, HUB, QUESTIONS, RAW

from sugar_hf.evaluation.benchmarks.sources import Source
from sugar_hf.evaluation.benchmarks.tasks import all_tasks

NAMES = sorted(RAW)
FORMS = {"raw": RAW, "hub": HUB}


def load(name, folder, **options):
    return all_tasks()[name].load(Source(name, str(folder), **options))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Every data set in every form, written once."""
    found = {(name, form): tmp_path_factory.mktemp(f"{name}-{form}") for name in NAMES for form in FORMS}
    for (name, form), folder in found.items():
        FORMS[form][name](folder)
    return found


def right(sample):
    return ANSWERS[next(i for i, text in enumerate(QUESTIONS) if text in words(sample))][-1]


def test_right_answers_score_full_and_wrong_ones_nothing(folders, subtests):
    for name in NAMES:
        for form in FORMS:
            with subtests.test(form=f"{form!r:.60}", name=name):
                evaluator = load(name, folders[name, form])
                answer = (
                    right
                    if name != "gqa"
                    else lambda sample: ANSWERS[QUESTIONS.index(sample[1].split("\n")[0])][0] + "."
                )
                generator = Saying(answer)
                result = evaluator(generator)
                # "no", said by 3 of 10, is worth the mean over leaving one out: 7 times 3/3 and 3 times 2/3
                assert result[evaluator.primary_metric] == pytest.approx(100 if name == "gqa" else (300 + 90) / 4)
                assert result["n"] == 4
                assert all(len(pictures(sample)) == 1 for sample in generator.asked)
                assert evaluator(Saying(lambda sample: "xyz"))[evaluator.primary_metric] == 0


def test_both_forms_give_the_same_prompts(folders, subtests):
    for name in NAMES:
        with subtests.test(name=name):
            asked = []
            for form in FORMS:
                generator = Saying(words)
                load(name, folders[name, form])(generator)
                asked.append(sorted(map(words, generator.asked)))
            assert asked[0] == asked[1]


def prompt(name, folder, **options):
    generator = Saying(words)
    load(name, folder, **options)(generator)
    return next(words(sample) for sample in generator.asked if QUESTIONS[2] in words(sample))


def test_prompts(folders):
    short = "\nAnswer the question using a single word or phrase."
    question = "How many things are there?"
    assert prompt("vqav2", folders["vqav2", "raw"]) == question + short
    assert prompt("gqa", folders["gqa", "raw"]) == question + short
    assert prompt("vizwiz", folders["vizwiz", "raw"]) == (
        f"{question}\nWhen the provided information is insufficient, respond with 'Unanswerable'.{short}"
    )
    folder = folders["textvqa", "raw"]
    assert prompt("textvqa", folder) == f"{question}\nReference OCR token: stop, no 2{short}"
    assert prompt("textvqa", folder, options={"ocr": "off"}) == question + short


def test_accuracy_by_type(folders):
    result = load("vqav2", folders["vqav2", "raw"])(Saying(lambda sample: "dog"))
    assert {key: value for key, value in result.items() if key.startswith("accuracy")} == {
        "accuracy": 25,
        "accuracy, number": 0,
        "accuracy, other": 50,
        "accuracy, yes/no": 0,
    }
    result = load("gqa", folders["gqa", "raw"])(Saying(lambda sample: "Yes."))
    assert (result["accuracy, binary"], result["accuracy, open"]) == (100, 0)


def test_unbalanced_questions_of_gqa_are_not_asked(folders):
    assert load("gqa", folders["gqa", "raw"])(Saying(words))["n"] == 4


def test_limit(folders):
    for name in NAMES:
        for form in FORMS:
            assert load(name, folders[name, form], limit=2)(Saying(words))["n"] == 2


@pytest.mark.parametrize(
    ("name", "split", "expected"),
    [
        ("vqav2", "testdev", [{"question_id": 420 + i, "answer": f"said {i}"} for i in range(4)]),
        ("vizwiz", "test", [{"image": f"VizWiz_test_{i:08d}.jpg", "answer": f"said {i}"} for i in range(4)]),
        ("textvqa", "test", [{"question_id": 34602 + i, "answer": f"said {i}"} for i in range(4)]),
    ],
)
def test_hidden_answers_make_a_file_for_the_server(folders, tmp_path, name, split, expected):
    evaluator = load(name, folders[name, "raw"], split=split)
    said = Saying(lambda sample: f"said {next(i for i, text in enumerate(QUESTIONS) if text in words(sample))}")
    result = evaluator(said, output=tmp_path / "run.jsonl")
    assert evaluator.primary_metric is None
    assert "accuracy" not in result
    assert "eval.ai" in result["server"]
    with open(result["submission"]) as file:
        assert json.load(file) == expected


def test_gqa_writes_the_official_form(folders, tmp_path):
    result = load("gqa", folders["gqa", "raw"])(Saying(lambda sample: "Blue."), output=tmp_path / "run.jsonl")
    with open(result["submission"]) as file:
        assert json.load(file) == [{"questionId": f"20{i}", "prediction": "blue"} for i in range(4)]


def test_a_missing_image_is_listed(tmp_path):
    RAW["vizwiz"](tmp_path)
    (tmp_path / "val" / "VizWiz_val_00000001.jpg").unlink()
    result = load("vizwiz", tmp_path)(Saying(right))
    assert [failure["id"] for failure in result["failed"]] == ["VizWiz_val_00000001.jpg"]
    assert result["accuracy"] == pytest.approx((300 + 90 - 90) / 4)


def test_an_image_outside_the_folder_is_refused(tmp_path):
    RAW["vizwiz"](tmp_path)
    rows = json.loads((tmp_path / "Annotations" / "val.json").read_text())
    rows[0]["image"] = "../Annotations/val.json"
    write_json(tmp_path / "Annotations" / "val.json", rows)
    with pytest.raises(ValueError, match="lies outside the image root"):
        load("vizwiz", tmp_path)(Saying(words))


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"vqav2: cannot load .*docs/benchmarks.md"):
        load("vqav2", tmp_path)
    RAW["vqav2"](tmp_path)
    (tmp_path / "v2_mscoco_val2014_annotations.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no v2_mscoco_val2014_annotations.json in"):
        load("vqav2", tmp_path)
    with pytest.raises(ValueError, match=r"no split .dev.; there are validation"):
        load("vqav2", tmp_path, split="dev")
    write_json(tmp_path / "v2_mscoco_val2014_annotations.json", {"annotations": []})
    with pytest.raises(ValueError, match=r"420.*the field is missing"):
        load("vqav2", tmp_path)(Saying(words))


def test_options_are_checked(folders):
    with pytest.raises(ValueError, match="ocr='maybe' is none of on, off"):
        load("textvqa", folders["textvqa", "raw"], options={"ocr": "maybe"})


def test_no_data_and_no_network(monkeypatch):
    with pytest.raises(ValueError, match=r"cannot load lmms-lab/VQAv2, split validation"):
        all_tasks()["vqav2"].load(Source("vqav2"))
