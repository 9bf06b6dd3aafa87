"""Rows of a query and what answers it: each form of columns gives one pair, and faults name row and field."""

import csv
import json

import pytest
from builders import picture
from datasets import Dataset, Image, concatenate_datasets, load_from_disk

from sugar_hf.data import BadSampleError, load_dataset_file, read_pair, to_row, to_sample, to_samples
from sugar_hf.data.pair_columns import is_pair_row


@pytest.fixture
def folder(tmp_path):
    for name in ("red", "blue"):
        picture(1 if name == "red" else 2).save(tmp_path / f"{name}.png")
    return tmp_path


def load(folder, rows, **options):
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return load_dataset_file(folder / "data.jsonl", **options)


def texts(sample):
    """The texts of a sample, `<image>` for each image."""
    return [part["text"] or "<image>" for message in sample["messages"] for part in message["content"]]


def told(row):
    """What a row says, whatever it is called."""
    pair = read_pair(row)
    sides = [[texts(sample) for sample in side] for side in (pair.positives, pair.negatives)]
    return texts(pair.query), *sides, pair.scores, pair.instruction


PAIR = (["q"], [["p"]], [["n"], ["m"]], None, None)
FORMS = {
    "ours": {"query": "q", "positives": ["p"], "negatives": ["n", "m"]},
    "sentence-transformers": {"anchor": "q", "positive": "p", "negative_1": "n", "negative_2": "m"},
    "sentence-transformers, with a query": {"query": "q", "positive": "p", "negative": "n", "negative_1": "m"},
    "FlagEmbedding": {"query": "q", "pos": ["p"], "neg": ["n", "m"]},
    "MMEB": {"qry": "q", "qry_image_path": "", "pos_text": "p", "pos_image_path": "", "neg_text": ["n", "m"]},
    "cells of a table": {"query": "q", "positives": '["p"]', "negatives": '["n", {"text": "m"}]'},
    "a part, a list, a chat": {
        "query": {"type": "text", "text": "q"},
        "positives": [["p"]],
        "negatives": [{"messages": [{"role": "document", "content": [{"type": "text", "text": "n"}]}]}, {"text": "m"}],
    },
    "a mix of data sets": {
        "query": "q",
        "positives": ["p"],
        "negatives": ["n", "m"],
        "messages": None,
        "images": None,
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_gives_the_same_pair(folder, form):
    row = FORMS[form]
    assert is_pair_row(row)
    assert told(row) == PAIR
    assert told(load(folder, [row])[0]) == PAIR  # read from a file, and read once more as it is stored


def test_scores_and_instructions_under_their_names():
    scored = (["q"], [["p"]], [["n"]], [0.9, 0.1], "Find it.")
    ours = {"query": "q", "positives": ["p"], "negatives": ["n"], "scores": [0.9, 0.1], "instruction": "Find it."}
    flag = {"query": "q", "pos": ["p"], "neg": ["n"], "pos_scores": [0.9], "neg_scores": [0.1], "prompt": "Find it."}
    assert told(ours) == told(flag) == scored
    assert told({"sentence1": "q", "sentence2": "p", "score": 0.3}) == (["q"], [["p"]], [], [0.3], None)
    assert told({"sentence1": "q", "sentence2": "p", "label": 1})[3] == [1.0]
    assert told({"anchor": "q", "positive": "p", "negative": "n", "labels": [2, -1]})[3] == [2.0, -1.0]


def test_conversations_are_pairs_only_where_it_is_asked_for(folder):
    row = {
        "prompt": [{"role": "user", "content": "q"}],
        "completion": [{"role": "assistant", "content": "p"}],
    }
    assert load(folder, [row]).column_names == ["id", "source", "messages", "images"]
    assert not is_pair_row(row)
    assert not is_pair_row({"query": "q", "response": "p"})
    assert told(load(folder, [row], format="retrieval")[0])[:2] == (["q"], [["p"]])
    for other in ({"query": "q", "response": "p"}, {"question": "q", "answer": "p"}):
        assert told(load(folder, [other], format="retrieval")[0])[:2] == (["q"], [["p"]])


def test_images_wherever_a_sample_may_have_one(folder, subtests):
    asked = {"query": [{"image": "red.png"}, "q"], "positives": [{"image": "blue.png", "text": "p"}]}
    mmeb = {
        "qry": "<|image_1|>\nq",
        "qry_image_path": "red.png",
        "pos_text": "p",
        "pos_image_path": "blue.png",
        "neg_text": "",
        "neg_image_path": "",
    }
    pictures = {"query": [picture(1), "q"], "positives": [[picture(2), "p"]]}
    for name, row in {"ours": asked, "MMEB": mmeb}.items():
        with subtests.test(name):
            stored = load(folder, [row])[0]
            assert [image["path"] for image in stored["query"]["images"]] == [str(folder / "red.png")]
            query, positive = to_samples(stored)
            assert [part if isinstance(part, str) else part.size for part in query][1].strip() == "q"
            assert positive[0].tobytes() == to_samples(pictures)[1][0].tobytes()


def test_columns_of_images_in_a_dataset():
    rows = Dataset.from_dict({"anchor": ["q"], "positive": [picture(3)]}).cast_column("positive", Image())
    for each in (rows, rows.cast_column("positive", Image(decode=False))):
        assert to_samples(each[0])[1][0].tobytes() == picture(3).convert("RGB").tobytes()


def test_tables_keep_texts_and_numbers(folder):
    with open(folder / "data.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["sentence1", "sentence2", "score"], ["1", "01", "0.5"], ["2", "02", ""]])
    first, second = load_dataset_file(folder / "data.csv")
    assert told(first) == (["1"], [["01"]], [], [0.5], None)
    assert told(second)[3] is None
    Dataset.from_dict({"anchor": ["q"], "positive": ["p"], "negative_1": ["n"]}).to_parquet(folder / "data.parquet")
    stored = load_dataset_file(folder / "data.parquet")
    assert told(stored[0]) == (["q"], [["p"]], [["n"]], None, None)
    stored.save_to_disk(folder / "saved")
    assert load_from_disk(folder / "saved").features == load_dataset_file(folder / "saved").features == stored.features


def test_pairs_and_chats_in_one_dataset(folder):
    pairs = load(folder, [FORMS["ours"]])
    chats = load(folder, [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}])
    mixed = concatenate_datasets([pairs, chats])
    assert [is_pair_row(row) for row in mixed] == [True, False]
    assert [len(to_samples(row)) for row in mixed] == [4, 1]
    with pytest.raises(BadSampleError, match="to_samples"):
        to_sample(mixed[0])
    assert to_row(mixed[1])["messages"][1]["role"] == "assistant"


def test_ids_tell_pairs_apart():
    one, other = ({"query": "q", "positives": [text]} for text in "ab")
    assert read_pair(one).id == read_pair(dict(one)).id != read_pair(other).id
    assert read_pair({**one, "id": 7}).id == "7"


OTHERS = {"query": "q", "positives": ["p"]}
FAULTS = {
    "no positive": ({"query": "q", "positives": []}, "positives"),
    "negatives alone": ({"query": "q", "negatives": ["n"]}, "positives"),
    "no query": ({"query": " ", "positives": ["p"]}, "query"),
    "no list": ({"query": "q", "positives": "p"}, "positives"),
    "fewer scores": ({**OTHERS, "negatives": ["n"], "scores": [1.0]}, "scores"),
    "no scores in the list": ({**OTHERS, "scores": []}, "scores"),
    "scores of one side": ({"query": "q", "pos": ["p"], "neg": ["n"], "pos_scores": [1.0]}, "pos_scores"),
    "NaN": ({**OTHERS, "scores": [float("nan")]}, "scores"),
    "a score in words": ({**OTHERS, "negatives": ["n"], "scores": [1.0, "high"]}, "scores[1]"),
    "the query itself": ({"query": "q", "positives": ["p", " q"]}, "positives[1]"),
    "on both sides": ({**OTHERS, "negatives": ["n", "p"]}, "negatives[1]"),
    "an empty text": ({**OTHERS, "negatives": ["n", ""]}, "negatives[1]"),
    "a number": ({**OTHERS, "negatives": [["n", 3]]}, "negatives[0].document[1]"),
    "a missing image": ({**OTHERS, "negatives": [{"image": "lost.png"}]}, "negatives[0].image"),
    "the name of an image": ({"query": "q", "positives": ["red.png"]}, "positives[0]"),
    "an image that nothing uses": ({"anchor": "q", "positive": "p", "image": "red.png"}, "image"),
    "two queries": ({"query": "q", "anchor": "a", "positive": "p"}, "anchor"),
    "a list and a column": ({"query": "q", "positives": ["p"], "positive": "p"}, "positives"),
    "a conversation too": ({**OTHERS, "messages": [{"role": "user", "content": "a"}]}, "messages"),
    "a name that is not known": ({**OTHERS, "hard_negatives": ["n"]}, "hard_negatives"),
    "two kinds of scores": ({"sentence1": "q", "sentence2": "p", "score": 1.0, "label": 0}, "label"),
    "a mark without its image": ({"qry": "<|image_1|> q", "pos_text": "p"}, "qry"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_name_row_and_field(folder, name):
    row, field = FAULTS[name]
    row = {"id": "pair-7", **row}
    with pytest.raises(BadSampleError) as caught:
        load(folder, [OTHERS, row])
    error = caught.value
    assert (error.field, error.sample, error.line, error.row) == (field, "pair-7", 2, 1)
    assert error.mend or "empty" in error.reason or "neither" in error.reason
    skipped = []
    with pytest.warns(UserWarning, match="1 broken rows"):
        assert len(load(folder, [OTHERS, row], on_error="skip", skipped=skipped)) == 1
    assert skipped[0].field == field


def test_other_tools_rows_of_several_conversations_are_not_read_as_one():
    row = {"messages": [{"role": "user", "content": "a"}], "positive_messages": [[{"role": "user", "content": "b"}]]}
    with pytest.raises(BadSampleError, match="positive_messages"):
        to_row(row)
