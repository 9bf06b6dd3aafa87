"""Retrieval that is measured while a model is trained."""

import pytest
import torch
from builders import picture
from peft import get_peft_model
from training_tools import logged, make_arguments, make_dataset, make_sugar, make_trainer

from sugar_hf import SugarEmbedder
from sugar_hf.data import BadSampleError, RetrievalSet
from sugar_hf.training import SugarTrainer, sugar_lora_config
from sugar_hf.training.retrieval_evaluation import embed_over_processes

QUERIES = {"q1": "A cat.", "q2": [picture(2), "And a dog."], "q3": "A ball and a sun."}
CORPUS = {"d1": "A cat and a mat.", "d2": [picture(2)], "d3": "A dog.", "d4": [picture(3), "A ball."], "d5": "A sun."}
RELEVANCE = {"q1": ["d1"], "q2": {"d2": 1, "d3": 2}, "q3": ["d4", "d5"]}
TASK = {"queries": QUERIES, "corpus": CORPUS, "relevance": RELEVANCE}
NAMES = {f"eval_retrieval_{name}" for name in ("recall@1", "recall@5", "recall@10", "mrr", "ndcg@10", "runtime")}


def expected_of(model, processor):
    embedder = SugarEmbedder(model, processor)
    queries, corpus = (embedder.encode([*samples.values()], show_progress=False) for samples in (QUERIES, CORPUS))
    return RetrievalSet.of(**TASK).metrics(queries, corpus)


def found_in(metrics):
    return {key.removeprefix("eval_retrieval_"): value for key, value in metrics.items() if key in NAMES}


def check(metrics, model, processor):
    expected = expected_of(model, processor)
    assert found_in(metrics).items() >= expected.items()


def test_each_evaluation_has_the_metrics_of_the_weights_of_the_moment(tmp_path):
    trainer = make_trainer(tmp_path, eval_retrieval=TASK, eval_strategy="steps", eval_steps=1, learning_rate=0.05)
    first = trainer.evaluate()
    check(first, trainer.model, trainer.processing_class)
    trainer.train()
    assert len(logged(trainer, "eval_retrieval_mrr")) == 2
    last = [entry for entry in trainer.state.log_history if "eval_retrieval_mrr" in entry][-1]
    check(last, trainer.model, trainer.processing_class)
    assert trainer.model.training  # as training has left it


def test_data_and_retrieval_are_evaluated_together(tmp_path, subtests):
    data = make_dataset(make_sugar()[1])
    for name, sets in {"one": data, "several": {"a": data, "b": data.select(range(2))}}.items():
        with subtests.test(name):
            trainer = make_trainer(tmp_path, eval_retrieval=TASK, eval_dataset=sets)
            metrics = trainer.evaluate()
            losses = {"eval_loss"} if name == "one" else {"eval_a_loss", "eval_b_loss"}
            assert metrics.keys() >= NAMES | losses
            assert len(logged(trainer, "eval_retrieval_mrr")) == 1
            assert "test_retrieval_mrr" not in trainer.predict(data).metrics
            assert "test_retrieval_mrr" in trainer.evaluate(metric_key_prefix="test")


def test_the_best_model_is_chosen_by_it(tmp_path):
    trainer = make_trainer(
        tmp_path,
        eval_retrieval=TASK,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        max_steps=3,
        learning_rate=0.05,
        load_best_model_at_end=True,
        metric_for_best_model="eval_retrieval_ndcg@10",
    )
    trainer.train()
    values = logged(trainer, "eval_retrieval_ndcg@10")
    assert trainer.state.best_metric == max(values)
    assert expected_of(trainer.model, trainer.processing_class)["ndcg@10"] == max(values)


def test_adapters_are_on(tmp_path):
    model, processor = make_sugar()
    model = get_peft_model(model, sugar_lora_config(model))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(generator=torch.Generator().manual_seed(0))
    trainer = make_trainer(tmp_path, model=model, eval_retrieval=TASK)
    check(trainer.evaluate(), model, processor)


def test_queries_may_have_an_instruction(tmp_path):
    trainer = make_trainer(tmp_path, eval_retrieval=TASK | {"instruction": "Find it."})
    embedder = SugarEmbedder(trainer.model, trainer.processing_class)
    queries = embedder.encode([*QUERIES.values()], prompt="Find it.", show_progress=False)
    corpus = embedder.encode([*CORPUS.values()], show_progress=False)
    vectors = embedder.embed_documents(trainer.eval_retrieval.queries)
    assert abs(queries - [row[0] for row in vectors]).max() < 1e-5
    expected = RetrievalSet.of(**TASK).metrics(queries, corpus)
    assert found_in(trainer.evaluate()).items() >= expected.items()


def test_training_is_the_same_with_it(tmp_path):
    losses = []
    for options in ({}, {"eval_retrieval": TASK, "eval_strategy": "steps", "eval_steps": 1}):
        trainer = make_trainer(tmp_path, max_steps=3, **options)
        trainer.train()
        losses.append(logged(trainer, "loss"))
    assert losses[0] == losses[1]


def test_what_cannot_be_evaluated_is_refused_at_once(tmp_path, subtests):
    cases = {
        "a dict with queries": {"queries": QUERIES},
        "no relevant document": TASK | {"relevance": RELEVANCE | {"q1": {"d1": 0}}},
        "not in the corpus": TASK | {"relevance": RELEVANCE | {"q1": ["d9"]}},
        "not among the queries": TASK | {"relevance": RELEVANCE | {"q9": ["d1"]}},
        "give 0 or more": TASK | {"relevance": RELEVANCE | {"q1": {"d1": -1}}},
        "give a list of ids": TASK | {"relevance": RELEVANCE | {"q1": "d1"}},
        "have the id 'd1'": TASK | {"corpus": [{"id": "d1", "text": "A."}, {"id": "d1", "text": "B."}]},
        "corpus is empty": TASK | {"corpus": {}},
        "whole numbers of 1 or more": TASK | {"ks": [0]},
    }
    for message, task in cases.items():
        with subtests.test(message), pytest.raises((TypeError, ValueError), match=message):
            make_trainer(tmp_path, eval_retrieval=task)
    with pytest.raises(BadSampleError, match="'d1'"):
        make_trainer(tmp_path, eval_retrieval=TASK | {"corpus": CORPUS | {"d1": []}})
    model, _ = make_sugar()
    with pytest.raises(TypeError, match="SugarProcessor"):
        SugarTrainer(
            model, make_arguments(tmp_path, alpha=0.0), lambda rows: rows, eval_retrieval=TASK, processing_class=None
        )


class OneOfTwo:
    """The first of two processes, of which the other has met so many faults."""

    num_processes, process_index, device = 2, 0, "cpu"

    def __init__(self, faults):
        self.faults = faults

    def reduce(self, tensor, reduction):
        return tensor + self.faults


def test_a_fault_stops_all_processes():
    documents = RetrievalSet.of(**TASK).corpus
    with pytest.raises(ValueError, match="see its error"):
        embed_over_processes(OneOfTwo(1), lambda share: torch.zeros(len(share), 2), documents)

    def fail(share):
        raise ValueError(f"{len(share)} of {len(documents)}")

    with pytest.raises(ValueError, match="3 of 5"):
        embed_over_processes(OneOfTwo(0), fail, documents)


def test_a_broken_picture_is_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    trainer = make_trainer(tmp_path, eval_retrieval=TASK | {"corpus": CORPUS | {"d2": [tmp_path / "broken.png"]}})
    with pytest.raises(BadSampleError, match="'d2'"):
        trainer.evaluate()
