"""Reranking by the generator, alone and as the second stage of a search; citations of answers."""

import pytest
import torch
from builders import cached_sugar, picture

from sugar_hf import SugarEmbedder, SugarIndex, SugarRag
from sugar_hf.retrieval import CITING, RELEVANCE, RagTemplate, SugarReranker
from sugar_hf.retrieval.rag import as_prompt, prepared

DOCUMENTS = [["a red cat", picture(0)], ["a dog"], [picture(1), "a blue bird", "on a tree"], [picture(2)]]
QUERY = ["Which of them flies?", picture(3)]


class ByLength:
    """The longer the text of a document, the better; keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def rerank(self, query, hits, top_k=None):
        self.asked.append((query, len(hits)))
        return sorted(hits, key=lambda hit: -hit.document.size[1])[:top_k]


@pytest.fixture(scope="module")
def llava():
    return cached_sugar("llava")


@pytest.fixture(scope="module")
def index(llava, tmp_path_factory):
    documents = [{"id": str(i), "text": "x" * (i + 1)} for i in range(6)]
    folder = tmp_path_factory.mktemp("reranked") / "index"
    return SugarIndex.build(folder, documents, SugarEmbedder(*llava), show_progress=False)


def by_hand(model, processor, reranker, query, document):
    """The probability of a yes from one forward pass of the whole prompt."""
    prompt = reranker.template.fill(query, [document])
    with torch.no_grad():
        logits = model.eval()(**prepared(model, processor, [as_prompt(processor, prompt)])).logits[0, -1]
    share = logits.softmax(0)
    yes, no = (share[ids].sum() for ids in reranker._answer_ids)
    return float(yes / (yes + no))


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "paligemma"])
def test_scores_are_those_of_a_forward_pass(family):
    model, processor = cached_sugar(family)
    for options in ({}, {"reuse": False, "batch_size": 3}, {"template": "{documents} {question} Yes or no?"}):
        reranker = SugarReranker(model, processor, **options)
        expected = [by_hand(model, processor, reranker, QUERY, document) for document in DOCUMENTS]
        assert reranker.score(QUERY, DOCUMENTS) == pytest.approx(expected, abs=1e-4)


def test_the_query_is_computed_once(llava):
    model, processor = llava
    reranker = SugarReranker(model, processor)
    assert reranker.reuses
    tokens = []
    handle = model.vlm.register_forward_pre_hook(
        lambda module, args, kwargs: tokens.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    with handle:
        reranker.score(QUERY, DOCUMENTS)

    def length(parts):
        return prepared(model, processor, [as_prompt(processor, parts)])["input_ids"].shape[1]

    wholes = [length(RELEVANCE.fill(QUERY, [document])) for document in DOCUMENTS]
    saved = {whole - run for whole, run in zip(wholes, tokens, strict=True)}
    assert len(saved) == 1
    assert saved.pop() > 10  # the query, of two slices


def test_the_model_is_left_as_it_was(llava):
    model, processor = llava
    model.train()
    SugarReranker(model, processor).score("a", ["b", "c"])
    assert model.training
    model.eval()


def test_a_search_in_two_stages(index):
    reranker = ByLength()
    hits = index.search("x", 2, reranker=reranker, rerank=6)
    assert [hit.id for hit in hits] == ["5", "4"]
    assert [[hit.id for hit in row] for row in index.search(["x", "xx"], 1, reranker=reranker)] == [["5"], ["5"]]
    assert reranker.asked == [("x", 6), ("x", 6), ("xx", 6)]


def test_the_order_is_that_of_the_scores(index, llava):
    reranker = SugarReranker(*llava)
    hits = index.search("xx", 6, reranker=reranker)
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    expected = dict(zip("012345", reranker.score("xx", ["x" * (i + 1) for i in range(6)]), strict=True))
    assert scores == pytest.approx([expected[hit.id] for hit in hits], abs=1e-6)


def test_rag_reranks_before_it_fills_the_prompt(index, llava):
    rag = SugarRag(*llava, index, top_k=1, reranker=ByLength(), rerank=6)
    answer = rag.answer("x", max_new_tokens=1)
    assert [hit.id for hit in answer.hits] == ["5"]
    assert "xxxxxx" in answer.prompt
    assert [hit.id for hit in rag.find("x", top_k=2)] == ["5", "4"]
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "x"}]
    rag.answer(chat, max_new_tokens=1)
    assert rag.reranker.asked[-1] == ([*chat[:2], {"role": "user", "content": ["x"]}], 6)


def test_a_long_document_is_judged_by_its_beginning_and_named(llava):
    reranker = SugarReranker(*llava, max_document_tokens=4)
    with pytest.warns(UserWarning, match=r"document 'long': only its first 1 of 2 slices"):
        cut = reranker.score("q", [{"id": "long", "document": ["a", "b " * 50]}])
    assert cut == pytest.approx(reranker.score("q", ["a"]), abs=1e-6)
    with pytest.raises(ValueError, match="document 'wide': its first slice has more than max_document_tokens=4"):
        reranker.score("q", [{"id": "wide", "text": "b " * 50}])


def test_what_is_refused(llava, index, subtests):
    for options, message in [
        ({"max_document_tokens": 0}, "max_document_tokens=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"answers": (("yes",), ("yes",))}, "answers="),
        ({"template": "{question}"}, "template"),
    ]:
        with subtests.test(message=message), pytest.raises(ValueError, match=message):
            SugarReranker(*llava, **options)
    for options, message in [
        ({"rerank": 5}, "rerank=5 needs a reranker"),
        ({"rerank": 5, "reranker": ByLength()}, "rerank=5 is less than top_k=6"),
    ]:
        with subtests.test(message=message), pytest.raises(ValueError, match=message):
            index.search("x", 6, **options)
        with subtests.test(message=message), pytest.raises(ValueError, match=message):
            SugarRag(*llava, index, top_k=6, **options)


def test_nothing_to_rank(llava):
    reranker = SugarReranker(*llava)
    assert reranker.score("q", []).shape == (0,)
    assert reranker.rerank("q", []) == []


# ---- Citations ----


def test_documents_have_numbers_in_the_prompt():
    prompt = CITING.fill(["Who?"], [["a", "b"], [picture(0), "c"]])
    assert prompt[1:4] == ["[1] a", "b", "[2]"]
    assert prompt[-2:] == ["c", "Who?"]
    assert "[1]" not in "".join(part for part in RELEVANCE.fill(["Who?"], [["a"]]) if isinstance(part, str))


def test_citations_are_checked_against_what_was_shown(index, llava, monkeypatch):
    rag = SugarRag(*llava, index, template=CITING, top_k=3)
    monkeypatch.setattr(rag, "_decoded", lambda *args: ["It is so [2], and so [1, 2][9]. Not [x] or [0]."])
    answer = rag.answer("x", max_new_tokens=1)
    assert [hit.id for hit in answer.cited] == [answer.hits[1].id, answer.hits[0].id]
    assert answer.unknown_citations == (9, 0)
    assert answer.to_dict()["cited"] == [hit.id for hit in answer.cited]
    plain = SugarRag(*llava, index, top_k=3)
    monkeypatch.setattr(plain, "_decoded", lambda *args: ["So [1]."])
    assert plain.answer("x", max_new_tokens=1).cited == ()


def test_numbers_are_those_of_the_documents_that_fit(index, llava, monkeypatch):
    documents = [{"id": "wide", "text": "b " * 300}, {"id": "short", "text": "b"}]
    rag = SugarRag(*llava, documents, template=CITING, top_k=2, max_context_tokens=60)
    monkeypatch.setattr(rag, "_decoded", lambda *args: ["So [1]."])
    answer = rag.answer("b", max_new_tokens=1)
    assert [hit.id for hit in answer.cited] == ["short"]


def test_a_template_of_ones_own_may_be_numbered():
    template = RagTemplate("{documents} {question}", is_numbered=True)
    assert template.fill(["q"], [["a"]]) == ["[1] a", "q"]
