import numpy as np
import pytest

from sugar_hf.evaluation.metrics import MISSED, exact_match, recall_at_k, target_ranks


def test_ranks_by_hand():
    scores = np.array([[0.9, 0.5, 0.1], [0.2, 0.8, 0.4]])
    assert target_ranks(scores, [[1], [1]]).tolist() == [1, 0]
    assert target_ranks(scores, [[1, 0], [0, 2]]).tolist() == [0, 1]


def test_ties_go_to_the_first_candidate():
    scores = np.zeros((1, 4))
    assert [int(target_ranks(scores, [[target]])[0]) for target in range(4)] == [0, 1, 2, 3]


def test_excluded_candidates_are_never_retrieved():
    scores = np.array([[0.9, 0.5, 0.1]])
    assert target_ranks(scores, [[1]], excluded=[[0]]).tolist() == [0]
    assert target_ranks(scores, [[0]], excluded=[[0]]).tolist() == [MISSED]


def test_recall():
    assert recall_at_k(np.array([0, 4, 5, 9, 10])) == {"recall@1": 20.0, "recall@5": 40.0, "recall@10": 80.0}


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="query 0 has no target"):
        target_ranks(np.zeros((1, 2)), [[]])
    with pytest.raises(ValueError, match="as many targets"):
        target_ranks(np.zeros((2, 2)), [[0]])
    with pytest.raises(ValueError, match="query 1 are not numbers"):
        target_ranks(np.array([[0.0, 1.0], [np.nan, 0.0]]), [[0], [0]])


def test_exact_match():
    assert exact_match(" At the  Top.", "at the top")
    assert not exact_match("dog", "a dog")
