"""Retrieval-augmented answers: what is found, what of it is in the prompt, and what is said about it."""

import json

import pytest
from builders import cached_sugar, picture
from PIL import ImageChops
from transformers import pipeline

from sugar_hf import SugarIndex, SugarRag, picturebook
from sugar_hf.data import Document
from sugar_hf.model import CandidateIndex
from sugar_hf.retrieval import KNOWLEDGE_VQA, QUESTION_FIRST, Hit, IndexMismatchError, RagTemplate, SugarEmbedder
from sugar_hf.retrieval.rag import Question, fit

FACTS = [
    {"id": "tower", "document": ["The tower is made of iron.", picture(5)], "metadata": {"kind": "place"}},
    {"id": "boat", "text": "A red boat lies in the harbour.", "kind": "thing"},
    {"id": "cats", "document": ["Two cats sleep.", "They are grey.", "They are old."], "metadata": {"kind": "thing"}},
]
NEW = {"max_new_tokens": 4, "do_sample": False}


@pytest.fixture(scope="module")
def llava():
    return cached_sugar("llava")


@pytest.fixture(scope="module")
def index(llava, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rag") / "facts.index"
    return SugarIndex.build(folder, FACTS, SugarEmbedder(*llava), show_progress=False)


@pytest.fixture
def rag(llava, index):
    return SugarRag(*llava, index, top_k=2)


# ---- Prompts ----


def test_the_papers_prompt():
    """method.md, section 9: FVQA."""
    photo = picture(0)
    filled = KNOWLEDGE_VQA.fill([photo, "What is it?"], [["A fact."], [picture(1), "Another."]])
    assert filled[0] == (
        "Please answer the questions based on the pictures. If the reference information is useful, please use it. "
        "Otherwise, please ignore the reference information. Reference information:"
    )
    assert filled[1] == "A fact."
    assert filled[3:] == ["Another.", photo, "What is it?"]
    assert KNOWLEDGE_VQA.fill([photo, "What is it?"], []) == [photo, "What is it?"]
    assert QUESTION_FIRST.fill(["Why?"], [["A fact."]])[0] == "Why?"
    assert QUESTION_FIRST.fill(["Why?"], [["A fact."]])[-1] == "A fact."


def test_templates_that_are_refused(subtests):
    for text, without, message in [
        ("{question}", "{question}", "template, text: needs {documents} and {question}"),
        ("{documents} {documents} {question}", "{question}", "once each"),
        ("{documents} {question}", "Say something.", "template, without: needs {question}"),
        ("{documents} {question}", "{question} {documents}", "template, without"),
    ]:
        with subtests.test(message=message):
            with pytest.raises(ValueError, match="template") as error:
                RagTemplate(text, without)
            assert message in str(error.value)


def test_braces_in_a_template_are_text():
    template = RagTemplate('{"a": 1} {documents}\n{question} {x}')
    assert template.fill(["Q"], [["D"]]) == ['{"a": 1}', "D", "Q", "{x}"]
    assert not template.is_question_first


def test_a_chat_is_a_history_and_a_question():
    chat = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi."}]
    question = Question.read([*chat, {"role": "user", "content": [{"type": "text", "text": "Where?"}, picture(0)]}])
    assert question.history == tuple(chat)
    assert question.parts[0] == "Where?"
    with pytest.raises(ValueError, match="question 3: the chat ends with the turn of assistant"):
        Question.read(chat, "question 3")


# ---- The budget ----


def hits(*samples):
    return [Hit(str(i), 1 - i / 10, -1, Document(str(i), sample)) for i, sample in enumerate(samples)]


def test_slices_are_taken_whole_and_by_score(llava):
    processor = llava[1]
    found = hits(["Two cats sleep.", "They are grey."], [picture(0), "A boat."], "The end.")
    size = [processor([hit.document.load()])["input_ids"].shape[1] for hit in found]
    used = {}
    for budget in (*range(1, sum(size) + 1), None):
        noted, parts = fit(found, processor, budget)
        used[budget] = [hit.used for hit in noted]
        assert [hit.id for hit in noted] == ["0", "1", "2"]
        assert [len(part) for part in parts] == [hit.used for hit in noted if hit.used]
        total = sum(processor([part])["input_ids"].shape[1] for part in parts)
        assert budget is None or total <= budget
    assert used[1] == [0, 0, 0]
    assert [1, 0, 1] in used.values()  # the picture does not fit, what comes after it does
    assert used[None] == used[sum(size)] == [2, 2, 1]


def test_a_document_begins_with_its_first_slices(llava):
    processor = llava[1]
    [found] = hits(["Two cats sleep.", picture(0), "They are grey."])
    length = processor([["Two cats sleep.", picture(0)]])["input_ids"].shape[1]
    [noted], [parts] = fit([found], processor, length)
    assert noted.used == 2
    assert parts[0] == "Two cats sleep."
    assert ImageChops.difference(parts[1], picture(0)).getbbox() is None
    [noted], [parts] = fit(hits("One. Two. Three."), processor, processor(["One. Two."])["input_ids"].shape[1], True)
    assert (noted.used, parts) == (2, ["One. Two."])


def test_a_document_that_is_a_chat(llava):
    chat = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A cat."}]
    [noted], [parts] = fit(hits(chat), llava[1], 100)
    assert (noted.used, parts) == (2, ["What is it?", "A cat."])


# ---- Answers ----


def test_an_answer_has_what_it_was_made_from(rag, index):
    answer = rag.answer("Where is the boat?", **NEW)
    expected = index.search("Where is the boat?", 2)
    assert [(hit.id, hit.slice) for hit in answer.hits] == [(hit.id, hit.slice) for hit in expected]
    assert [hit.score for hit in answer.hits] == pytest.approx([hit.score for hit in expected], abs=1e-5)
    assert answer.note is None
    assert answer.prompt[-1] == "Where is the boat?"
    values = json.loads(json.dumps(answer.to_dict()))
    assert set(values) == {
        "answer",
        "documents",
        "note",
        "prompt_tokens",
        "reused_tokens",
        "cited",
        "unknown_citations",
    }
    assert set(values["documents"][0]) == {"id", "score", "slice", "used", "metadata"}


def test_the_answer_is_that_of_the_prompt(rag, llava):
    model, processor = llava
    answer = rag.answer([picture(0), "What is this?"], **NEW)
    features = processor([[{"role": "user", "content": list(answer.prompt)}]], add_generation_prompt=True)
    sequences = model.generate(**features, **NEW)[:, features["input_ids"].shape[1] :]
    assert answer.text == processor.batch_decode(sequences, skip_special_tokens=True)[0].strip()
    assert answer.prompt_tokens == features["input_ids"].shape[1]


def test_nothing_good_enough_is_said(rag):
    plain = rag.generate("Where is the boat?", **NEW)
    answer = rag.answer("Where is the boat?", min_score=0.999, **NEW)
    assert answer.text == plain
    assert answer.hits == ()
    assert answer.prompt == ("Where is the boat?",)
    assert "below min_score=0.999: answered without documents" in answer.note
    nothing = rag.answer("Where?", where={"kind": "nothing"}, **NEW)
    assert nothing.note == "nothing was found: answered without documents."


def test_what_is_found_is_told_before_it_is_answered(rag):
    told = []
    answers = rag.answer(["Who sleeps?", "Where?"], on_found=lambda *found: told.append(found), **NEW)
    assert told == [(answer.hits, answer.note) for answer in answers]
    rag.answer("Where?", where={"kind": "nothing"}, on_found=lambda *found: told.append(found), **NEW)
    assert told[-1] == ((), "nothing was found: answered without documents.")


def test_documents_that_do_not_fit_are_named(llava, index):
    rag = SugarRag(*llava, index, max_context_tokens=1)
    answer = rag.answer("Where is the boat?", **NEW)
    assert [hit.used for hit in answer.hits] == [0, 0, 0]
    assert answer.note == "no first slice fits into 1 tokens: answered without documents."


def test_filters(rag):
    assert {hit.id for hit in rag.answer("Where?", where={"kind": "thing"}, top_k=3, **NEW).hits} == {"boat", "cats"}


@pytest.mark.parametrize("options", [{}, {"template": QUESTION_FIRST}, {"template": "{documents}\n\n{question}"}])
def test_a_batch_gives_the_answers_of_each_alone(llava, index, options):
    rag = SugarRag(*llava, index, top_k=2, **options)
    chat = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    questions = ["Where is the boat?", [picture(0), "Is this", picture(1), "the tower?"], "Who sleeps?"]
    questions.append([*chat, {"role": "user", "content": "Who sleeps?"}])
    alone = [rag.answer(question, **NEW) for question in questions]
    together = rag.answer(questions, batch_size=3, **NEW)
    for one, other in zip(alone, together, strict=True):
        assert one.text == other.text
        assert [hit.id for hit in one.hits] == [hit.id for hit in other.hits]
        assert (one.prompt_tokens, other.reused_tokens) == (other.prompt_tokens, 0)
    assert (alone[0].reused_tokens > 0) == (rag.template is QUESTION_FIRST)


def test_sequences_of_one_question_stay_together(rag):
    answers = rag.answer(["Who?", "Where is the boat, and why?"], num_beams=2, num_return_sequences=2, **NEW)
    assert len(answers) == 2
    assert [answer.prompt[-1] for answer in answers] == ["Who?", "Where is the boat, and why?"]


def test_what_can_be_an_index(llava, index, rag):
    expected = [hit.id for hit in rag.answer("Where is the boat?", **NEW).hits]
    embedder = SugarEmbedder(*llava)
    documents = [Document(row["id"], row.get("document") or row["text"]) for row in FACTS]
    vectors = embedder.encode([document.load() for document in documents], show_progress=False)
    for other in (index.folder, str(index.folder), FACTS, CandidateIndex(documents, vectors)):
        assert [
            hit.id for hit in SugarRag(*llava, other, top_k=2).answer("Where is the boat?", **NEW).hits
        ] == expected
    with pytest.raises(ValueError, match="CandidateIndex knows no metadata"):
        SugarRag(*llava, FACTS).answer("Who?", where={"kind": "thing"}, **NEW)
    with pytest.raises(ValueError, match="empty list"):
        SugarRag(*llava, [])


def test_settings_of_the_index_are_those_of_the_question(llava, tmp_path):
    embedder = SugarEmbedder(*llava, positions="all", truncate_dim=5, split_sentences=True)
    index = SugarIndex.build(tmp_path / "i", FACTS, embedder, show_progress=False)
    rag = SugarRag(*llava, index.folder, template=QUESTION_FIRST, query_form="sample", top_k=3)
    found = rag.answer("They are grey.", **NEW).hits
    expected = index.search("They are grey.", 3)
    assert [(hit.id, hit.slice) for hit in found] == [(hit.id, hit.slice) for hit in expected]
    assert SugarRag(*llava, index, template=QUESTION_FIRST).answer("Who?", **NEW).hits[0].score <= 1 + 1e-5


def test_another_model_is_refused(index):
    with pytest.raises(IndexMismatchError, match="was made with another model"):
        SugarRag(*cached_sugar("qwen2_vl"), index)


def test_options_that_are_refused(llava, index, subtests):
    for options, message in [
        ({"top_k": 0}, "top_k=0: give 1 or more"),
        ({"max_context_tokens": 0}, "max_context_tokens=0"),
        ({"cached_prompts": -1}, "cached_prompts=-1"),
        ({"query_form": "word"}, "query_form='word': give one of prompt, sample"),
        ({"template": "{question}"}, "template, text"),
    ]:
        with (
            subtests.test(message=message),
            pytest.raises(ValueError, match=message),
        ):
            SugarRag(*llava, index, **options)


# ---- Words, and instructions for embeddings ----


def test_words_find_what_the_index_finds_by_them(rag, index, llava, subtests):
    question = [picture(0), "Do cats sleep in the harbour?"]
    for mode in ("text", "hybrid"):
        expected = index.search({"query": question}, 2, mode=mode)
        for other in (rag, SugarRag(*llava, index, top_k=2, mode=mode)):
            with subtests.test(mode=mode, default=other.defaults.mode):
                given = {"mode": mode} if other is rag else {}
                answer = other.answer(question, **given, **NEW)
                assert [(hit.id, hit.score, hit.text_score) for hit in answer.hits] == [
                    (hit.id, hit.score, hit.text_score) for hit in expected
                ]
                assert [hit.used > 0 for hit in answer.hits] == [True] * len(expected)
                batch = other.answer([question, ["Where is the boat?"]], batch_size=2, **given, **NEW)
                assert [hit.id for hit in batch[0].hits] == [hit.id for hit in expected]
                assert batch[0].text == answer.text
    found = SugarRag(*llava, index, top_k=2, mode="text").find(question)
    assert [hit.id for hit in found] == [hit.id for hit in index.search({"query": question}, 2, mode="text")]


def test_only_words_need_no_embedding(llava, index, monkeypatch):
    rag = SugarRag(*llava, index, mode="text")
    monkeypatch.setattr(SugarEmbedder, "encode", None)
    assert rag.answer("Which boat?", **NEW).hits[0].id == "boat"
    assert rag.find("Two cats")[0].id == "cats"


def test_the_question_first_is_reused_whatever_finds_documents(llava, index):
    rag = SugarRag(*llava, index, template=QUESTION_FIRST, top_k=2)
    for mode in ("text", "hybrid"):
        answer = rag.answer("Where is the boat?", mode=mode, **NEW)
        assert answer.reused_tokens > 0
        assert answer.hits[0].text_score


def test_the_least_score_is_of_cosines(rag, index):
    cosines = {hit.id: hit.vector_score for hit in index.search("Two cats sleep.", 3, mode="hybrid")}
    least = sorted(cosines.values())[1]
    answer = rag.answer("Two cats sleep.", mode="hybrid", top_k=3, min_score=least - 1e-6, **NEW)
    assert {hit.id for hit in answer.hits} == {name for name, cosine in cosines.items() if cosine >= least}
    assert "below min_score=1.5" in rag.answer("Two cats sleep.", mode="hybrid", min_score=1.5, **NEW).note
    with pytest.raises(ValueError, match=r"min_score=0.1.*mode='text' computes none"):
        rag.answer("Two cats sleep.", mode="text", min_score=0.1, **NEW)


def test_an_instruction_is_embedded_and_not_searched_for(llava, index):
    prompt = "Find the document about the tower."
    rag = SugarRag(*llava, index, top_k=3, prompt=prompt)
    for mode in ("vector", "hybrid"):
        expected = index.search("Who sleeps?", 3, mode=mode, prompt=prompt)
        for hits in (
            rag.answer("Who sleeps?", mode=mode, **NEW).hits,
            rag.answer(["Who sleeps?"], mode=mode, **NEW)[0].hits,
        ):
            assert [hit.id for hit in hits] == [hit.id for hit in expected]
            assert [hit.vector_score for hit in hits] == pytest.approx(
                [hit.vector_score for hit in expected], abs=1e-5
            )
            assert [hit.text_score for hit in hits] == [hit.text_score for hit in expected]
    assert rag.answer("Who sleeps?", **NEW).prompt[-1] == "Who sleeps?"
    plain = SugarRag(*llava, index, top_k=3).answer("Who sleeps?", prompt=prompt, **NEW)
    assert plain.hits[0].score == pytest.approx(rag.find("Who sleeps?")[0].score, abs=1e-5)
    assert plain.hits[0].score != pytest.approx(index.search("Who sleeps?")[0].score, abs=1e-5)


def test_ways_of_searching_that_are_refused(llava, index, rag, subtests):
    for call, message in [
        (lambda: rag.answer("Who?", mode="words", **NEW), "mode='words': give one of"),
        (lambda: SugarRag(*llava, index, mode="words"), "mode='words': give one of"),
        (lambda: SugarRag(*llava, index, mode="text", min_score=0.3), "mode='text' computes none"),
        (lambda: SugarRag(*llava, FACTS, mode="hybrid"), "mode='hybrid' needs a SugarIndex"),
        (lambda: SugarRag(*llava, FACTS).answer("Who?", mode="text", **NEW), "mode='text' needs a SugarIndex"),
        (lambda: rag.answer(["Who?", [picture(0)]], mode="text", **NEW), "question 1 has no words"),
        (lambda: rag.answer("?!", mode="text", **NEW), "question has no words"),
        (lambda: SugarRag(*llava, index, query_form="prompt", prompt="a"), "prompt= goes with query_form='sample'"),
    ]:
        with subtests.test(message=message), pytest.raises(ValueError, match=message):
            call()
    assert rag.answer(picture(0), mode="hybrid", **NEW).hits  # by vectors alone


# ---- The pipeline ----


@pytest.fixture(scope="module")
def ask(llava, index):
    model, processor = llava
    return pipeline("sugar-rag", model=model, processor=processor, index=index, top_k=2)


def test_pipeline(ask, rag):
    found = ask("Where is the boat?", **NEW)
    expected = rag.answer("Where is the boat?", **NEW)
    assert found["answer"] == expected.text
    assert [entry["id"] for entry in found["documents"]] == [hit.id for hit in expected.hits]
    assert found["documents"][0]["document"] == expected.hits[0].document.load()
    several = ask(["Where is the boat?", {"query": [picture(0), "What?"]}], top_k=1, **NEW)
    assert [len(each["documents"]) for each in several] == [1, 1]
    chat = [{"role": "user", "content": "Where is the boat?"}]
    assert ask(chat, **NEW)["answer"] == found["answer"]
    by_words = ask("Where is the boat?", mode="text", **NEW)
    assert [entry["id"] for entry in by_words["documents"]] == [
        hit.id for hit in rag.answer("Where is the boat?", mode="text", **NEW).hits
    ]
    assert ask(["Where is the boat?"] * 2, batch_size=1, **NEW) == [found, found]


def test_pipeline_names_what_is_wrong(ask, llava):
    with pytest.raises(ValueError, match="index is missing"):
        pipeline("sugar-rag", model=llava[0], processor=llava[1])
    with pytest.raises(ValueError, match="question 1"):
        ask(["Who?", [" "]], **NEW)


# ---- The mini model ----


def test_facts_are_found_and_are_in_the_prompt():
    """The document that a question is about comes first, and the prompt holds it."""
    rows = list(picturebook.load("test", "story", 12))
    rag = SugarRag.from_pretrained(picturebook.checkpoint("mini-sugar"), rows, top_k=2)
    found = []
    for number in range(0, 12, 4):
        story = rag.index.documents[number].load()
        answer = rag.answer(story[:-1], **NEW)  # all but its end
        found.append(answer.hits[0].id == rows[number]["id"])
        assert all(hit.used == len(rag.processor.slices(hit.document.load())) for hit in answer.hits)
    assert sum(found) >= 2


def test_one_question_or_a_list(rag):
    for one in ("Who?", picture(0), [picture(0), "Who?"], [{"role": "user", "content": "Who?"}], {"query": ["Who?"]}):
        assert rag.answer(one, **NEW).text is not None
    for several in (["Who?"], ["Who?", "Where?"], [[picture(0), "Who?"]], [{"query": ["Who?"]}], [picture(0)]):
        assert len(rag.answer(several, **NEW)) == len(several)
    with pytest.raises(ValueError, match="question: has neither"):
        rag.answer([], **NEW)
