"""Rows in the forms that other tools write: no picture, film or text of them is lost without a word."""

import io
import json

import pytest
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from sugar_hf.data import BadSampleError, SkippedRowsWarning, load_dataset_file, read_obelics, to_row, to_sample

RED, BLUE = "red.png", "blue.png"


def png(colour="red"):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    for name in ("red", "blue"):
        (tmp_path / f"{name}.png").write_bytes(png(name))
    return tmp_path


def seen(sample):
    """Roles and contents, an image as the channel that it fills."""

    def part(item):
        if isinstance(item, dict):
            item = item["text"] if item["type"] == "text" else item["image"]
        return item if isinstance(item, str) else ("r", "g", "b")[max(range(3), key=item.getpixel((0, 0)).__getitem__)]

    if not isinstance(sample[0], dict):
        return [part(item) for item in sample]
    return [(message["role"], [part(item) for item in message["content"]]) for message in sample]


def read(folder, row):
    """The row as a file's reader and as `to_sample` have it, which must be one."""
    (folder / "data.jsonl").write_text(json.dumps(row) + "\n")
    return seen(to_sample(load_dataset_file(folder / "data.jsonl")[0]))


QUESTION, ANSWER = "<image>what colour?", "red."
PLACED = [("user", ["r", "what colour?"]), ("assistant", ["red."])]
LLAVA = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]
CHAT = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
PLAIN = [{"role": "user", "content": "what colour?"}, {"role": "assistant", "content": ANSWER}]
PARTS = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what colour?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]},
]

FORMS = {
    "LLaMA-Factory": {"conversations": LLAVA, "images": [RED]},
    "one name under images": {"conversations": LLAVA, "images": RED},
    "LLaVA": {"conversations": LLAVA, "image": RED},
    "LLaVA with a list": {"conversations": LLAVA, "image": [RED]},
    "both keys, one image": {"conversations": LLAVA, "image": RED, "images": [RED]},
    "conversations with roles": {"conversations": CHAT, "images": [RED]},
    "messages with placeholders": {"messages": CHAT, "images": [RED]},
    "messages and image": {"messages": CHAT, "image": RED},
    "messages from speakers": {"messages": LLAVA, "images": [RED]},
    "messages without places (TRL, ms-swift)": {"messages": PLAIN, "images": [RED]},
    "messages with parts (TRL)": {"messages": PARTS, "images": [RED]},
    "prompt and completion": {"prompt": PARTS[:1], "completion": PARTS[1:], "images": [RED]},
    "prompt of texts": {"prompt": PLAIN[:1], "completion": PLAIN[1:], "image": RED},
    "query and response": {"query": QUESTION, "response": ANSWER, "images": [RED]},
    "query without places": {"query": "what colour?", "response": ANSWER, "images": [RED]},
    "instruction and output": {"instruction": QUESTION, "input": "", "output": ANSWER, "images": [RED]},
    "empty columns beside": {"conversations": LLAVA, "images": [RED], "image": None, "videos": [], "audio": ""},
    "where the image comes from": {"conversations": LLAVA, "image": RED, "image_url": "http://x.org/7.png"},
    "its name again": {"conversations": LLAVA, "image": RED, "file_name": f"train/{RED}", "image_id": 7},
}


def test_forms_of_other_tools_are_read(folder, monkeypatch, subtests):
    for name, row in FORMS.items():
        with subtests.test(name=name):
            assert read(folder, row) == PLACED
            monkeypatch.chdir(folder)
            assert seen(to_sample(row)) == PLACED  # as a row handed to a trainer


def test_speakers_systems_and_histories(folder):
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "look"},
        {"from": "function_call", "value": "look()"},
        {"from": "observation", "value": QUESTION},
        {"from": "gpt", "value": ANSWER},
    ]
    found = read(folder, {"conversations": turns, "images": [BLUE]})
    assert [role for role, _ in found] == ["system", "user", "assistant", "user", "assistant"]
    assert found[3] == ("user", ["b", "what colour?"])
    row = {"system": "Be brief.", "history": [["Hi", "Ho"]], "query": QUESTION, "response": ANSWER, "images": [RED]}
    assert read(folder, row) == [("system", ["Be brief."]), ("user", ["Hi"]), ("assistant", ["Ho"]), *PLACED]
    assert read(folder, {"conversations": LLAVA, "image": RED, "system": "Be brief."})[0] == ("system", ["Be brief."])


