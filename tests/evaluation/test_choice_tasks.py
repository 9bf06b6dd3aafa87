"""ScienceQA and MMBench, from official files and from rows."""

import csv
import sys

import pytest
from benchmark_tools import Saying, pictures, words, write_json
from fixtures_choices import HUB, PROBLEMS, RAW
from openpyxl import load_workbook

from sugar_hf import picturebook
from sugar_hf.evaluation.benchmarks.runner import open_model
from sugar_hf.evaluation.benchmarks.sources import Source
from sugar_hf.evaluation.benchmarks.tasks import all_tasks
from sugar_hf.evaluation.benchmarks.tasks.question_groups import whole_groups

NAMES = ("scienceqa", "mmbench")
FORMS = {"raw": RAW, "hub": HUB}
LETTER = "\nAnswer with the option's letter from the given choices directly."
#: What is right, by the text of the question.
RIGHT = {row["question"]: row["choices"][row["answer"]] for row in PROBLEMS.values()}
RIGHT |= {"What is shown?": "a scene", "How many pictures are there?": "1", "Which one is it?": "a tree"}


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
    """The letter in front of the right option."""
    text = next(text for question, text in RIGHT.items() if question in words(sample))
    return next(line[0] for line in words(sample).split("\n") if line[1:] == f". {text}")


def wrong(sample):
    return "B" if right(sample) == "A" else "A"


class Judge:
    """A judge that says what a function of the prompt says."""

    def __init__(self, reply, name="wise"):
        self.name, self.reply, self.asked = name, reply, []

    def __call__(self, prompt, *, system=None, temperature=0.0, max_tokens=1024):
        self.asked.append({"prompt": prompt, "system": system, "temperature": temperature, "max_tokens": max_tokens})
        return self.reply(prompt)


def test_right_letters_score_full_and_wrong_ones_nothing(folders, subtests):
    for name in NAMES:
        for form in FORMS:
            with subtests.test(form=f"{form!r:.60}", name=name):
                evaluator = load(name, folders[name, form])
                generator = Saying(right)
                result = evaluator(generator)
                assert result[evaluator.primary_metric] == 100
                assert result["n"] == (3 if name == "scienceqa" else 9)
                assert all(len(pictures(sample)) == 1 for sample in generator.asked)
                assert evaluator(Saying(wrong))[evaluator.primary_metric] == 0


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_give_the_same_prompts_and_figures(folders, name):
    found = []
    for form in FORMS:
        generator = Saying(lambda sample: "A")
        result = load(name, folders[name, form])(generator)
        figures = {key: value for key, value in result.items() if isinstance(value, float)}
        found.append((sorted(map(words, generator.asked)), figures))
    assert found[0] == found[1]


def prompts(name, folder, **options):
    generator = Saying(words)
    load(name, folder, **options)(generator)
    return [words(sample) for sample in generator.asked]


def test_prompts(folders):
    asked = prompts("scienceqa", folders["scienceqa", "raw"])
    assert f"Context: It has colours.\nWhat is drawn?\nA. a map\nB. a picture\nC. a word{LETTER}" in asked
    assert f"Which is brighter?\nA. day\nB. night{LETTER}" in asked
    asked = prompts("mmbench", folders["mmbench", "raw"])
    assert f"It is drawn.\nWhat is shown?\nA. a text\nB. a map\nC. a chart\nD. a scene{LETTER}" in asked
    assert f"How many pictures are there?\nA. 1\nB. 2{LETTER}" in asked
    asked = prompts("mmbench", folders["mmbench", "hub"], options={"prompt": "lmms"})
    several = "There are several options:"
    assert f"How many pictures are there? {several}\nA. 1\nB. 2\n{LETTER}" in asked
    assert f"It is drawn. What is shown? {several}\nA. a scene\nB. a text\nC. a map\nD. a chart\n{LETTER}" in asked


def test_scienceqa_by_subject_and_grade(folders):
    result = load("scienceqa", folders["scienceqa", "raw"])(Saying(lambda sample: "The answer is A."))
    assert {key: value for key, value in result.items() if key.startswith("accuracy")} == {
        "accuracy": pytest.approx(200 / 3),
        "accuracy, grade, grade2": 0,
        "accuracy, grade, grade4": 100,
        "accuracy, subject, natural science": 50,
        "accuracy, subject, social science": 100,
    }


