"""Winoground and MMVP-VLM."""

import json
import shutil

import pytest
from benchmark_tools import Saying, pictures, scene, words
from fixtures_matching import MMVP_TYPES, write_mmvp, write_winoground, write_winoground_hub
from matching_tools import Seeing, blind, knowing, scene_number

from sugar_hf.evaluation.benchmarks.sources import Source
from sugar_hf.evaluation.benchmarks.tasks import all_tasks


def load(name, folder, **more):
    return all_tasks()[name].load(Source(name, str(folder), **more))


@pytest.fixture(scope="module")
def winoground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("winoground")
    write_winoground(folder)
    return folder


@pytest.fixture(scope="module")
def winoground_hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("winoground-hub")
    write_winoground_hub(folder)
    return folder


@pytest.fixture(scope="module")
def mmvp(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mmvp")
    write_mmvp(folder)
    return folder


@pytest.fixture
def own_winoground(tmp_path, winoground):
    return shutil.copytree(winoground, tmp_path / "winoground")


@pytest.fixture
def own_mmvp(tmp_path, mmvp):
    return shutil.copytree(mmvp, tmp_path / "mmvp")


# ---- Winoground ----


@pytest.mark.parametrize("form", ["winoground", "winoground_hub"])
def test_winoground_is_matched_by_who_knows_it(request, form):
    evaluator = load("winoground", request.getfixturevalue(form))
    result = evaluator(Seeing(knowing))
    assert {name: result[name] for name in ("text", "image", "group", "n")} == {
        "text": 100.0,
        "image": 100.0,
        "group": 100.0,
        "n": 3,
    }
    assert evaluator.primary_metric == "image"
    assert load("winoground", request.getfixturevalue(form))(Seeing(blind))["image"] == 0.0


def test_both_forms_of_winoground_are_the_same_items(winoground, winoground_hub):
    raw, hub = (list(load("winoground", folder).items) for folder in (winoground, winoground_hub))
    assert [(item.id, item.texts) for item in raw] == [(item.id, item.texts) for item in hub]
    assert raw[1].texts == (scene(2)[1], scene(3)[1])
    assert raw[1].images == tuple(winoground / "images" / f"ex_1_img_{k}.png" for k in (0, 1))


def test_winoground_with_a_limit_and_a_missing_image(own_winoground):
    assert load("winoground", own_winoground, limit=2)(Seeing(knowing))["n"] == 2
    (own_winoground / "images" / "ex_1_img_1.png").unlink()
    result = load("winoground", own_winoground)(Seeing(knowing))
    assert (result["group"], result["n"]) == (pytest.approx(200 / 3), 3)
    assert [failure["id"] for failure in result["failed"]] == ["1 image 1"]


def test_faults_of_the_winoground_file_are_named(own_winoground):
    file = own_winoground / "examples.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    del rows[2]["caption_1"]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(ValueError, match=r"sample '2'.*caption_1.*missing"):
        load("winoground", own_winoground)(Seeing(knowing))


def test_scoring_by_the_matching_head_needs_blip2(winoground):
    evaluator = load("winoground", winoground, options={"scoring": "match"})
    with pytest.raises(ValueError, match="winoground: scoring=match needs BLIP-2"):
        evaluator(Seeing(knowing))


# ---- MMVP-VLM as questions ----


def lines_of(sample):
    """The statements A and B of a prompt."""
    lines = words(sample).split("\n")
    return lines[1].removeprefix("A."), lines[2].removeprefix("B.")


def right(sample):
    return "AB"[lines_of(sample).index(scene(scene_number(pictures(sample)[0]))[1])]


def test_mmvp_prompt_is_the_papers_with_the_image_before_it(mmvp):
    generator = Saying(right)
    load("mmvp", mmvp, seed=1)(generator)
    statements = {scene(0)[1], scene(6)[1]}
    [sample, _] = [sample for sample in generator.asked if set(lines_of(sample)) == statements][:2]
    first, second = lines_of(sample)
    assert sample[1] == f"which choice meets the first image:\nA.{first}\nB.{second}\n.please answer in A or B"
    assert sample[0] is pictures(sample)[0]
    assert len(sample) == 2


def test_mmvp_figures_of_right_and_wrong_answers(mmvp):
    evaluator = load("mmvp", mmvp)
    result = evaluator(Saying(right))
    assert {name: value for name, value in result.items() if "accuracy" in name} == {
        "mean accuracy": 100.0,
        "accuracy": 100.0,
        "pair accuracy": 100.0,
        **{f"accuracy, {kind}": 100.0 for kind in MMVP_TYPES},
        **{f"pair accuracy, {kind}": 100.0 for kind in MMVP_TYPES},
    }
    assert (result["n"], result["failed"], evaluator.primary_metric) == (18, [], "mean accuracy")
    wrong = evaluator(Saying(lambda sample: "B" if right(sample) == "A" else "A"))
    assert (wrong["mean accuracy"], wrong["pair accuracy"]) == (0.0, 0.0)


def test_one_letter_always_is_half_of_the_questions_and_no_pair(mmvp, subtests):
    for seed in [0, 1]:
        for letter in "AB":
            with subtests.test(letter=f"{letter!r:.60}", seed=seed):
                result = load("mmvp", mmvp, seed=seed)(Saying(lambda sample, letter=letter: letter))
                assert (result["mean accuracy"], result["accuracy"], result["pair accuracy"]) == (50.0, 50.0, 0.0)


def test_a_reply_without_letter_is_wrong(mmvp):
    assert load("mmvp", mmvp)(Saying(lambda sample: "a picture"))["accuracy"] == 0.0


def answers(folder, **more):
    return {example.id: example.reference["answer"] for example in load("mmvp", folder, **more).examples}


def test_letters_are_drawn_by_the_seed_and_not_by_the_limit(mmvp):
    letters = answers(mmvp)
    assert letters == answers(mmvp)
    assert sorted(letters.values()) == ["A"] * 9 + ["B"] * 9
    assert answers(mmvp, seed=1) != letters
    limited = answers(mmvp, limit=3)
    assert limited == {id: letters[id] for id in limited}
    assert list(limited) == ["1/1", "1/2", "3/1", "3/2", "5/1", "5/2"]
    assert {letters["1/1"], letters["1/2"]} == {"A", "B"}


def test_swapped_order_is_a_second_figure(mmvp):
    evaluator = load("mmvp", mmvp, options={"swap": "on"})
    result = evaluator(Saying(right))
    assert (result["n"], result["mean accuracy"], result["swapped mean accuracy"]) == (36, 100.0, 100.0)
    references = {example.id: example.reference["answer"] for example in evaluator.examples}
    assert all(references[id] != references[f"{id}, swapped"] for id in answers(mmvp))
    first = load("mmvp", mmvp)(Saying(lambda sample: "A"))
    both = evaluator(Saying(lambda sample: "A"))
    assert {name: both[name] for name in first if "accuracy" in name} == {
        name: value for name, value in first.items() if "accuracy" in name
    }
    assert both["swapped pair accuracy"] == 0.0


def test_a_missing_image_of_mmvp_is_wrong_and_listed(own_mmvp):
    (own_mmvp / "MLLM_VLM Images" / "Texts" / "15.jpg").unlink()
    result = load("mmvp", own_mmvp)(Saying(right))
    assert result["n"] == 18
    assert (result["accuracy, Texts"], result["pair accuracy, Texts"]) == (50.0, 0.0)
    assert result["mean accuracy"] == pytest.approx(850 / 9)
    assert [failure["id"] for failure in result["failed"]] == ["15/1"]


def test_faults_of_the_mmvp_file_are_named(mmvp, own_mmvp, subtests):
    for change, message in [
        (lambda lines: lines[:-1], "17 rows are no pairs"),
        (lambda lines: [lines[0], *lines[2:], lines[1]], r"row 2 of .*Questions\.csv.*Question ID.*are no pair"),
        (lambda lines: ["Question ID,Type,Text", *lines[1:]], "row 2 of .*statement.*missing"),
    ]:
        for name in ["mmvp", "mmvp-embed"]:
            with subtests.test(name=name, message=message):
                file = own_mmvp / "Questions.csv"
                shutil.copy(mmvp / file.name, file)
                lines = change(file.read_text(encoding="utf-8").splitlines())
                file.write_text("\n".join(lines), encoding="utf-8")
                with pytest.raises(ValueError, match=message):
                    load(name, own_mmvp)
                file.unlink()
                with pytest.raises(FileNotFoundError, match=rf"{name}: no Questions\.csv in"):
                    load(name, own_mmvp)


def test_a_resumed_run_of_mmvp_asks_only_what_is_missing(mmvp, tmp_path):
    output, generator = tmp_path / "run.jsonl", Saying(right)
    whole = load("mmvp", mmvp)(generator, output=output)
    lines = output.read_text(encoding="utf-8").splitlines(keepends=True)
    output.write_text("".join(lines[:12]) + lines[12][:20], encoding="utf-8")
    again = Saying(right)
    assert load("mmvp", mmvp)(again, output=output) == whole
    assert (len(generator.asked), len(again.asked)) == (18, 7)


# ---- MMVP-VLM by embeddings ----


def test_mmvp_by_embeddings(mmvp):
    evaluator = load("mmvp-embed", mmvp)
    assert evaluator.items[0].texts == (f"a photo of {scene(0)[1]}", f"a photo of {scene(6)[1]}")
    assert evaluator.items[0].images[0] == mmvp / "MLLM_VLM Images" / MMVP_TYPES[0] / "1.jpg"
    result = evaluator(Seeing(knowing))
    assert {name: value for name, value in result.items() if name.startswith("accuracy")} == {
        "accuracy": 100.0,
        **{f"accuracy, {kind}": 100.0 for kind in MMVP_TYPES},
    }
    assert result["n"] == 9
    assert evaluator(Seeing(blind))["accuracy"] == 0.0
    assert load("mmvp-embed", mmvp, limit=2)(Seeing(knowing))["n"] == 2


def test_a_missing_image_of_mmvp_by_embeddings_is_wrong_and_listed(own_mmvp):
    (own_mmvp / "MLLM_VLM Images" / "Texts" / "16.jpg").unlink()
    result = load("mmvp-embed", own_mmvp)(Seeing(knowing))
    assert (result["accuracy"], result["accuracy, Texts"], result["n"]) == (pytest.approx(800 / 9), 0.0, 9)
    assert [failure["id"] for failure in result["failed"]] == ["15 image 1"]


def test_cells_of_the_papers_tables_are_figures_of_the_results(winoground, mmvp):
    tasks = all_tasks()
    assert set(tasks["winoground"].paper) <= set(load("winoground", winoground)(Seeing(blind)))
    assert set(tasks["mmvp"].paper) <= set(load("mmvp", mmvp)(Saying(right)))
    assert set(tasks["mmvp-embed"].paper) <= set(load("mmvp-embed", mmvp)(Seeing(blind)))
