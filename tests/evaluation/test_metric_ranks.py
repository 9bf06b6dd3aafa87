import tracemalloc

import numpy as np
import pytest
from mteb._evaluators.retrieval_metrics import calculate_retrieval_scores

from sugar_hf.evaluation.metrics import MISSED, recall_at_k, target_ranks
from sugar_hf.evaluation.metrics import ranking as ranks


def brute_force(scores, targets, excluded=None):
    """The rank read off a stable descending sort of each query."""
    found = []
    for query, row in enumerate(scores):
        out = set(excluded[query]) if excluded is not None else set()
        order = [place for place in np.argsort(-row, kind="stable") if place not in out]
        places = [order.index(target) for target in targets[query] if target not in out]
        found.append(min(places, default=MISSED))
    return found


def test_ranks_are_those_of_a_stable_sort(subtests):
    for dtype in [np.float16, np.float32, np.float64, np.int64]:
        with subtests.test(dtype=str(dtype)):
            rng = np.random.default_rng(0)
            scores = rng.integers(0, 6, size=(500, 12)).astype(dtype)  # full of ties
            targets = [rng.choice(12, size=rng.integers(1, 4), replace=False).tolist() for _ in range(500)]
            excluded = [rng.choice(12, size=rng.integers(0, 4), replace=False).tolist() for _ in range(500)]
            before = scores.copy()
            assert target_ranks(scores, targets).tolist() == brute_force(scores, targets)
            assert target_ranks(scores, targets, excluded).tolist() == brute_force(scores, targets, excluded)
            assert (scores == before).all()


def test_ranks_do_not_depend_on_the_blocks(monkeypatch):
    rng = np.random.default_rng(1)
    scores, targets = rng.integers(0, 9, size=(50, 20)).astype(float), [[q % 20, (q * 7) % 20] for q in range(50)]
    whole = target_ranks(scores, targets, [[q % 3] for q in range(50)])
    monkeypatch.setattr(ranks, "BLOCK", 70)
    assert (target_ranks(scores, targets, [[q % 3] for q in range(50)]) == whole).all()
    scores[41, 3] = np.nan
    with pytest.raises(ValueError, match="query 41 are not numbers"):
        target_ranks(scores, targets)
    with pytest.raises(ValueError, match="query 30 has no target"):
        target_ranks(scores[:40], [[q] if q != 30 else [] for q in range(20)] + [[0]] * 10 + [[]] + [[0]] * 9)


def test_an_index_outside_the_candidates_is_named():
    with pytest.raises(ValueError, match="query 1: target 3 is not among 3 candidates"):
        target_ranks(np.zeros((2, 3)), [[0], [1, 3]])
    with pytest.raises(ValueError, match="query 0: exclusion -1"):
        target_ranks(np.zeros((2, 3)), [[0], [1]], [[-1], []])
    with pytest.raises(ValueError, match="at least one query"):
        recall_at_k(np.array([]))


def test_any_caption_of_an_image_is_a_hit():
    scores = np.array([[0.9, 0.1, 0.8, 0.2]])
    assert target_ranks(scores, [[1, 2]]).tolist() == [1]


def test_recall_is_that_of_mteb():
    rng = np.random.default_rng(2)
    scores, targets = rng.normal(size=(500, 40)), rng.integers(0, 40, size=500)
    runs = {f"q{q}": {f"c{c}": float(row[c]) for c in range(40)} for q, row in enumerate(scores)}
    relevant = {f"q{q}": {f"c{target}": 1} for q, target in enumerate(targets)}
    reference = calculate_retrieval_scores(runs, relevant, [1, 5, 10])
    ours = recall_at_k(target_ranks(scores, targets[:, None].tolist()))
    assert ours == pytest.approx({f"recall@{k}": 100 * reference.recall[f"Recall@{k}"] for k in (1, 5, 10)}, abs=1e-3)
    # With several targets our hit is mteb's hit rate; its recall is the share of them that is found.
    several = [sorted({int(target), (int(target) + 1) % 40}) for target in targets]
    relevant = {f"q{q}": {f"c{target}": 1 for target in own} for q, own in enumerate(several)}
    reference = calculate_retrieval_scores(runs, relevant, [1, 5, 10])
    ours = recall_at_k(target_ranks(scores, several))
    hit_rate = {f"recall@{k}": 100 * reference.hit_rate[f"HitRate@{k}"] for k in (1, 5, 10)}
    assert ours == pytest.approx(hit_rate, abs=1e-3)
    assert ours["recall@5"] > 100 * reference.recall["Recall@5"] + 5


def test_a_quarter_of_mscoco_is_read_in_blocks():
    rng = np.random.default_rng(3)
    scores = rng.random((6250, 2500), dtype=np.float32)
    tracemalloc.start()
    found = target_ranks(scores, [[query // 5 * 2] for query in range(6250)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < scores.nbytes / 2
    assert 1100 < found.mean() < 1400