def test_splits_of_scienceqa(folders):
    for form in FORMS:
        assert load("scienceqa", folders["scienceqa", form], split="validation")(Saying(right))["n"] == 1
    # minitest is a part of test, and its images lie there
    result = load("scienceqa", folders["scienceqa", "raw"], split="minitest")(Saying(right))
    assert (result["n"], result["failed"], result["accuracy"]) == (1, [], 100)


def test_a_question_of_mmbench_is_right_if_all_its_rotations_are(folders):
    result = load("mmbench", folders["mmbench", "raw"])(Saying(lambda sample: "A"))
    figures = {key: value for key, value in result.items() if key.startswith(("accuracy", "vanilla"))}
    assert figures == {
        "accuracy": 0,
        "vanilla_accuracy": pytest.approx(200 / 3),
        "accuracy, category, counting": 0,
        "accuracy, category, image_scene": 0,
        "accuracy, l2-category, coarse": 0,
        "accuracy, l2-category, fine": 0,
    }
    result = load("mmbench", folders["mmbench", "raw"])(Saying(lambda s: "C" if "scene" in words(s) else right(s)))
    assert result["accuracy"] == pytest.approx(200 / 3)
    assert (result["accuracy, category, counting"], result["accuracy, category, image_scene"]) == (100, 0)
    assert (result["accuracy, l2-category, coarse"], result["accuracy, l2-category, fine"]) == (0, 100)


def test_limit_takes_whole_groups(folders):
    for form in FORMS:
        assert load("scienceqa", folders["scienceqa", form], limit=2)(Saying(right))["n"] == 2
        result = load("mmbench", folders["mmbench", form], limit=2)(Saying(right))
        assert (result["n"], result["questions"], result["accuracy"]) == (6, 2, 100)  # 4 and 2 rotations
    assert whole_groups([7, 7, 8], 1) == [0, 1]
    assert whole_groups([7, 7, 8], None) == [0, 1, 2]


def test_images_by_another_rows_index_are_that_rows(folders):
    found = {}
    for example in load("mmbench", folders["mmbench", "raw"]).examples:
        found.setdefault(int(example.id) % 10**6, set()).add(example.document.load()[0].tobytes())
    assert [len(images) for images in found.values()] == [1, 1, 1]
    assert len(set.union(*found.values())) == 3


