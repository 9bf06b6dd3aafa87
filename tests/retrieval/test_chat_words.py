"""What a turn of a chat wants, by its words; and chats that are saved and read again."""

import json
from pathlib import Path

import pytest
from builders import cached_sugar, picture
from PIL import Image

from sugar_cli.loading import read_queries
from sugar_hf.retrieval import SugarChat, chat_to_json, route_by_words

WISHES = """\
Please find a picture of a boat.
Look for the same
Show me a red boat.
Find a boat.
find boats
Find me something blue
Can you find me a photo of a dog?
Could you please show me the second boat?
Would you look for a storm at sea
Will you search the archive for letters?
I want you to find a red house.
I'd like to find a picture of my dog
I'm looking for a lamp
I am searching for old maps
Search for cats
search cats
Retrieve all documents about Rome.
Recommend me a story
Can you recommend a restaurant with sea view?
Give me pictures of mountains.
Give me three photos of dogs.
Get me the page about Rome.
Hi, show me boats
Hello! Find the lighthouse.
OK, now show me some cats
Thanks. And find a dog.
I lost it. Please look for my red bag.
Do you have any pictures of boats?
Any photos of dogs?
Describe it and then find similar ones.
Fetch the article about bees
Look up Marie Curie
SHOW ME A BOAT
please please find it
Let's find a boat
Show me that one again
Show us more like it
Help me find a recipe for bread
Bring me a picture of snow
Find this boat
Give me the second boat
Tell me what it is, then find more like it.
""".splitlines()

OTHERS = """\
I find this funny.
I find it hard to believe
What did you find?
Did she find the ball?
What is in the research?
Why?
Find out why the sky is blue.
Give me a hint
Give me the answer
Give me a short summary of it.
Give me your opinion
Give me a break
Show me how to bake bread
Show me why this is wrong
Can you find the cat in this picture?
Find the cat in this picture.
Find the differences between these.
Find the error in my code
Where can I find water?
Who is in search of the boy?
To find the area, multiply both sides.
If you find a cat, tell me.
Don't show me boats
Do not search for it
I recommend the second one. Do you agree?
What do you recommend?
Would you recommend this?
The sign says "Show me the money". What is it?
The lost-and-found office is closed.
Finding Nemo is a film. Who made it?
He was found guilty
How do researchers search for planets?
The search was long.
Is this a recommended dose?
She gave me a book. What is its title?
Tell me more about the second one
Do you find this beautiful?
People find it strange
I will look for it myself
They show me respect
Does it give me cancer?
What would you find on a beach?
You should find a job
The boy who wants to find his dog is sad, is he?
A finder's fee
Can I find it alone?
What can I find here?
I agree and find this funny.
People go there and find gold. Why?
They search and retrieve the ball.
You look for it, and I wait.
Give me a second
Describe it and find it funny
Show me your work
""".splitlines()

MANY = 100_000
NEW = {"max_new_tokens": 2, "do_sample": False}


def user(*content):
    return {"role": "user", "content": list(content)}


def test_a_wish_for_documents(subtests):
    for text in WISHES:
        with subtests.test(text=text):
            assert route_by_words([user(text)]) == "retrieve"
            assert route_by_words([user(picture(0), f"I saw this. {text}")]) == "retrieve"


def test_no_wish_for_documents(subtests):
    for text in OTHERS:
        with subtests.test(text=text):
            assert route_by_words([user(text)]) == "generate"
            assert (
                route_by_words([user("Find a boat."), {"role": "assistant", "content": "Here."}, user(text)])
                == "generate"
            )


def test_hostile_texts_take_no_time(subtests):
    for piece in ["and ", "please, ", "find ", "i want to ", ", ", "tell. ", "find x in ", " ", '\t"']:
        with subtests.test(piece=piece):
            assert route_by_words([user(piece * (MANY // len(piece)) + "x")]) in ("retrieve", "generate")


@pytest.fixture(scope="module")
def chat():
    documents = [{"id": "boat", "document": ["A red boat.", picture(5)]}, {"id": "cat", "document": "A cat."}]
    return SugarChat(*cached_sugar("llava"), documents, top_k=2)


def test_a_saved_chat_goes_on(chat, tmp_path):
    picture(1).save(tmp_path / "a.png")
    talk = chat([user(picture(0), tmp_path / "a.png", "Find a boat.")])
    text = chat_to_json(talk)
    again = json.loads(text)
    assert [part["type"] for part in again[0]["content"]] == ["image", "image", "text"]
    assert again[1]["retrieved"] == talk[1]["retrieved"]
    asked = user("What is in it?")
    assert chat([*again, asked], **NEW)[-1] == chat([*talk, asked], **NEW)[-1]
    assert chat_to_json(again) == text
    (tmp_path / "chat.json").write_text(text)
    [query], _ = read_queries(None, tmp_path / "chat.json")
    processor = chat.rag.processor
    assert processor([query])["input_ids"].tolist() == processor([talk])["input_ids"].tolist()


def test_what_cannot_be_saved(subtests):
    for chat_, reason in [
        ("Find it.", "messages has to be a list"),
        ([user(object())], "JSON cannot represent"),
        ([user(Image.new("F", (4, 4)))], "mode 'F'"),
    ]:
        with subtests.test(chat_=f"{chat_!r:.60}", reason=reason), pytest.raises(ValueError, match=reason):
            chat_to_json(chat_)


TALK = [{"role": "user", "content": "Find a boat."}]


def test_forms_in_which_chats_are_saved(tmp_path, subtests):
    for saved in [
        TALK,
        {"messages": TALK},
        {"query": TALK},
        [{"generated_text": TALK}],
        {"query": {"messages": TALK}},
    ]:
        with subtests.test(saved=f"{saved!r:.60}"):
            (tmp_path / "chat.json").write_text(json.dumps(saved))
            [query], is_stream = read_queries(None, tmp_path / "chat.json")
            assert (query, is_stream) == (TALK, False)


DAMAGED = {
    "nothing": (b"", "query is no JSON"),
    "words of Python": (b"[{'role': 'user', 'content': 'a'}]", "query is no JSON.*saved with json.dumps"),
    "cut off": (b'[{"role": "user", "content": "a"', "query is no JSON"),
    "two lines": (b'{"query": "a"}\n{"query": "b"}', "query is no JSON.*one query a line in a .jsonl file"),
    "very deep": (b"[" * 100_000, "query is no JSON"),
    "no UTF-8": (b'["\xff"]', "is not UTF-8"),
    "a number": (b"3", "expected a text, a list of texts.*got 3"),
    "an empty list": (b"[]", "expected a text"),
    "null": (b"null", "expected a text"),
    "nested": (b'[["a"]]', "expected a text"),
    "a message without role": (b'[{"role": "user", "content": "a"}, {"content": "b"}]', "message 1 is no"),
    "a message without content": (b'[{"role": "user"}]', "message 0 is no"),
}


def test_damaged_chats(tmp_path, subtests):
    for name in DAMAGED:
        with subtests.test(name=name):
            data, reason = DAMAGED[name]
            file = tmp_path / "chat.json"
            file.write_bytes(data)
            with pytest.raises(ValueError, match=f"chat.json.*{reason}") as caught:
                read_queries(None, file)
            assert not isinstance(caught.value, UnicodeError)


def test_lines_end_where_lines_of_json_do(tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text('"a\u2028b"\n\n"c"\n', encoding="utf-8")
    assert read_queries(None, file) == ([["a\u2028b"], ["c"]], True)
    Path(file).write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        read_queries(None, file)
