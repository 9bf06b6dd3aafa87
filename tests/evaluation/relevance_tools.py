"""What trec_eval says of an encoder on the data of an evaluator."""

import numpy as np
import pytrec_eval

from sugar_hf.evaluation.encoders import similarity


def trec_figures(evaluator, encoder, batch_size=8):
    """Figures of a `RelevanceEvaluator` by pytrec_eval, in percent, from the same vectors."""
    task = evaluator.task
    queries = encoder.embed_documents(list(task.queries), batch_size=batch_size)
    corpus = encoder.embed_documents(list(task.corpus), batch_size=batch_size)
    scores = similarity(queries, corpus)
    names = [document.id for document in task.corpus]
    run = {}
    for query, row in zip(task.queries, scores, strict=True):
        allowed = evaluator.among.get(query.id, names)
        run[query.id] = {name: float(score) for name, score in zip(names, row, strict=True) if name in allowed}
    judged = {
        query.id: {name: int(grade) for name, grade in task.relevance[query.id].items()} for query in task.queries
    }
    cuts = ",".join(map(str, task.ks))
    measures = {f"ndcg_cut.{cuts}", f"recall.{cuts}", f"success.{cuts}", "recip_rank"}
    found = _means(pytrec_eval.RelevanceEvaluator(judged, measures).evaluate(run))
    first = {
        query: dict(sorted(some.items(), key=lambda each: (each[1], each[0]))[-10:]) for query, some in run.items()
    }
    cut = _means(pytrec_eval.RelevanceEvaluator(judged, {"recip_rank"}).evaluate(first))
    figures = {"mrr": found["recip_rank"], "mrr@10": cut["recip_rank"]}
    for k in task.ks:
        for theirs, ours in (("ndcg_cut", "ndcg"), ("recall", "recall"), ("success", "hit")):
            figures[f"{ours}@{k}"] = found[f"{theirs}_{k}"]
    return {name: 100 * value for name, value in figures.items()}


def _means(evaluated):
    names = next(iter(evaluated.values()))
    return {name: float(np.mean([each[name] for each in evaluated.values()])) for name in names}