def change(path, edit):
    """Change the rows of an official table."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    edit(rows)
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        table.writeheader()
        table.writerows(rows)


@pytest.fixture
def table(tmp_path):
    RAW["mmbench"](tmp_path)
    return tmp_path / "mmbench_dev_20230712.tsv"


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("image", "999", "'999' is neither an image nor the index of a row that has one"),
        ("image", "1000010", "'1000010' is neither an image nor the index"),
        ("answer", "D", "1000010.*answer: 'D' is none of A, B, C"),
        ("index", "10", "9 rows have only 8 different values of index"),
    ],
)
def test_faults_of_the_table_are_named(table, column, value, said):
    def edit(rows):
        rows[3][column] = value
        rows[3]["D"] = ""

    change(table, edit)
    with pytest.raises(ValueError, match=said):
        load("mmbench", table.parent)(Saying(lambda sample: "A"))


def test_a_table_without_a_column_is_refused(table):
    change(table, lambda rows: [row.pop("B") for row in rows])
    with pytest.raises(ValueError, match=r"mmbench_dev_20230712.tsv: there is no column B"):
        load("mmbench", table.parent)


def test_an_image_that_is_none_is_listed_and_wrong(table):
    change(table, lambda rows: rows[1].update(image="no image " * 20))
    result = load("mmbench", table.parent)(Saying(right))
    # its rotation has the image of that row
    assert [failure["id"] for failure in result["failed"]] == ["11", "1000011"]
    assert result["accuracy"] == pytest.approx(200 / 3)
    assert result["uninferable"] == 0


def vague(sample):
    """Right, but where two pictures are asked for, without a letter."""
    return "just one of them" if "How many" in words(sample) else right(sample)


def test_replies_without_a_letter_are_wrong_where_there_is_no_judge(folders):
    result = load("mmbench", folders["mmbench", "raw"])(Saying(vague))
    assert (result["uninferable"], result["unmatched"]) == (2, 2)
    assert result["accuracy"] == pytest.approx(200 / 3)


def test_a_judge_matches_replies_without_a_letter(folders, tmp_path):
    judge = Judge(lambda prompt: "A" if "A. 1" in prompt else "B.")
    folder = folders["mmbench", "raw"]
    result = load("mmbench", folder, judge=judge)(Saying(vague), output=tmp_path / "run.jsonl")
    assert (result["uninferable"], result["unmatched"], result["accuracy"]) == (2, 0, 100)
    assert result["settings"]["judge"] == "wise"
    assert len(judge.asked) == 2
    prompt = judge.asked[0]["prompt"]
    assert prompt.endswith(
        "Question: How many pictures are there?\nOptions: A. 1 B. 2\nAnswer: just one of them\nLetter:"
    )
    undecided = Judge(lambda prompt: "E", name="undecided")
    result = load("mmbench", folder, judge=undecided)(Saying(vague), output=tmp_path / "run.jsonl")
    assert (result["unmatched"], result["accuracy"]) == (0, pytest.approx(200 / 3))
    assert (tmp_path / "run.judge-undecided.jsonl").exists()


def test_the_hidden_split_makes_a_table_for_the_server(folders, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)  # as if it were not installed
    for form in FORMS:
        evaluator = load("mmbench", folders["mmbench", form], split="test")
        result = evaluator(Saying(right), output=tmp_path / f"{form}.jsonl")
        assert evaluator.primary_metric is None
        assert "accuracy" not in result
        assert "openpyxl is not installed" in result["server"]
        with open(result["submission"], newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        assert len(rows) == 9
        assert rows[1] == {
            "index": "11",
            "question": "How many pictures are there?",
            "A": "1",
            "B": "2",
            "C": "",
            "D": "",
            "prediction": "A",
        }


def test_the_servers_table_is_a_workbook(folders, tmp_path):
    evaluator = load("mmbench", folders["mmbench", "raw"], split="test")
    result = evaluator(Saying(lambda sample: "=A\x00"), output=tmp_path / "run.jsonl")
    assert result["submission"].endswith(".xlsx")
    assert result["server"] == "https://mmbench.opencompass.org.cn"
    head, *rows = load_workbook(result["submission"]).active.iter_rows()
    assert [cell.value for cell in head] == ["index", "question", *"ABCD", "prediction"]
    assert rows[0][0].value == 10
    assert (rows[0][6].value, rows[0][6].data_type) == ("=A", "s")  # a text, not a formula
    assert len(rows) == 9


def test_a_missing_image_is_listed(tmp_path):
    RAW["scienceqa"](tmp_path)
    (tmp_path / "images" / "test" / "9" / "image.png").unlink()
    result = load("scienceqa", tmp_path)(Saying(right))
    assert [failure["id"] for failure in result["failed"]] == ["9"]
    assert result["accuracy"] == pytest.approx(200 / 3)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"scienceqa: cannot load .*docs/benchmarks.md"):
        load("scienceqa", tmp_path)
    RAW["scienceqa"](tmp_path)
    with pytest.raises(ValueError, match=r"no split 'dev'; there are train, val, test"):
        load("scienceqa", tmp_path, split="dev")
    write_json(tmp_path / "problems.json", {**PROBLEMS, "9": {**PROBLEMS["9"], "answer": 3}})
    with pytest.raises(ValueError, match=r"9.*answer: 3 names none of 3 choices"):
        load("scienceqa", tmp_path)(Saying(words))
    write_json(tmp_path / "problems.json", {"4": PROBLEMS["4"]})
    with pytest.raises(ValueError, match=r"problems.json: no problem 7, which pid_splits.json has in test"):
        load("scienceqa", tmp_path)
    (tmp_path / "pid_splits.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no pid_splits.json in"):
        load("scienceqa", tmp_path)
    with pytest.raises(ValueError, match="prompt='own' is none of llava, lmms"):
        load("mmbench", tmp_path, options={"prompt": "own"})


def test_a_run_that_was_stopped_asks_what_is_missing(folders, tmp_path):
    output = tmp_path / "run.jsonl"
    evaluator = load("mmbench", folders["mmbench", "raw"])
    whole = evaluator(Saying(right), output=output)
    lines = output.read_text().splitlines(keepends=True)
    output.write_text("".join(lines[:-3]) + lines[-3][:20])  # two lines and a half are lost
    again = Saying(right)
    assert evaluator(again, output=output) == whole
    assert len(again.asked) == 3


def test_a_model_answers(folders):
    model, processor = open_model(str(picturebook.checkpoint("mini-sugar")), device="cpu")
    result = load("scienceqa", folders["scienceqa", "hub"])(model, processor)
    assert (result["n"], result["failed"]) == (3, [])
    assert 0 <= result["accuracy"] <= 100
