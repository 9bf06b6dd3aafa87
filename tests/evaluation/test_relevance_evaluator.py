"""Graded relevance over a corpus, against trec_eval and by hand."""

import json

import numpy as np
import pytest
from matching_tools import Seeing
from relevance_tools import trec_figures

from sugar_hf import SugarEmbedder, picturebook
from sugar_hf.data import Document, RetrievalSet
from sugar_hf.data.errors import BadSampleError
from sugar_hf.data.relevance import with_instruction
from sugar_hf.evaluation import DualEncoder, RelevanceEvaluator
from sugar_hf.evaluation.benchmarks.runner import open_model

PRIMARY = {"primary_metric": "ndcg@10"}


def drawn(seed, queries=12, documents=40, most=15):
    """A set with relevance of 0 to 3."""
    random = np.random.default_rng(seed)
    names = [f"d{number}" for number in random.permutation(documents)]
    relevance = {}
    for number in range(queries):
        chosen = random.choice(names, random.integers(1, most), replace=False)
        relevance[f"q{number}"] = {name: int(random.integers(0, 4)) for name in chosen} | {chosen[0]: 2}
    return RetrievalSet.of({name: name for name in relevance}, {name: name for name in names}, relevance, (1, 3, 10))


class Numbers(Seeing):
    """An encoder that gives each text some vectors of small whole numbers, so that many scores are equal."""

    def __init__(self, seed, vectors=1):
        def see(sample):
            random = np.random.default_rng([seed, *sample[-1].encode()])
            return random.integers(-1, 2, (random.integers(1, vectors + 1), 3)) + 0.1

        super().__init__(see)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("vectors", [1, 3])
def test_figures_are_those_of_trec_eval(seed, vectors):
    evaluator, encoder = RelevanceEvaluator("drawn", drawn(seed), **PRIMARY), Numbers(seed, vectors)
    result = evaluator(encoder)
    expected = trec_figures(evaluator, encoder)
    assert {key: result[key] for key in expected} == pytest.approx(expected, abs=1e-6)


def test_only_the_own_candidates_of_a_query_are_ranked():
    task = drawn(0)
    among = {query: [*found, "d0", "d1"] for query, found in list(task.relevance.items())[:6]}
    evaluator, encoder = RelevanceEvaluator("drawn", task, among=among, **PRIMARY), Numbers(0)
    result = evaluator(encoder)
    expected = trec_figures(evaluator, encoder)
    assert {key: result[key] for key in expected} == pytest.approx(expected, abs=1e-6)
    assert result["recall@10"] > RelevanceEvaluator("drawn", task, **PRIMARY)(encoder)["recall@10"]


@pytest.mark.parametrize(
    ("among", "message"),
    [
        ({"q": ["a", "z"]}, "'q' is to be ranked among 'z', which is unknown"),
        ({"q": ["b"]}, "'a' is relevant to the query 'q', but not among its own"),
        ({"r": ["a"]}, "among names the query 'r', which is not among the queries"),
    ],
)
def test_candidates_that_cannot_be_are_refused(among, message):
    task = RetrievalSet.of({"q": "x"}, {"a": "y", "b": "z"}, {"q": ["a"]})
    with pytest.raises(ValueError, match=message):
        RelevanceEvaluator("mine", task, among=among, **PRIMARY)


def test_a_figure_that_is_not_made_is_refused():
    task = RetrievalSet.of({"q": "x"}, {"a": "y"}, {"q": ["a"]}, ks=(1, 5))
    with pytest.raises(ValueError, match=r"mine: primary_metric='ndcg@10' is none of ndcg@1, ndcg@5, "):
        RelevanceEvaluator("mine", task, primary_metric="ndcg@10")


def broken(*names):
    """An encoder that cannot embed some texts."""

    def see(sample):
        if sample[-1] in names:
            raise BadSampleError("broken", sample=sample[-1])
        return [1.0, 0.0]

    return Seeing(see)


def test_what_cannot_be_embedded_is_never_found_and_finds_nothing(tmp_path):
    task = RetrievalSet.of({"p": "p", "q": "q"}, {"a": "a", "b": "b"}, {"p": ["a"], "q": ["b"]}, (1, 2))
    evaluator = RelevanceEvaluator("mine", task, primary_metric="hit@1")
    result = evaluator(broken("a"), output=tmp_path / "out.jsonl")
    assert (result["hit@2"], result["mrr"], result["n"], result["corpus"]) == (50.0, 50.0, 2, 2)
    assert [(each["set"], each["id"]) for each in result["failed"]] == [("corpus", "a")]
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()][1:]
    assert [line["rank"] for line in lines] == [None, 1]
    assert lines[1] == {"id": "q", "rank": 1, "candidates": [["b", 1.0]], "relevant": {"b": 1.0}}
    assert evaluator(broken("p"))["hit@2"] == 50.0
    nothing = evaluator(broken("a", "b"))
    assert all(nothing[name] == 0.0 for name in ("hit@2", "mrr", "mrr@10", "ndcg@2", "recall@2"))


def test_a_group_is_measured_by_itself():
    task = RetrievalSet.of({"p": "p", "q": "q", "r": "r"}, {"a": "a", "b": "b"}, {"p": ["a"], "q": ["b"], "r": ["b"]})
    groups = {"p": "one", "q": "two", "r": "two"}
    result = RelevanceEvaluator("mine", task, primary_metric="hit@1", groups=groups)(Seeing(lambda sample: [1.0]))
    assert (result["one hit@1"], result["two hit@1"], result["hit@1"]) == (0.0, 100.0, pytest.approx(200 / 3))
    assert (result["one queries"], result["two queries"]) == (1, 2)


def test_a_run_goes_on_and_another_is_refused(tmp_path):
    evaluator, encoder = RelevanceEvaluator("drawn", drawn(1), **PRIMARY), Numbers(1)
    result = evaluator(encoder, output=tmp_path / "out.jsonl")
    asked = len(encoder.asked)
    assert evaluator(encoder, output=tmp_path / "out.jsonl") == result
    assert len(encoder.asked) == asked  # the vectors were kept
    with pytest.raises(ValueError, match="is of another run"):
        RelevanceEvaluator("other", drawn(1), **PRIMARY)(encoder, output=tmp_path / "out.jsonl")


def test_an_instruction_is_the_prompt_of_the_embedder_and_nothing_to_clip():
    model, processor = open_model(picturebook.checkpoint("mini-sugar"), device="cpu")
    sugar, clip = SugarEmbedder(model, processor), DualEncoder.from_pretrained(picturebook.checkpoint("mini-clip"))
    plain = Document("q", ["a red horse"])
    told = with_instruction(plain, "Find the picture.")
    [vectors] = sugar.embed_documents([told])
    assert np.allclose(vectors, sugar.encode([["a red horse"]], prompt="Find the picture."), atol=1e-6)
    assert not np.allclose(vectors, sugar.embed_documents([plain])[0], atol=1e-3)
    assert np.array_equal(clip.embed_documents([told])[0], clip.embed_documents([plain])[0])