def test_images_stand_in_reading_order(folder):
    turns = [{"from": "human", "value": "one <image> two <image>"}, {"from": "gpt", "value": "b."}]
    assert read(folder, {"conversations": turns, "images": [RED, BLUE]})[0] == ("user", ["one", "r", "two", "b"])
    parts = [{"type": "image", "index": 1}, {"type": "text", "text": "?"}]
    with pytest.raises(BadSampleError, match=r"messages\[0\].content\[0\]: it asks for image 1, but is image part 0"):
        read(folder, {"messages": [{"role": "user", "content": parts}], "images": [RED]})


BARE = [{"from": "human", "value": "what colour?"}, {"from": "gpt", "value": ANSWER}]
LOST = {
    "videos": ({"conversations": BARE, "videos": ["a.mp4"]}, "videos"),
    "video beside images": ({"conversations": LLAVA, "images": [RED], "video": "a.mp4"}, "video"),
    "audios of messages": ({"messages": PLAIN, "audios": ["a.wav"]}, "audios"),
    "another name": ({"conversations": BARE, "image_path": RED}, "image_path"),
    "another picture": ({"conversations": LLAVA, "image": RED, "image_path": BLUE}, "image_path"),
    "an image file under any name": ({"conversations": BARE, "figure": RED}, "figure"),
    "pixels": ({"conversations": BARE, "pixel_values": [[1.0]]}, "pixel_values"),
    "inside a dict": ({"conversations": BARE, "visual": {"kind": "photo", "path": RED}}, "visual"),
    "a list of them": ({"messages": PLAIN, "file_names": [RED, BLUE]}, "file_names"),
    "bytes in base64": ({"messages": PLAIN, "image_b64": "data:image/png;base64,iVBO"}, "image_b64"),
    "a turn's own": ({"messages": [{**PLAIN[0], "images": [RED]}, PLAIN[1]]}, "messages[0].images"),
    "a part's own": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "image": RED}]}]},
        "messages[0].content[0].image",
    ),
    "two in a part": (
        {"messages": [{"role": "user", "content": [{"type": "image", "image": RED, "video": "a.mp4"}]}]},
        "messages[0].content[0].video",
    ),
    "pairs": ({"image": RED, "text": "a", "video": "a.mp4"}, "video"),
    "obelics": ({"texts": ["a"], "images": [None], "videos": ["a.mp4"]}, "videos"),
    "mmc4": ({"text_list": ["a"], "image_info": [], "image": RED}, "image"),
    "both keys": ({"conversations": LLAVA, "image": RED, "images": [BLUE]}, "images"),
    "no image for a placeholder": ({"conversations": LLAVA}, "conversations[0].value"),
    "at the end of a line": ({"messages": [{"role": "user", "content": "what?\n<image>"}, PLAIN[1]]}, "messages[0]"),
    "a film's placeholder": ({"messages": [{"role": "user", "content": "<video>what?"}, PLAIN[1]]}, "messages[0]"),
    "a name in the text": ({"messages": [{"role": "user", "content": f"<img>{RED}</img>?"}, PLAIN[1]]}, "messages[0]"),
    "an empty image": ({"conversations": LLAVA, "images": [None]}, "images"),
    "fewer placeholders": ({"conversations": LLAVA, "images": [RED, BLUE]}, "images"),
    "no placeholder": ({"conversations": BARE, "images": [RED]}, "images"),
    "fewer in messages": ({"messages": CHAT, "images": [RED, BLUE]}, "images"),
    "another mark": ({"query": "<|image_1|>what?", "response": "a", "images": [RED]}, "query"),
    "an answer not to be learnt": ({"messages": [PLAIN[0], {**PLAIN[1], "loss": False}]}, "messages[1]"),
    "a choice": ({"conversations": LLAVA, "images": [RED], "rejected": {"from": "gpt", "value": "b"}}, "rejected"),
    "a prompt with answers": ({"prompt": PLAIN, "completion": PLAIN[1:]}, "prompt"),
    "two captions": ({"image": RED, "text": "a", "caption": "b"}, "caption"),
    "an image and a text in a part": (
        {"messages": [{"role": "user", "content": [{"type": "image", "image": RED, "text": "a"}]}]},
        "messages[0].content[0].text",
    ),
}


def test_what_would_be_lost_is_refused_by_name(folder, monkeypatch, subtests):
    for name, (row, field) in LOST.items():
        with subtests.test(name=name):
            with pytest.raises(BadSampleError) as caught:
                read(folder, row)
            assert caught.value.field.startswith(field)
            assert "data.jsonl:1 (row 0" in str(caught.value)
            monkeypatch.chdir(folder)
            with pytest.raises(BadSampleError) as caught:
                to_sample({"id": "mine", **row})
            assert caught.value.field.startswith(field)
            assert caught.value.sample == "mine"


