"""FVQA, WebQA and the position probe, from their official files."""

import json
import re

import pytest
from benchmark_tools import Saying, pictures, scene, words, write_json
from fixtures_knowledge import FVQA, IMAGES, RAW, THINGS, WEBQA, encoded, webqa_rows, write_images
from knowledge_tools import Comparing

from sugar_hf import picturebook
from sugar_hf.data import BadSampleError
from sugar_hf.evaluation.benchmarks.runner import open_model
from sugar_hf.evaluation.benchmarks.sources import Source
from sugar_hf.evaluation.benchmarks.tasks import knowledge_vqa as knowledge
from sugar_hf.evaluation.benchmarks.tasks import webqa_tasks as webqa

TASKS = knowledge.TASKS | webqa.TASKS
NAMES = ["fvqa", "webqa", "webqa-position"]
BEFORE = (
    "Please answer the questions based on the pictures. If the reference information is useful, please use it. "
    "Otherwise, please ignore the reference information. Reference information:"
)


def load(name, folder, limit=None, split=None, seed=0, **options):
    return TASKS[name].load(Source(name, str(folder), split, limit, seed, options))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {name: tmp_path_factory.mktemp(name) for name in NAMES}
    for name, folder in found.items():
        RAW[name](folder)
    return found


def written(sample):
    """A prompt in one string, with <image> for images."""
    return "".join(part if isinstance(part, str) else "<image>" for part in sample)


def run(evaluator, answer, output=None):
    generator = Saying(answer)
    arguments = {} if evaluator.name == "webqa-position" else {"encoder": Comparing()}
    return evaluator(generator, output=output, **arguments), generator


def right(sample):
    text = words(sample)
    return next(answer for question, answer, *_ in [*FVQA, *WEBQA] if question in text)


# ---- FVQA ----


def test_the_prompt_of_fvqa(folders):
    _, generator = run(load("fvqa", folders["fvqa"], split_number="0"), right)
    assert sorted(map(written, generator.asked)) == [
        f"{BEFORE} a horse is used for riding <image> What is the animal used for?",
        f"{BEFORE} an orangutan lives in the forest <image> Where does the ape live?",
    ]
    assert pictures(generator.asked[0])[0].tobytes() in [scene(i)[0].tobytes() for i in (0, 1)]
    _, generator = run(load("fvqa", folders["fvqa"], split_number="0", top_k="0"), right)
    assert sorted(map(written, generator.asked)) == [
        "<image>What is the animal used for?",
        "<image>Where does the ape live?",
    ]


def test_fvqa_asks_what_needs_a_fact_and_means_over_the_splits(folders):
    evaluator = load("fvqa", folders["fvqa"])
    result, generator = run(evaluator, lambda sample: "riding" if "animal" in words(sample) else "xyz")
    assert result["n"] == len(generator.asked) == 4  # each once, though it is in several splits; not the sandwich
    # the question about the animal is one of two in the splits 0, 3 and 4
    by_split = [result[f"rouge_l, split {number}"] for number in range(5)]
    assert by_split == pytest.approx([50, 0, 0, 50, 50])
    assert result["rouge_l"] == pytest.approx(30)
    assert result["rouge_l google"] == result["exact match"] == pytest.approx(30)
    assert result["settings"]["questions_per_split"] == dict.fromkeys("01234", 2)
    for answers, size in (("image", 1), ("all", 5)):
        assert len(load("fvqa", folders["fvqa"], answers=answers).examples) == size


def test_views_of_fvqa(folders):
    recall = {
        view: run(load("fvqa", folders["fvqa"], view=view), right)[0]["retrieval recall@1"]
        for view in ("image", "text", "average")
    }
    # by the question alone, "used" fits horse and helicopter, and nothing fits the ape and space but "made"
    assert recall == {"image": 100, "text": 50, "average": 100}


def test_facts_of_fvqa(folders, tmp_path):
    evaluator = load("fvqa", folders["fvqa"], pool="all")
    assert len(evaluator.pool.entries) == 6
    assert len(load("fvqa", folders["fvqa"]).pool.entries) == 5
    RAW["fvqa"](tmp_path)
    file = tmp_path / "new_dataset_release" / "all_fact_triples_release.json"
    facts = json.loads(file.read_text())
    del facts["conceptnet/e/0"]
    write_json(file, facts)
    assert len(load("fvqa", tmp_path).pool.entries) == 5  # the question has the text of its fact as well
    file = tmp_path / "new_dataset_release" / "all_qs_dict_release.json"
    questions = json.loads(file.read_text())
    del questions["100"]["fact_surface"]
    write_json(file, questions)
    with pytest.raises(BadSampleError, match=r"100.*fact"):
        load("fvqa", tmp_path)


