"""POPE and MME, from official files and from rows."""

import pytest
from benchmark_tools import Saying, pictures, words
from fixtures_choices import HUB, POPE, RAW

from sugar_hf.evaluation.benchmarks.sources import Source
from sugar_hf.evaluation.benchmarks.tasks import all_tasks

NAMES = ("pope", "mme")
FORMS = {"raw": RAW, "hub": HUB}
SHORT = "\nAnswer the question using a single word or phrase."
NO = ("cloud", "person", "fork", "spoon", "nine", "photograph", "prose")
POSITION = "MME_Benchmark_release_version/existence/0001.txt"


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
    return "No" if any(word in words(sample) for word in NO) else "Yes"


def wrong(sample):
    return "Yes" if right(sample) == "No" else "No"


def test_right_answers_score_full_and_wrong_ones_nothing(folders, subtests):
    for name in NAMES:
        for form in FORMS:
            with subtests.test(form=f"{form!r:.60}", name=name):
                evaluator = load(name, folders[name, form])
                generator = Saying(right)
                result = evaluator(generator)
                assert result[evaluator.primary_metric] == (100 if name == "pope" else 600)  # MME: 200 for a subtask
                assert result["n"] == (6 if name == "pope" else 8)
                assert all(len(pictures(sample)) == 1 for sample in generator.asked)
                assert evaluator(Saying(wrong))[evaluator.primary_metric] == 0


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_give_the_same_prompts_ids_and_figures(folders, name):
    found = []
    for form in FORMS:
        evaluator, generator = load(name, folders[name, form]), Saying(lambda sample: "Yes")
        result = evaluator(generator)
        figures = {key: value for key, value in result.items() if isinstance(value, float)}
        ids = [example.id for example in evaluator.examples]
        found.append((ids, sorted(map(words, generator.asked)), figures))
    assert found[0] == found[1]


def test_prompts(folders):
    for name, question in (("pope", "Is there a fork in the image?"), ("mme", "Is there a train in this image?")):
        generator = Saying(words)
        load(name, folders[name, "raw"])(generator)
        assert question + SHORT in map(words, generator.asked)


def test_pope_says_how_each_split_went(folders):
    # everything is yes, but nothing in the split random
    result = load("pope", folders["pope", "raw"])(Saying(lambda s: "no" if "fork" in words(s) else "yes"))
    assert result["settings"]["questions"] == {"adversarial": 2, "popular": 2, "random": 2}
    assert {key: value for key, value in result.items() if key.endswith(", adversarial")} == {
        "accuracy, adversarial": 50,
        "precision, adversarial": 50,
        "recall, adversarial": 100,
        "f1, adversarial": pytest.approx(200 / 3),
        "yes_ratio, adversarial": 100,
    }
    assert result["f1, random"] == 100
    assert result["f1"] == pytest.approx((200 / 3 + 200 / 3 + 100) / 3)
    assert (result["accuracy"], result["yes_ratio"]) == (pytest.approx(200 / 3), pytest.approx(250 / 3))


def test_a_single_split_of_pope(folders):
    for form in FORMS:
        result = load("pope", folders["pope", form], split="popular")(Saying(right))
        assert (result["n"], result["settings"]["questions"]) == (2, {"popular": 2})
    with pytest.raises(ValueError, match=r"pope: no split 'val'; there are test \(all\), adversarial"):
        load("pope", folders["pope", "raw"], split="val")


def test_mme_adds_both_questions_of_an_image(folders):
    result = load("mme", folders["mme", "raw"])(Saying(lambda s: "Yes" if "in this image" in words(s) else right(s)))
    assert (result["perception"], result["cognition"]) == (50 + 200 + 200, 200)
    assert (result["existence acc"], result["existence acc+"], result["existence score"]) == (50, 0, 50)
    assert result["landmark missing"] == 1


def test_limit_keeps_pairs_whole(folders):
    for form in FORMS:
        assert load("pope", folders["pope", form], limit=3)(Saying(right))["n"] == 3
        result = load("mme", folders["mme", form], limit=3)(Saying(right))
        assert (result["n"], result["perception"]) == (4, 400)


def test_a_missing_image_is_listed_and_wrong(tmp_path):
    RAW["pope"](tmp_path / "pope")
    (tmp_path / "pope" / "val2014" / "COCO_val2014_000000000002.jpg").unlink()
    result = load("pope", tmp_path / "pope")(Saying(right))
    assert [failure["id"] for failure in result["failed"]] == [f"{name}/2" for name in POPE]
    assert (result["accuracy"], result["recall, random"], result["precision, random"]) == (50, 100, 50)
    RAW["mme"](tmp_path / "mme")
    (tmp_path / "mme" / POSITION).with_suffix(".jpg").unlink()
    result = load("mme", tmp_path / "mme")(Saying(right))
    assert [failure["id"] for failure in result["failed"]] == ["existence/0001.jpg 1", "existence/0001.jpg 2"]
    assert (result["existence score"], result["perception"]) == (0, 400)


def test_mme_with_image_names_in_the_lines(tmp_path):
    RAW["mme"](tmp_path)
    lines = (tmp_path / POSITION).read_text().splitlines()
    (tmp_path / POSITION).write_text("".join(f"0001.jpg\t{line}\n" for line in lines))
    result = load("mme", tmp_path)(Saying(right))
    assert (result["failed"], result["perception"]) == ([], 600)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Is it?\tYes\n", r"mme: existence, image 0001.jpg: 1 questions, and there should be two"),
        ("Is it?\nIs it not?\tNo\n", r"0001.txt:1: 1 fields between tabs. Write question and answer"),
        ("Is it?\tYes\nIs it not?\tperhaps\n", r"existence/0001.jpg 2.*answer: 'perhaps' is neither yes nor no"),
    ],
)
def test_faults_of_mme_are_named(tmp_path, text, said):
    RAW["mme"](tmp_path)
    (tmp_path / POSITION).write_text(text)
    with pytest.raises(ValueError, match=said):
        load("mme", tmp_path)(Saying(right))


def test_what_is_missing_is_named(tmp_path):
    for name in NAMES:
        with pytest.raises(ValueError, match=rf"{name}: cannot load .*docs/benchmarks.md"):
            load(name, tmp_path)
    RAW["pope"](tmp_path)
    (tmp_path / "coco_pope_random.json").write_text('{"question_id": 1, "text": "?", "label": "yes"}\n')
    with pytest.raises(ValueError, match=r"random/1.*image: the field is missing"):
        load("pope", tmp_path)(Saying(right))
    (tmp_path / "coco_pope_random.json").write_text('{"question_id": 1\n')
    with pytest.raises(ValueError, match=r"coco_pope_random.json, line 1: no JSON"):
        load("pope", tmp_path)
    (tmp_path / "coco_pope_random.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no coco_pope_random.json in"):
        load("pope", tmp_path)