def test_a_refused_column_can_be_left_out(folder):
    row = {"conversations": LLAVA, "images": [RED], "videos": ["a.mp4"]}
    (folder / "data.jsonl").write_text(json.dumps(row))
    assert seen(to_sample(load_dataset_file(folder / "data.jsonl", drop_columns=["videos"])[0])) == PLACED
    found = load_dataset_file(folder / "data.jsonl", columns=["conversations", "images"])
    assert seen(to_sample(found[0])) == PLACED
    with pytest.raises(ValueError, match="no row has the column 'video'"):
        load_dataset_file(folder / "data.jsonl", columns=["conversations", "images", "video"])


def test_a_placeholder_in_a_sentence_is_text_with_a_warning(folder):
    turns = [{"from": "human", "value": "Is <image> a tag?"}, {"from": "gpt", "value": "No."}]
    with pytest.warns(UserWarning, match="inside a sentence of a row without images"):
        assert read(folder, {"conversations": turns})[0] == ("user", ["Is <image> a tag?"])


def test_rows_of_the_schema_are_looked_at_too():
    row = {"id": "a", "source": "b", "messages": PARTS, "images": [png()]}
    row["messages"] = [
        {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]},
    ]
    with pytest.raises(BadSampleError, match="that no image fills"):
        to_sample({**row, "images": []})
    with pytest.raises(BadSampleError, match="videos: it names a video"):
        to_sample({**row, "videos": ["a.mp4"]})


def trl_rows():
    features = Features(
        {
            "messages": List(
                {"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})}
            ),
            "images": List(ImageFeature()),
        }
    )
    messages = [
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "what colour?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "red."}]},
    ]
    images = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    return Dataset.from_list([{"messages": messages, "images": [image]} for image in images], features=features)


def test_rows_of_trl_get_an_id_and_a_source():
    rows = [to_row(row) for row in trl_rows()]
    assert [seen(to_sample(row))[0] for row in rows] == [("user", [c, "what colour?"]) for c in "rb"]
    assert len({row["id"] for row in rows}) == 2
    assert [row["id"] for row in rows] == [to_row(row)["id"] for row in trl_rows()]  # the content decides
    assert all(row["source"] == "row" for row in rows)
    assert to_row({**trl_rows()[0], "id": 7, "teacher": 1.0})["id"] == "7"
    assert to_row({**trl_rows()[0], "teacher": 1.0})["teacher"] == 1.0
    with pytest.raises(BadSampleError, match="of no known form: it has question, label"):
        to_row({"question": "a", "label": 3})


def test_a_name_of_the_hub_is_told_how_to_be_read():
    for name in ("HuggingFaceM4/VQAv2", "imdb"):
        with pytest.raises(FileNotFoundError, match=rf"hf://datasets/{name}\?split=..."):
            load_dataset_file(name)


HOLES = {
    "neither": ({"texts": ["a", None, "b"], "images": [None, None, None]}, "texts[1]"),
    "an empty name": ({"texts": ["a", "", "b"], "images": [None, " ", None]}, "texts[1]"),
    "a lost file": ({"texts": ["a", None, "b"], "images": [None, "gone.png", None]}, "images[1]"),
    "no text": ({"text_list": ["a", "", "b"], "image_info": []}, "text_list[1]"),
    "no name": (
        {"text_list": ["a", "b"], "image_info": [{"image_name": None, "matched_text_index": 0}]},
        "image_info[0]",
    ),
    "no place": (
        {"text_list": ["a", "b"], "image_info": [{"image_name": RED, "matched_text_index": None}]},
        "image_info[0]",
    ),
    "nothing": ({"text_list": ["a", "b"], "image_info": [None]}, "image_info[0]"),
}


def test_a_hole_costs_its_place_alone(folder, subtests):
    for name, (row, field) in HOLES.items():
        with subtests.test(name=name):
            (folder / "web.jsonl").write_text(json.dumps(row))
            with pytest.raises(BadSampleError):
                load_dataset_file(folder / "web.jsonl")
            skipped = []
            with pytest.warns(SkippedRowsWarning, match="1 broken rows or images left out, 1 rows kept"):
                found = load_dataset_file(folder / "web.jsonl", drop_broken_images=True, skipped=skipped)
            assert seen(to_sample(found[0])) == ["a", "b"]
            assert [error.field.startswith(field) for error in skipped] == [True]


def test_a_place_with_text_and_image_is_no_hole(folder):
    (folder / "web.jsonl").write_text(json.dumps({"texts": ["a", "b"], "images": [None, RED]}))
    with pytest.raises(BadSampleError, match="got both"):
        read_obelics(folder / "web.jsonl", drop_broken_images=True)