# ---- WebQA ----


def test_the_prompt_of_webqa(folders):
    result, generator = run(load("webqa", folders["webqa"]), right)
    prompts = {written(sample).rsplit(" <image> ", 1)[1] for sample in generator.asked}
    assert "A horse seen in 1900 Is the horse near a spider?" in prompts
    [horse] = [sample for sample in generator.asked if "spider" in words(sample)]
    assert written(horse) == f"{BEFORE} <image> A horse seen in 1900 Is the horse near a spider?"
    assert pictures(horse)[0].tobytes() == scene(0)[0].tobytes()
    assert result["retrieval recall@1"] == 100
    _, generator = run(load("webqa", folders["webqa"], top_k="0"), right)
    assert sorted(map(written, generator.asked)) == sorted(question for question, *_ in WEBQA)
    _, generator = run(load("webqa", folders["webqa"], top_k="2"), right)
    assert all(len(pictures(sample)) == 2 for sample in generator.asked)


def test_scores_of_webqa(folders):
    result, _ = run(load("webqa", folders["webqa"]), right)
    figures = ("rouge_l", "rouge_l google", "exact match", "qa_acc", "qa_acc, YesNo", "qa_acc, number")
    assert {name: result[name] for name in figures} == pytest.approx(
        dict.fromkeys(figures, 100),
        abs=1e-2,
    )
    result, _ = run(load("webqa", folders["webqa"]), lambda sample: "xyz")
    assert (result["rouge_l"], result["qa_acc"]) == (0, 0)
    result, _ = run(load("webqa", folders["webqa"]), lambda sample: "Yes")
    assert result["qa_acc, YesNo"] == pytest.approx(200 / 3, abs=1e-2)


def test_keywords_are_what_counts_for_webqa_where_there_are_some(tmp_path):
    RAW["webqa"](tmp_path)
    rows = webqa_rows()
    rows["guid6"]["Keywords_A"] = ["turkey"]
    write_json(tmp_path / "WebQA_train_val.json", rows)
    result, _ = run(load("webqa", tmp_path), lambda sample: "turkey")
    assert result["qa_acc, Others"] == 100


def test_a_question_of_webqa_finds_its_own_candidates_only(folders):
    evaluator = load("webqa", folders["webqa"])
    assert len(evaluator.examples) == 8  # not the training question, nor the one that texts answer
    assert len(evaluator.pool.entries) == IMAGES
    assert evaluator.settings["candidates"] == {"fewest": 5, "mean": 7.8, "most": 9}
    ids = [entry.id for entry in evaluator.pool.entries]
    for number, allowed in enumerate(evaluator.pool.allowed):
        row = webqa_rows()[f"guid{number}"]
        own = {str(fact["image_id"]) for kind in ("img_posFacts", "img_negFacts") for fact in row[kind]}
        assert {ids[i] for i in allowed} == own
        assert allowed == sorted(allowed)
        right_ones = {ids[i] for i in evaluator.pool.gold[number]}
        assert right_ones == {str(fact["image_id"]) for fact in row["img_posFacts"]}


def test_views_of_webqa(folders):
    evaluator = load("webqa", folders["webqa"], view="image")
    query, caption = evaluator.views["image"].queries[4], evaluator.pool.sides["captions"][6]
    assert [image.tobytes() for image in query.load()] == [scene(i)[0].tobytes() for i in WEBQA[4][3]]
    assert caption.load() == [f"A {THINGS[6]} seen in 1960"]
    assert run(evaluator, right)[0]["retrieval recall@1"] == 100
    evaluator = load("webqa", folders["webqa"], view="text")
    assert evaluator.views["text"].queries[0].load() == [WEBQA[0][0]]
    assert evaluator.pool.sides["images"][6].load()[0].tobytes() == scene(6)[0].tobytes()
    assert run(evaluator, right)[0]["settings"]["view"] == "text"


def test_samples_are_drawn_by_the_seed(folders):
    def ids(**options):
        return [example.id for example in load("webqa", folders["webqa"], **options).examples]

    assert ids(samples="4") == ids(samples="4")
    assert len(ids(samples="4")) == 4
    assert len({tuple(ids(samples="4", seed=seed)) for seed in range(5)}) > 1
    assert ids(samples="all") == [f"guid{i}" for i in range(8)]
    assert ids(samples="4", limit=2) == ids(samples="4")[:2]


