"""Patterns that run over text of users take time in proportion to its length, and find what they always found."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sugar_hf.evaluation.benchmarks.tasks import webqa_tasks as webqa
from sugar_hf.model import images_sugar, samples_sugar
from sugar_hf.model.samples_sugar import parse_sample, sentence_spans

# What the patterns were, word for word; too slow for long strings.
SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]+[”’」』）]*|\n")
BASE64 = re.compile(r"[A-Za-z0-9+/\s]{64,}=*\s*")
MANY = 200_000  # characters; quadratic patterns would take hours over them


@settings(max_examples=400, deadline=None)
@given(st.text(".!?…\"')]。！」 \nab", max_size=24))
def test_sentences_end_where_they_did(text):
    ends = [match.span() for match in SENTENCE_END.finditer(text)]
    assert [match.span() for match in samples_sugar._SENTENCE_END.finditer(text)] == ends


@settings(max_examples=400, deadline=None)
@given(st.text("a+ \n=-", max_size=8), st.integers(54, 66), st.text("a \n=-", max_size=8))
def test_base64_is_known_as_it_was(start, count, end):
    text = start + "a" * count + end
    assert bool(images_sugar._BASE64.fullmatch(text)) == bool(BASE64.fullmatch(text))


HOSTILE = ["!" * MANY + "x", "!'" * (MANY // 2) + "x", "!" + "'" * MANY + "x", "。" * MANY, "." * MANY, "…)" * MANY]


def test_sentences_of_hostile_texts(subtests):
    for text in HOSTILE:
        with subtests.test(text=text):
            spans = sentence_spans(text)
            assert spans[-1][1] == len(text)
            [message] = parse_sample(text, "a text", split_sentences=True)
            assert message.parts[0].slice_count == len(spans)


def test_what_may_be_base64(subtests):
    for text in [" " * MANY + "!", "a" * MANY + "!", "a" * 64 + "=" * MANY + "!", " \n" * MANY]:
        with subtests.test(text=text):
            assert bool(images_sugar._BASE64.fullmatch(text)) is not text.endswith("!")
            with pytest.raises(ValueError, match="cannot use the image"):
                parse_sample([{"type": "image", "image": text}], "a sample")[0].parts[0].load()


def test_what_may_be_an_address(subtests):
    for start in ["data:", "data:;base64", "http", "a" * 64]:
        with subtests.test(start=start):
            for filling in ("a", ";base64", ".-+", ";"):
                with pytest.raises(ValueError, match="cannot use the image"):
                    parse_sample([{"type": "image", "url": start + filling * MANY}], "a sample")[0].parts[0].load()


def test_answers_of_models():
    assert webqa._YES_NO.match(" " * MANY + "x") is None
