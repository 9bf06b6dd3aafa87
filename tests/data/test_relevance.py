"""Metrics of rankings, against trec_eval."""

import numpy as np
import pytest
import pytrec_eval

from sugar_hf.data import RetrievalSet


def random_set(seed, queries=12, documents=40):
    random = np.random.default_rng(seed)
    names = [f"d{number}" for number in random.permutation(documents)]
    relevance = {}
    for number in range(queries):
        chosen = random.choice(names, random.integers(1, 15), replace=False)
        relevance[f"q{number}"] = {name: int(random.integers(0, 4)) for name in chosen} | {chosen[0]: 2}
    task = RetrievalSet.of(dict.fromkeys(relevance, "a query"), dict.fromkeys(names, "a text"), relevance)
    return task, random


@pytest.mark.parametrize("seed", range(4))
def test_metrics_are_those_of_trec_eval(seed):
    task, random = random_set(seed)
    # small whole numbers: many documents have equal scores
    queries = random.integers(-1, 2, (len(task.queries), 3)).astype(np.float32)
    corpus = random.integers(-1, 2, (len(task.corpus), 3)).astype(np.float32)
    run = {
        query.id: {document.id: float(queries[i] @ corpus[j]) for j, document in enumerate(task.corpus)}
        for i, query in enumerate(task.queries)
    }
    judged = {name: {each: int(grade) for each, grade in found.items()} for name, found in task.relevance.items()}
    evaluated = pytrec_eval.RelevanceEvaluator(judged, {"recall.1,5,10", "recip_rank", "ndcg_cut.10"}).evaluate(run)
    found = task.metrics(queries, corpus)
    names = {"recall_1": "recall@1", "recall_5": "recall@5", "recall_10": "recall@10", "recip_rank": "mrr"}
    for theirs, ours in (names | {"ndcg_cut_10": "ndcg@10"}).items():
        assert found[ours] == pytest.approx(np.mean([each[theirs] for each in evaluated.values()]), abs=1e-6), ours


def test_an_order_of_the_corpus_does_not_help():
    task = RetrievalSet.of({"q": "a"}, {"a": "relevant", "b": "not", "c": "not"}, {"q": ["a"]}, ks=(1, 2))
    same = np.ones((3, 2), np.float32)
    assert task.metrics(same[:1], same) == {"recall@1": 0.0, "recall@2": 0.0, "mrr": pytest.approx(1 / 3), "ndcg@2": 0}


def test_a_vector_that_is_broken_is_refused():
    task, _ = random_set(0)
    queries, corpus = np.ones((len(task.queries), 2)), np.ones((len(task.corpus), 2))
    corpus[3] = np.nan
    with pytest.raises(ValueError, match="not a number"):
        task.metrics(queries, corpus)