def test_images_of_webqa_that_cannot_be_read_are_listed(tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", False)  # lmms_eval sets it where it was imported
    RAW["webqa"](tmp_path)
    files = [encoded(scene(i)[0]) for i in range(IMAGES - 1)]  # that of the blossom is missing
    files[8] = files[8][: len(files[8]) // 2]  # and that of the whale was cut off
    write_images(tmp_path, files)
    result, _ = run(load("webqa", tmp_path), right)
    skipped = {(each["set"], each["id"]) for each in result["skipped"]}
    images = {("candidates-images", "30000008"), ("candidates-images", "30000009")}
    assert skipped == {*images, ("questions-image", "guid6")}
    assert (result["unsearched"], result["failed"], result["rouge_l"]) == (1, [], pytest.approx(100))
    result, _ = run(load("webqa", tmp_path, view="image"), right)
    assert result["unsearched"] == 1
    assert all("truncated" in each["error"] or "broken" in each["error"] for each in result["skipped"])


def test_the_index_may_lead_to_another_image(tmp_path):
    RAW["webqa"](tmp_path)
    offsets = (tmp_path / "imgs.lineidx").read_text().split()
    (tmp_path / "imgs.lineidx").write_text("\n".join([*offsets[1:], offsets[0]]))
    result, _ = run(load("webqa", tmp_path), right)
    assert result["unsearched"] == 8
    assert {"image 3000000" in each["error"] for each in result["skipped"]} == {True}


# ---- The position probe ----


def test_the_prompt_of_the_position_probe(folders):
    _, generator = run(load("webqa-position", folders["webqa-position"], samples="1"), lambda sample: "Yes")
    prompts = list(map(written, generator.asked))
    assert len(prompts) == 6
    question, place = WEBQA[0][0], r"<image> A \w+ seen in 19\d0"
    if "comet" in prompts[0]:
        question = WEBQA[1][0]
    pairs = " ".join([place] * 6)
    expected = rf"{re.escape(question)}\n{pairs}\.\n please answer the question in Yes or No\.\n"
    assert all(re.fullmatch(expected, prompt) for prompt in prompts)


def test_the_relevant_pair_is_at_each_place_among_the_same_others(folders):
    _, generator = run(load("webqa-position", folders["webqa-position"]), lambda sample: "Yes")
    for thing in ("horse", "comet"):
        captions = [
            re.findall(r"A (\w+) seen", words(sample)) for sample in generator.asked if f"the {thing}" in sample[0]
        ]
        assert sorted(found.index(thing) for found in captions) == list(range(6))
        others = {tuple(each for each in found if each != thing) for found in captions}
        assert len(others) == 1
    for sample in generator.asked:
        shown = [THINGS.index(name) for name in re.findall(r"A (\w+) seen", words(sample))]
        assert [image.tobytes() for image in pictures(sample)] == [scene(i)[0].tobytes() for i in shown]


def test_scores_of_the_position_probe(folders):
    evaluator = load("webqa-position", folders["webqa-position"])
    result, _ = run(evaluator, right)
    assert {name: result[name] for name in ("mean", "depth", "labels yes", "neither yes nor no")} == {
        "mean": 100,
        "depth": 0,
        "labels yes": 50,
        "neither yes nor no": 0,
    }

    def first_seen(sample):
        """Right if the relevant pair is the first, else nothing."""
        thing = "horse" if "horse near" in words(sample) else "comet"
        return right(sample) if re.search(r"A (\w+) seen", words(sample))[1] == thing else "I cannot say."

    result, _ = run(evaluator, first_seen)
    assert [result[f"position {place}"] for place in range(1, 7)] == [100, 0, 0, 0, 0, 0]
    assert (result["depth"], result["n"]) == (50, 12)
    assert result["neither yes nor no"] == pytest.approx(500 / 6)
    assert result["settings"]["left_out"] == {"fewer than 5 other images": 1}
    assert (result["settings"]["eligible"], result["settings"]["questions"]) == (2, 2)


def test_questions_that_the_probe_leaves_out_are_counted(tmp_path):
    RAW["webqa"](tmp_path)
    rows = webqa_rows()
    rows["guid0"]["img_posFacts"] += rows["guid1"]["img_posFacts"]
    write_json(tmp_path / "WebQA_train_val.json", rows)
    settings = load("webqa-position", tmp_path).settings
    assert settings["left_out"] == {"several relevant images": 1, "fewer than 5 other images": 1}
    rows["guid1"]["A"] = ['"It is black."']
    write_json(tmp_path / "WebQA_train_val.json", rows)
    with pytest.raises(ValueError, match="webqa-position: there are no samples"):
        load("webqa-position", tmp_path)


def test_a_limit_takes_whole_questions_of_the_probe(folders):
    for limit, size in ((1, 6), (6, 6), (7, 12)):
        assert len(load("webqa-position", folders["webqa-position"], limit=limit).examples) == size


def test_a_missing_image_fails_its_prompts(tmp_path):
    RAW["webqa"](tmp_path)
    write_images(tmp_path, [b"" if i == 3 else encoded(scene(i)[0]) for i in range(IMAGES)])  # without the comet
    result, _ = run(load("webqa-position", tmp_path), right)
    assert result["n"] == 12
    assert {failure["id"].split("@")[0] for failure in result["failed"]} >= {"guid1"}
    assert result["mean"] <= 50


# ---- What they share ----


def test_a_missing_image_of_fvqa_is_counted(tmp_path):
    RAW["fvqa"](tmp_path)
    (tmp_path / "new_dataset_release" / "images" / "ILSVRC2012_test_00000000.png").unlink()
    result, _ = run(load("fvqa", tmp_path), right)
    assert [failure["id"] for failure in result["failed"]] == ["100"]
    assert result["unsearched"] == 1
    assert result["rouge_l"] == pytest.approx((50 + 100 + 100 + 50 + 50) / 5)


def test_missing_files_are_named(tmp_path, subtests):
    for name, file, said in [
        ("fvqa", "all_qs_dict_release.json", "all_qs_dict_release.json"),
        ("fvqa", "all_fact_triples_release.json", "all_fact_triples_release.json"),
        ("fvqa", "test_list_3.txt", "test_list_3.txt"),
        ("webqa", "imgs.tsv", "imgs.tsv"),
        ("webqa", "imgs.lineidx", "imgs.lineidx"),
        ("webqa-position", "WebQA_train_val.json", "WebQA_train_val.json"),
    ]:
        with subtests.test(name=name, file=file, said=said):
            RAW[name](tmp_path)
            [path] = tmp_path.rglob(file)
            path.unlink()
            with pytest.raises(FileNotFoundError, match=f"{name}: no {said}.*docs/benchmarks.md"):
                load(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "sample", "field"),
    [
        ("fvqa", "all_qs_dict_release.json", "101", "img_file"),
        ("fvqa", "all_qs_dict_release.json", "101", "ans_source"),
        ("webqa", "WebQA_train_val.json", "guid1", "img_negFacts"),
        ("webqa", "WebQA_train_val.json", "guid1", "Qcate"),
        ("webqa-position", "WebQA_train_val.json", "guid1", "A"),
    ],
)
def test_missing_fields_of_questions_are_named(tmp_path, name, file, sample, field):
    RAW[name](tmp_path)
    [path] = tmp_path.rglob(file)
    rows = json.loads(path.read_text())
    del rows[sample][field]
    write_json(path, rows)
    with pytest.raises(BadSampleError, match=f"{sample}.*{field}|{field}.*{sample}"):
        load(name, tmp_path)


def test_options_and_splits_that_are_none(folders):
    with pytest.raises(ValueError, match="fvqa: view='both' is none of image, text, average"):
        load("fvqa", folders["fvqa"], view="both")
    with pytest.raises(ValueError, match="fvqa: top_k='-1': give a number"):
        load("fvqa", folders["fvqa"], top_k="-1")
    with pytest.raises(ValueError, match="fvqa: no split 'val'"):
        load("fvqa", folders["fvqa"], split="val")
    with pytest.raises(ValueError, match="webqa: no split 'test'"):
        load("webqa", folders["webqa"], split="test")


def test_the_mini_model_retrieves_and_answers(folders, tmp_path):
    model, processor = open_model(str(picturebook.checkpoint("mini-sugar")), device="cpu")
    evaluator = load("fvqa", folders["fvqa"], limit=2)
    evaluator.max_new_tokens = 4
    path = tmp_path / "fvqa.jsonl"
    result = evaluator(model, processor, output=path)
    assert (result["n"], result["failed"], result["skipped"]) == (2, [], [])
    assert 0 <= result["retrieval recall@1"] <= 100
    assert evaluator(model, processor, output=path) == result
