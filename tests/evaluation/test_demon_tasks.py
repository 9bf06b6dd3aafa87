"""DEMON-Core: prompts, categories, and how scores become figures."""

import json
import shutil
from pathlib import Path

import pytest
from benchmark_tools import Saying, pictures, scene, words, write_json
from fixtures_demon import demon_sample, write_demon

from sugar_hf.evaluation.benchmarks.sources import Source
from sugar_hf.evaluation.benchmarks.tasks import all_tasks
from sugar_hf.evaluation.benchmarks.tasks.demon_tasks import (
    ALL,
    CATEGORIES,
    IMAGE_CHOICE,
    interleave,
    question_type,
    sample_score,
    score_demon,
)
from sugar_hf.evaluation.examples import Record


def load(folder, **more):
    return all_tasks()["demon"].load(Source("demon", str(folder), **more))


@pytest.fixture(scope="module")
def demon(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demon")
    write_demon(folder)
    return folder


@pytest.fixture
def own_demon(tmp_path, demon):
    return shutil.copytree(demon, tmp_path / "demon")


class Knowing(Saying):
    """Says the reference of whichever example has this prompt."""

    def __init__(self, evaluator):
        examples = [example for some in evaluator.examples.values() for example in some]
        self.known = {words(example.document.load()): example.reference["answer"] for example in examples}
        self.lengths = []
        super().__init__(lambda sample: self.known[words(sample)])

    def generate(self, samples, max_new_tokens):
        self.lengths += [max_new_tokens] * len(samples)
        return super().generate(samples, max_new_tokens)


def test_there_are_29_tasks_in_seven_categories():
    assert [len(names) for names in CATEGORIES.values()] == [2, 5, 4, 4, 3, 3, 8]
    assert len(set(ALL)) == 29
    assert [name for name in ALL if question_type(name) == "open-ended"] == list(ALL[:11])
    assert set(IMAGE_CHOICE) < set(ALL[11:])


def test_right_answers_are_worth_a_hundred_and_none_nothing(demon):
    evaluator = load(demon)
    generator = Knowing(evaluator)
    result = evaluator(generator)
    names = [f"{category}, {task}" for category, tasks in CATEGORIES.items() for task in tasks]
    figures = {name: result[name] for name in ("mean", *CATEGORIES, *names)}
    assert figures == pytest.approx(dict.fromkeys(figures, 100.0), abs=1e-3)
    assert (result["n"], result["failed"], evaluator.primary_metric) == (32, [], "mean")
    assert "missing tasks" not in result
    assert set(all_tasks()["demon"].paper) <= set(result)
    assert generator.lengths == [512] * 12 + [128] * 20
    assert result["settings"]["max_new_tokens"] == {"open-ended": 512, "multi-choice": 128}
    wrong = evaluator(Saying(lambda sample: "Image C or the 10 nothings"))
    assert (wrong["MMC, COMICS_Panel"], wrong["MMR, RecipeQA_ImageCoherence"]) == (0.0, 0.0)
    assert wrong["MMR, Fashion200K"] == 0.0


def prompts(folder, task):
    generator = Saying(words)
    load(folder, options={"tasks": task})(generator)
    return generator.asked


def test_prompt_of_an_open_question(demon):
    first, second = sorted(prompts(demon, "MMCoQA"), key=words)
    assert [part if isinstance(part, str) else "IMAGE" for part in first] == [
        "Do as you are told. First: ",
        "IMAGE",
        "IMAGE",
        "\nQuestion: what is there?",
    ]
    assert second[0] == "Look and say. First: "
    assert len(pictures(second)) == 2


def test_prompt_of_a_choice_of_texts(demon):
    [sample] = prompts(demon, "WebQA")
    text = f"Choice list:['{scene(2)[1]}', '{scene(0)[1]}']. Your answer is:"
    assert [part if isinstance(part, str) else "IMAGE" for part in sample] == [
        "Do as you are told. Look at ",
        "IMAGE",
        " and ",
        "IMAGE",
        f". Which is it?{text}",
    ]


def test_prompt_of_a_choice_of_images_has_no_second_list(demon):
    [sample] = prompts(demon, "RecipeQA_VisualCloze")
    assert [part if isinstance(part, str) else "IMAGE" for part in sample] == [
        "Do as you are told. Choice List:['Image A: ",
        "IMAGE",
        "', 'Image B: ",
        "IMAGE",
        "']. Your answer is:",
    ]


def test_images_stand_where_their_numbers_say_and_may_stand_twice():
    paths = [Path("a"), Path("b")]
    assert interleave("{image#2}{table#1}x{image#2}", paths, "s") == [paths[1], paths[0], "x", paths[1]]
    with pytest.raises(ValueError, match=r"sample 's'.*2 images, but places for \[1\]"):
        interleave("{image#1}", paths, "s")
    with pytest.raises(ValueError, match=r"2 images, but places for \[1, 2, 3\]"):
        interleave("{image#1}{image#2}{image#3}", paths, "s")


def record(task, prediction, answer="Image B", **more):
    return Record("x", prediction, {"task": task, "answer": answer, **more})


def test_choices_of_images_are_compared_by_their_letter(subtests):
    for task in IMAGE_CHOICE:
        with subtests.test(task=task):
            assert sample_score(record(task, "image b.")) == 1.0
            assert sample_score(record(task, "Image A")) == 0.0


def test_text_choices_are_the_nearest_and_a_failed_sample_is_wrong():
    choices = ["a red cat", "a blue dog"]
    assert sample_score(record("TQA", "the cat", "a red cat", choices=choices)) == 1.0
    assert sample_score(record("TQA", "", "a red cat", choices=choices)) == 1.0  # the first of equals, as there
    assert sample_score(record("TQA", None, "a red cat", choices=choices)) == 0.0


def test_categories_are_means_of_tasks_and_not_of_samples():
    rows = [record("COMICS_Panel", "Image B"), record("COMICS_Panel", "Image B"), record("COMICS_Panel", "Image A")]
    rows += [record("RecipeQA_VisualCloze", "Image A")]
    rows += [record(task, "one", "one", choices=["one", "two"]) for task in ("COMICS_Dialogue", "RecipeQA_TextCloze")]
    assert score_demon(rows) == {
        "mean, partial": 66.667,
        "MMC": 66.667,  # of 2/3, 0, 1 and 1, rounded to five places
        "MMC, COMICS_Dialogue": 100.0,
        "MMC, COMICS_Panel": pytest.approx(200 / 3),
        "MMC, RecipeQA_VisualCloze": 0.0,
        "MMC, RecipeQA_TextCloze": 100.0,
    }


def test_a_category_without_all_its_tasks_is_partial_and_what_is_missing_is_named(own_demon):
    shutil.rmtree(own_demon / "TQA")
    shutil.rmtree(own_demon / "VISION")
    evaluator = load(own_demon)
    result = evaluator(Knowing(evaluator))
    assert result["missing tasks"] == "TQA, VISION"
    assert result["KGQA, partial"] == result["MMR, partial"] == 100.0
    assert not {"KGQA", "MMR", "mean"} & result.keys()
    assert result["MMC"] == 100.0
    assert result[evaluator.primary_metric] == pytest.approx(100.0, abs=1e-3)
    assert evaluator.primary_metric == "mean, partial"


def test_tasks_and_categories_can_be_picked(demon):
    result = load(demon, options={"categories": "mmc, TRQA", "tasks": "mit_states_statecoherence"})(Saying(words))
    assert {name.split(", ")[1] for name in result if ", " in name and "partial" not in name} == {
        *CATEGORIES["MMC"],
        *CATEGORIES["TRQA"],
        "MIT-States_StateCoherence",
    }
    assert {"MMC", "TRQA", "MMR, partial", "mean, partial"} <= result.keys()
    assert "missing tasks" not in result
    with pytest.raises(ValueError, match="demon: no task 'nothing'; there are MMCoQA, ALFRED"):
        load(demon, options={"tasks": "nothing"})
    with pytest.raises(ValueError, match="demon: no category 'XYZ'; there are MMD, VST"):
        load(demon, options={"categories": "XYZ"})


def test_folder_names_may_differ_in_case_and_dashes_and_lie_deeper(own_demon):
    (own_demon / "Multi-Image Reasoning").mkdir()
    (own_demon / "nuscenes").rename(own_demon / "Multi-Image Reasoning" / "nuScenes")
    (own_demon / "Spot-the-Diff").rename(own_demon / "spot_the_diff")
    assert load(own_demon).missing == []
    shutil.copytree(own_demon / "spot_the_diff", own_demon / "Spot-the-Diff")
    with pytest.raises(ValueError, match=r"are both of Spot-the-Diff\. Keep one"):
        load(own_demon)


def test_a_limit_is_for_each_task(demon):
    assert load(demon, limit=1)(Saying(words))["n"] == 29


def test_a_missing_image_is_wrong_and_listed(own_demon):
    (own_demon / "COMICS_Panel" / "core" / "images" / "2.jpg").unlink()
    evaluator = load(own_demon, options={"tasks": "COMICS_Panel"})
    result = evaluator(Saying(lambda sample: "Image B"))
    assert (result["MMC, COMICS_Panel"], result["n"]) == (50.0, 2)
    assert [failure["id"] for failure in result["failed"]] == ["COMICS_Panel/1"]


def test_a_resumed_run_asks_only_what_is_missing(demon, tmp_path):
    output, evaluator = tmp_path / "run.jsonl", load(demon)
    first = Knowing(evaluator)
    whole = evaluator(first, output=output)
    lines = output.read_text(encoding="utf-8").splitlines(keepends=True)
    output.write_text("".join(lines[:20]), encoding="utf-8")
    again = Knowing(evaluator)
    assert evaluator(again, output=output) == whole
    assert (len(first.asked), len(again.asked)) == (32, 13)


def faulty(folder, task, change):
    file = folder / task / "core" / "core.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    write_json(file, content)
    return file


def test_faults_are_named_before_anything_is_asked(demon, tmp_path, subtests):
    faults = [
        (lambda c: c["data"][1].pop("task_instance"), "TQA/1.*task_instance.*missing"),
        (lambda c: c["data"][1].pop("response"), "TQA/1.*response.*missing"),
        (lambda c: c["data"][1]["task_instance"].pop("images_path"), "TQA/1.*images_path.*missing"),
        (lambda c: c["data"][1].update(task_instruction_id=2), "TQA/1.*2 is none of the 2 instructions"),
        (lambda c: c["data"][1]["task_instance"].update(images_path=["../../x.jpg", "1.jpg"]), "TQA/1.*lies outside"),
        (lambda c: c["metadata"].update(question_type="open-ended"), r"core\.json: question_type is 'open-ended'"),
        (lambda c: c.pop("data"), r"core\.json.*data.*missing"),
        (lambda c: c["data"].clear(), r"core\.json: there are no samples"),
    ]
    for number, (change, message) in enumerate(faults):
        with subtests.test(message=message):
            own = shutil.copytree(demon, tmp_path / str(number))
            faulty(own, "TQA", change)
            with pytest.raises(ValueError, match=message):
                load(own)


def test_no_folder_and_an_empty_folder_say_what_is_needed(tmp_path):
    with pytest.raises(ValueError, match=r"demon: it is not on the Hub\. Give the folder with --data"):
        all_tasks()["demon"].load(Source("demon"))
    with pytest.raises(FileNotFoundError, match=r"no \{task\}/core/core\.json of MMCoQA, ALFRED"):
        load(tmp_path)


def test_numbers_as_answers_are_texts():
    assert demon_sample("Fashion200K", 0)["response"] == 25
    assert sample_score(record("Fashion200K", "25", "25", choices=["10", "25"])) == 1.0
