import socket
from pathlib import Path

import evaluate
import numpy as np
import pytest

from sugar_hf.evaluation import metrics
from sugar_hf.evaluation.benchmarks import modules, scorers
from sugar_hf.evaluation.benchmarks.modules import load_metric, metric_names
from sugar_hf.evaluation.benchmarks.modules.info import percent

FOLDER = Path(modules.__file__).parent
NAMES = [
    "demon_choice",
    "evalai_accuracy",
    "gqa",
    "llava_bench",
    "mm_vet",
    "mmbench",
    "mme",
    "mmvp_pairs",
    "pope",
    "position_curve",
    "recall_at_k",
    "rouge_l",
    "science_qa",
    "vqa_accuracy",
    "webqa",
    "winoground",
]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a metric module asks the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def files():
    return {
        path: path.read_bytes() for path in FOLDER.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_names_are_those_of_the_folders():
    assert metric_names() == NAMES
    with pytest.raises(ValueError, match="no metric 'bleu': there are demon_choice"):
        load_metric("bleu")


def test_each_module_loads_and_leaves_the_package_as_it_is(subtests):
    for name in NAMES:
        with subtests.test(name=name):
            before = files()
            for metric in (
                load_metric(name),
                evaluate.load(str(FOLDER / name)),
                evaluate.load(str(FOLDER / name / f"{name}.py")),
            ):
                assert isinstance(metric, evaluate.Metric)
                assert (metric.name, metric.license) == (name, "Apache-2.0")
                assert all(
                    [metric.description, metric.citation, metric.inputs_description, metric.info.reference_urls]
                )
            assert files() == before


def test_the_two_vqa_accuracies():
    predictions, references = ["The cat.", "dog's"], [["cat"] * 2 + ["dog"] * 8, ["dogs"] * 9 + ["dog 's"]]
    for name, score in (("vqa_accuracy", scorers.vqa_accuracy), ("evalai_accuracy", scorers.evalai_accuracy)):
        expected = 50 * sum(map(score, predictions, references))
        assert load_metric(name).compute(predictions=predictions, references=references) == {"accuracy": expected}
        assert expected > 0


def test_batches_add_up():
    metric = load_metric("gqa")
    metric.add_batch(predictions=["Yes.", "t-shirt"], references=["yes", "tshirt"])
    metric.add(prediction="no", reference="yes")
    assert metric.compute() == {"accuracy": pytest.approx(100 / 3)}
    scores = load_metric("gqa").compute(predictions=["Yes.", "t-shirt"], references=["yes", "tshirt"], lmms=True)
    assert scores == {"accuracy": 100}


def test_science_qa():
    rows = {"predictions": ["b", "C. moon", "The answer is A."], "references": ["B", "C", "A"]}
    assert load_metric("science_qa").compute(**rows) == {"accuracy": pytest.approx(200 / 3)}
    assert load_metric("science_qa").compute(**rows, lmms=True) == {"accuracy": pytest.approx(200 / 3)}


def test_pope_with_a_failed_sample():
    scores = load_metric("pope").compute(predictions=["Yes", "There is no dog", None], references=["yes", "no", "no"])
    assert scores == scorers.binary_scores(["yes", "no", None], ["yes", "no", "no"])
    assert scores["failed"] == 1


def test_mme():
    scores = load_metric("mme").compute(
        predictions=["Yes", None], references=["Yes", "No"], categories=["OCR"] * 2, question_ids=["1.png"] * 2
    )
    assert scores == scorers.mme_scores(["OCR"] * 2, ["1.png"] * 2, ["Yes", None], ["Yes", "No"])
    assert scores["OCR score"] == 50


def test_mmbench():
    scores = load_metric("mmbench").compute(
        predictions=["A", "a dog", "dunno"],
        references=["A", "B", "A"],
        options=[["cat", "dog"], ["cat", "dog"], ["red", "blue", "nan"]],
        indices=[5, 1_000_005, 6],
        categories=["x", "x", "y"],
    )
    expected = scorers.circular_accuracy([5, 1_000_005, 6], [True, True, False], ["x", "x", "y"])
    assert scores == expected | {"uninferable": 1}


def test_judges():
    scores = load_metric("llava_bench").compute(predictions=["8 6\nGood", "?"], categories=["conv"] * 2)
    assert scores == scorers.llava_bench_scores([(8, 6), None], ["conv", "conv"])
    scores = load_metric("mm_vet").compute(predictions=["0.5", "?"], capabilities=["ocr,math", "ocr"])
    assert scores == scorers.mm_vet_scores([0.5, None], ["ocr,math", "ocr"])


def test_rouge():
    prediction, reference = "The cat sat.", "the cat sat on the mat"
    for form, score in (("demon", scorers.rouge_l_demon), ("google", scorers.rouge_l_google)):
        one = load_metric("rouge_l").compute(predictions=[prediction], references=[reference], form=form)
        assert one == {"rouge_l": pytest.approx(100 * score(prediction, reference))}
        several = load_metric("rouge_l").compute(predictions=[prediction], references=[["x", reference]], form=form)
        assert several == one
    scores = load_metric("rouge_l").compute(predictions=["a b"], references=[["a c", "b d e"]], form="coco")
    assert scores == {"rouge_l": pytest.approx(100 * scorers.rouge_l_coco("a b", ["a c", "b d e"]))}
    with pytest.raises(ValueError, match="form: 'lin' is none of"):
        load_metric("rouge_l").compute(predictions=["a"], references=["a"], form="lin")


def test_choices_of_demon():
    rows = {"predictions": ["a red ball", "?"], "references": ["red ball", "box"]}
    scores = load_metric("demon_choice").compute(**rows, choices=[["blue box", "red ball"], ["ball", "box"]])
    assert scores == {"accuracy": 50}
    rows = {"predictions": ["Image B.", "image c", "B"], "references": ["Image B", "Image A", "Image B"]}
    scores = load_metric("demon_choice").compute(**rows, choices=[[]] * 3, images=True)
    assert scores == {"accuracy": pytest.approx(100 / 3)}


def test_recall():
    scores = np.random.default_rng(0).normal(size=(30, 12))
    targets, excluded = (
        [[query % 12, (query + 3) % 12] for query in range(30)],
        [[(query + 1) % 12] for query in range(30)],
    )
    found = load_metric("recall_at_k").compute(predictions=scores, references=targets, ks=(1, 3), excluded=excluded)
    assert found == metrics.recall_at_k(metrics.target_ranks(scores, targets, excluded), (1, 3))


def test_pairs():
    scores = np.random.default_rng(1).normal(size=(40, 2, 2))
    assert load_metric("winoground").compute(predictions=scores) == metrics.winoground_scores(scores)
    types = ["Texts", "Quantity"] * 20
    assert load_metric("mmvp_pairs").compute(predictions=scores, types=types) == metrics.pair_accuracy(scores, types)
    replies, letters = [["A", "(B)"], ["B", "a dog"]], [["A", "B"], ["B", "A"]]
    found = load_metric("mmvp_pairs", "replies").compute(predictions=replies, references=letters, types=["x", "y"])
    assert found == {"accuracy": 50, "accuracy, x": 100, "accuracy, y": 0}
    with pytest.raises(ValueError, match="'letters' is neither scores nor replies"):
        load_metric("mmvp_pairs", "letters")


def test_webqa():
    rows = {"predictions": ["It is red", "3"], "references": ["red", "three"], "categories": ["color", "number"]}
    assert load_metric("webqa").compute(**rows) == {"accuracy": pytest.approx(100, abs=1e-3)}


def test_positions():
    replies = [["Yes", "no", "Yes."], ["No", "yes, it is", "I know"]]
    found = load_metric("position_curve").compute(predictions=replies, references=["yes", "no"])
    assert found == scorers.position_curve(np.array([[1, 0, 1], [1, 0, 0]]))


def test_nothing_to_score_is_an_error():
    with pytest.raises(ValueError, match="nothing to score"):
        percent([])
