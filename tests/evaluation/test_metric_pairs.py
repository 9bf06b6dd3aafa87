from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mteb.abstasks.image.image_text_pair_classification import AbsTaskImageTextPairClassification

from sugar_hf.evaluation.metrics import pair_accuracy, pair_hits, winoground_scores


def mteb_scores(scores):
    """Mteb's scores for [item, caption, image], which it takes as [image, caption]."""
    compute = AbsTaskImageTextPairClassification._compute_metrics
    found = compute(SimpleNamespace(), [torch.tensor(score.T) for score in scores], 2, 2)
    return {"text": 100 * found["text_acc"], "image": 100 * found["image_acc"], "group": 100 * found["accuracy"]}


def one(s00, s01, s10, s11):
    return winoground_scores(np.array([[[s00, s01], [s10, s11]]]))


def test_winoground_by_hand():
    assert one(0.9, 0.1, 0.2, 0.8) == {"text": 100, "image": 100, "group": 100}
    # Each image picks its caption, but caption 1 scores image 0 higher than its own.
    assert one(0.9, 0.1, 0.5, 0.4) == {"text": 100, "image": 0, "group": 0}
    # Each caption picks its image, but image 0 scores caption 1 higher than its own.
    assert one(0.4, 0.1, 0.5, 0.9) == {"text": 0, "image": 100, "group": 0}
    assert one(0.1, 0.9, 0.8, 0.2) == {"text": 0, "image": 0, "group": 0}


def test_ties_of_winoground_are_wrong():
    assert one(0.5, 0.1, 0.5, 0.9) == {"text": 0, "image": 100, "group": 0}
    assert one(0.5, 0.5, 0.1, 0.9) == {"text": 100, "image": 0, "group": 0}


def test_winoground_is_that_of_mteb_without_ties():
    scores = np.random.default_rng(0).normal(size=(500, 2, 2))
    ours = winoground_scores(scores)
    assert ours == pytest.approx(mteb_scores(scores), abs=1e-4)
    assert ours["text"] == pytest.approx(25, abs=5)
    assert ours["group"] == pytest.approx(16.7, abs=5)


def test_ties_can_pass_in_mteb():
    scores = np.random.default_rng(1).integers(0, 3, size=(500, 2, 2)).astype(float)
    tied = np.array([len(set(score.ravel())) < 4 for score in scores])
    assert mteb_scores(scores)["group"] > winoground_scores(scores)["group"]
    assert mteb_scores(np.array([[[0.5, 0.1], [0.5, 0.9]]]))["text"] == 100
    untied = scores[~tied] if (~tied).any() else np.eye(2)[None]
    assert winoground_scores(untied) == pytest.approx(mteb_scores(untied), abs=1e-4)


def test_other_shapes_are_named(subtests):
    for shape in [(0, 2, 2), (3, 2), (3, 2, 3)]:
        with subtests.test(shape=f"{shape!r:.60}"):
            with pytest.raises(ValueError, match=r"shape of \(items, 2, 2\)"):
                winoground_scores(np.zeros(shape))
            with pytest.raises(ValueError, match=r"shape of \(items, 2, 2\)"):
                pair_accuracy(np.zeros(shape), ["x"] * shape[0])


def test_scores_that_are_no_numbers_are_named():
    scores = np.zeros((3, 2, 2))
    scores[1, 0, 1] = np.nan
    for score in (winoground_scores, lambda s: pair_accuracy(s, ["x"] * 3)):
        with pytest.raises(ValueError, match="item 1 are not numbers"):
            score(scores)


def test_pairs_of_mmvp_by_hand():
    right, first_wrong, second_wrong = [[0.9, 0.1], [0.2, 0.8]], [[0.1, 0.9], [0.2, 0.8]], [[0.9, 0.1], [0.8, 0.2]]
    scores = np.array([right, first_wrong, second_wrong, right])
    assert pair_accuracy(scores, ["Texts", "Texts", "Texts", "Quantity"]) == {
        "accuracy": pytest.approx((100 / 3 + 100) / 2),
        "accuracy, Texts": pytest.approx(100 / 3),
        "accuracy, Quantity": 100,
    }


def test_a_tie_of_mmvp_takes_the_second_image():
    assert pair_accuracy(np.array([[[0.5, 0.5], [0.1, 0.9]]]), ["x"])["accuracy"] == 0
    assert pair_accuracy(np.array([[[0.9, 0.1], [0.5, 0.5]]]), ["x"])["accuracy"] == 100


def test_pairs_of_mmvp_follow_the_softmax_of_the_official_script():
    scores = np.random.default_rng(2).normal(size=(500, 2, 2))
    probabilities = torch.tensor(scores).softmax(dim=-1)[:, :, 0]
    hits = (probabilities[:, 0] > 0.5) & ~(probabilities[:, 1] > 0.5)
    assert pair_accuracy(scores, ["x"] * 500)["accuracy"] == pytest.approx(100 * float(hits.double().mean()))


def test_hits_of_pairs_by_hand():
    hits = np.array([[True, True], [True, False], [False, False], [True, True]])
    assert pair_hits(hits, ["a", "a", "b", "b"]) == {"accuracy": 50, "accuracy, a": 50, "accuracy, b": 50}
    assert pair_hits([[1, 1], [0, 1], [1, 1]], ["a", "a", "b"])["accuracy"] == 75  # the mean of types, not of pairs


def test_faulty_hits_are_named():
    with pytest.raises(ValueError, match="true and false"):
        pair_hits(np.array([[0.5, 1.0]]), ["a"])
    with pytest.raises(ValueError, match="true and false"):
        pair_hits(np.array([[1, 1, 1]]), ["a"])
    with pytest.raises(ValueError, match="2 pairs need as many types"):
        pair_hits(np.array([[1, 1], [1, 0]]), ["a"])
