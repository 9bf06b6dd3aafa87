"""The common schema: what `validate_row` refuses, and what `to_sample` makes of a row."""

import copy
import io
import pickle

import pytest
from datasets import Dataset
from PIL import Image

from sugar_hf.data import FEATURES, BadSampleError, image_part, text_part, to_sample, validate_row


def png(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def document():
    content = [text_part("one"), image_part(), image_part(), text_part("two")]
    return {
        "id": "d",
        "source": "here",
        "messages": [{"role": "document", "content": content}],
        "images": [{"bytes": png("red"), "path": None}, {"bytes": png("blue"), "path": None}],
    }


@pytest.fixture
def chat():
    return {
        "id": "c",
        "source": "here",
        "messages": [
            {"role": "user", "content": [image_part(), text_part("what?")]},
            {"role": "assistant", "content": [text_part("a red square")]},
        ],
        "images": [{"bytes": png("red"), "path": None}],
    }


def test_document_becomes_a_list_in_reading_order(document):
    sample = to_sample(document)
    assert [item if isinstance(item, str) else item.getpixel((0, 0)) for item in sample] == [
        "one",
        (255, 0, 0),
        (0, 0, 255),
        "two",
    ]


def test_chat_becomes_messages(chat):
    sample = to_sample(chat)
    assert [message["role"] for message in sample] == ["user", "assistant"]
    picture, question = sample[0]["content"]
    assert picture["type"] == "image"
    assert picture["image"].getpixel((0, 0)) == (255, 0, 0)
    assert question == {"type": "text", "text": "what?"}
    assert sample[1]["content"] == [{"type": "text", "text": "a red square"}]


def test_round_trip_through_arrow(document, chat):
    stored = Dataset.from_list([document, chat], features=FEATURES)
    assert stored.features == FEATURES
    assert stored[0] == document
    assert stored[1] == chat
    assert to_sample(stored[0])[1].getpixel((0, 0)) == (255, 0, 0)


def set_at(row, path, value):
    for key in path[:-1]:
        row = row[key]
    if value is KeyError:
        del row[path[-1]]
    else:
        row[path[-1]] = value


CONTENT = ("messages", 0, "content")
BROKEN = [
    (("id",), 3, "id"),
    (("source",), None, "source"),
    (("messages",), [], "messages"),
    (("messages",), "hi", "messages"),
    (("messages", 0), "hi", r"messages\[0\]"),
    (("messages", 0, "role"), "gpt", r"messages\[0\].role"),
    (("messages", 0, "role"), KeyError, r"messages\[0\].role"),
    (CONTENT, [], r"messages\[0\].content"),
    (CONTENT, "hi", r"messages\[0\].content"),
    ((*CONTENT, 0), "hi", r"messages\[0\].content\[0\]"),
    ((*CONTENT, 0, "type"), "video", r"content\[0\].type"),
    ((*CONTENT, 0, "text"), " \n", r"content\[0\].text"),
    ((*CONTENT, 0, "text"), None, r"content\[0\].text"),
    ((*CONTENT, 0, "text"), "half \ud800", "not valid Unicode"),
    (("images",), None, "images"),
    (("images",), [], "images"),
]


def test_broken_rows_name_the_field(document, subtests):
    for path, value, field in BROKEN:
        with subtests.test(path=f"{path!r:.60}", value=f"{value!r:.60}", field=f"{field!r:.60}"):
            broken = copy.deepcopy(document)
            set_at(broken, path, value)
            with pytest.raises(BadSampleError, match=field):
                validate_row(broken)


def test_a_document_stands_alone(document, chat):
    document["messages"] += chat["messages"]
    with pytest.raises(BadSampleError, match="only message"):
        validate_row(document)


def test_to_sample_names_sample_source_and_image(document):
    document["images"][1]["bytes"] = document["images"][1]["bytes"][:40]
    with pytest.raises(BadSampleError) as caught:
        to_sample(document)
    error = caught.value
    assert (error.sample, error.file, error.field) == ("d", "here", "images[1]")
    assert str(error).startswith("here (sample 'd'): images[1]: ")


def test_to_sample_leaves_the_row_alone(chat):
    before = copy.deepcopy(chat)
    to_sample(chat)
    assert chat == before


def test_error_survives_pickling():
    error = BadSampleError("why", field="f", mend="do this", file="x.json", line=3, row=2, sample="s")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == "x.json:3 (row 2, sample 's'): f: why. do this"
    assert again.line == 3
