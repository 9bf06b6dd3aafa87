"""Conversations whose turns retrieve or generate."""

import pytest
from builders import BUILDERS, cached_sugar, picture
from PIL import ImageChops
from transformers import pipeline

from sugar_hf import SugarChat
from sugar_hf.retrieval import route_by_words


def user(*content, **more):
    return {"role": "user", "content": list(content), **more}


DOCUMENTS = [
    {"id": "boat", "document": ["A red boat.", picture(5)]},
    {"id": "tower", "document": [picture(6)], "metadata": {"kind": "place"}},
    {
        "id": "talk",
        "document": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A cat."}],
    },
]
NEW = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}


@pytest.fixture(scope="module")
def llava():
    return cached_sugar("llava")


@pytest.fixture(scope="module")
def chat(llava):
    return SugarChat(*llava, DOCUMENTS)


def test_words_route():
    assert route_by_words([user("Please find a picture of a boat.")]) == "retrieve"
    assert route_by_words([user(picture(0), "Look for the same")]) == "retrieve"
    assert route_by_words([user("What is in the research?")]) == "generate"
    assert (
        route_by_words([user("Show me a boat."), {"role": "assistant", "content": "Here."}, user("Why?")])
        == "generate"
    )
    assert route_by_words([user(picture(0))]) == "generate"


def test_retrieve_then_ask_about_it(chat, llava):
    talk = chat([user("Find a boat.")], top_k=2)
    reply = talk[-1]
    assert (reply["role"], reply["task"]) == ("assistant", "retrieve")
    expected = chat.rag.find(["Find a boat."], top_k=2)
    assert [entry["id"] for entry in reply["retrieved"]] == [hit.id for hit in expected]
    kinds = [part["type"] for part in reply["content"]]
    assert kinds == [
        "image" if not isinstance(part, str) else "text"
        for hit in expected
        for part in (["What is it?", "A cat."] if hit.id == "talk" else hit.document.load())
    ]
    asked = [*talk, user("What is in the second one?")]
    answered = chat(asked, **NEW)
    assert (answered[-1]["task"], answered[-1].keys() & {"retrieved"}) == ("generate", set())
    model, processor = llava
    bare = [{key: message[key] for key in ("role", "content")} for message in asked]
    features = processor([bare], add_generation_prompt=True)
    sequences = model.generate(**features, **NEW)[:, features["input_ids"].shape[1] :]
    assert answered[-1]["content"][0]["text"] == processor.batch_decode(sequences, skip_special_tokens=True)[0].strip()
    assert answered[:3] == asked
    assert chat([*answered, user("And why?")], **NEW)[-1]["role"] == "assistant"


def test_every_family_goes_on_after_pictures_were_found(subtests):
    for family in BUILDERS:
        with subtests.test(family=family):
            chat = SugarChat(*cached_sugar(family), DOCUMENTS[:2], top_k=2)
            if chat.rag.processor.chat_template is None:
                with pytest.raises(ValueError, match="chat template"):
                    chat([user("Find a boat."), {"role": "assistant", "content": "Here."}, user("What is it?")], **NEW)
                return
            talk = chat([*chat([user("Find a boat.")]), user("What is in it?")], **NEW)
            assert [message["role"] for message in talk] == ["user", "assistant"] * 2
            pictures = [part for part in talk[1]["content"] if part["type"] == "image"]
            assert any(ImageChops.difference(part["image"], picture(6)).getbbox() is None for part in pictures)


def test_a_task_goes_before_the_router(llava):
    chat = SugarChat(*llava, DOCUMENTS, router=lambda messages: "answer", top_k=2)
    assert chat([user("Find a boat.", task="generate")], **NEW)[-1]["task"] == "generate"
    answered = chat([user("What is it?")], **NEW)[-1]
    assert answered["task"] == "answer"
    assert len(answered["retrieved"]) == 2
    assert answered["content"][0]["text"] == chat.rag.answer([user("What is it?")], **NEW).text
    assert chat([user("A place?", task="retrieve")], top_k=1)[-1]["task"] == "retrieve"


def test_the_whole_conversation_can_be_the_query(llava):
    chat = SugarChat(*llava, DOCUMENTS, query="conversation", top_k=1)
    talk = [user("A red boat."), {"role": "assistant", "content": "Yes."}, user("Find more.", task="retrieve")]
    expected = chat.rag.embedder.encode([talk], show_progress=False)
    best = float((expected @ chat.rag.index.embeddings.T).max())
    assert chat(talk)[-1]["retrieved"][0]["score"] == pytest.approx(best, abs=1e-5)


def test_nothing_found_is_said(llava):
    chat = SugarChat(*llava, DOCUMENTS, min_score=0.9999)
    reply = chat([user("Find a boat.")])[-1]
    assert reply["retrieved"] == []
    assert reply["content"] == [{"type": "text", "text": "Nothing was found."}]


def test_what_is_refused(chat, subtests):
    for messages, message in [
        ("Find it.", "messages has to be a list"),
        ([], "messages has to be a list"),
        ([user("a"), {"role": "assistant", "content": "b"}], "ends with the turn of assistant"),
        ([user("a", task="sing")], "task 'sing' is none of retrieve, generate, answer"),
        ([user(" ")], "the text is empty"),
    ]:
        with subtests.test(message=message):
            with pytest.raises(ValueError, match=message):
                chat(messages)
            with pytest.raises(ValueError, match="query='all'"):
                SugarChat(chat.rag.model, chat.rag.processor, DOCUMENTS, query="all")


def test_pipeline(llava, chat):
    model, processor = llava
    talk = pipeline("sugar-chat", model=model, processor=processor, index=DOCUMENTS, top_k=1)
    one = talk([user("Find a boat.")])
    assert one[0]["generated_text"][0] == user("Find a boat.")
    assert one[0]["generated_text"][1]["retrieved"] == chat([user("Find a boat.")], top_k=1)[1]["retrieved"]
    several = talk([[user("Find a boat.")], [user("Why?")]], **NEW)
    assert [each[0]["generated_text"][-1]["task"] for each in several] == ["retrieve", "generate"]
