"""What people pass to the pipelines besides the plain forms: it is read as it is meant, or refused with the way."""

from collections import UserList

import numpy as np
import pytest
import torch
from builders import cached_sugar, picture
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from transformers import GenerationConfig, pipeline

from sugar_hf.model import CandidateIndex

NEW = {"max_new_tokens": 6, "do_sample": False}
RED, BLUE = picture(1), picture(2, 64, 20)


@pytest.fixture(scope="module")
def llava():
    return cached_sugar("llava")


@pytest.fixture(scope="module")
def generate(llava):
    return pipeline("sugar-generation", model=llava[0], processor=llava[1], device="cpu")


@pytest.fixture(scope="module")
def retrieve(llava):
    return pipeline("sugar-retrieval", model=llava[0], processor=llava[1], device="cpu")


@pytest.fixture
def prompts(llava, monkeypatch):
    """The ids of every prompt that the model is given."""
    seen = []
    original = llava[0].generate
    monkeypatch.setattr(llava[0], "generate", lambda **kw: seen.append(kw["input_ids"]) or original(**kw))
    return seen


def file_of(image, folder):
    image.save(folder / "red.png")
    return str(folder / "red.png")


# ---- A str where only a picture can be meant ----


def test_the_name_of_a_picture_is_a_picture(generate, prompts, tmp_path):
    name = file_of(RED, tmp_path)
    generate("What colour?", images=RED, **NEW)
    for images in (name, [name], (name,), {"type": "image", "path": name}):
        generate("What colour?", images=images, **NEW)
    assert all(torch.equal(ids, prompts[0]) for ids in prompts)
    generate("What colour?", images=[name, RED], **NEW)
    assert prompts[-1].shape[1] > prompts[0].shape[1]


def test_what_is_no_picture_is_refused(generate, subtests):
    for images, reason in [
        ("a red boat", "no file 'a red boat'"),
        (["https://example.org/a.png"], 'is an address.*ask with {"type": "image", "url"'),
        ([np.zeros((4, 4, 3))], "ndarray is neither text nor image"),
        ([["a.png"]], "list is neither text nor image"),
        (b"\x89PNG", "the image of 4 bytes is not an image of a supported type"),
    ]:
        with (
            subtests.test(images=f"{images!r:.60}", reason=reason),
            pytest.raises(ValueError, match=f"input 0, .*{reason}"),
        ):
            generate("What colour?", images=images, **NEW)


@pytest.mark.parametrize("name", ["image", "images"])
def test_pictures_beside_other_inputs_are_refused(generate, name):
    with pytest.raises(ValueError, match="images"):
        generate([["What?"]], **{name: RED}, **NEW)


# ---- Options of generate ----


def test_a_dict_is_asked_of_generate(generate):
    plain = generate("What?", **NEW)
    assert generate("What?", return_dict_in_generate=True, **NEW) == plain
    several = generate(
        ["What?", "And this?"], return_dict_in_generate=True, num_beams=2, num_return_sequences=2, **NEW
    )
    assert [len(found) for found in several] == [2, 2]


def test_what_would_be_dropped_is_refused(generate, subtests):
    for option in ["output_scores", "output_logits", "output_attentions", "output_hidden_states"]:
        with (
            subtests.test(option=option),
            pytest.raises(ValueError, match=rf"{option}: only texts are returned here.*model\.generate"),
        ):
            generate("What?", return_dict_in_generate=True, **{option: True}, **NEW)


def test_a_text_stops_the_answer(generate, llava):
    options = {"max_new_tokens": 24, "do_sample": False}
    whole = generate("What?", **options)[0]["generated_text"]
    middle = whole[len(whole) // 2]
    stopped = generate("What?", stop_strings=[middle], **options)[0]["generated_text"]
    assert whole.startswith(stopped)
    assert len(stopped) < len(whole)
    assert middle in stopped
    config = GenerationConfig(stop_strings=[middle], pad_token_id=0, **options)
    assert generate("What?", generation_config=config)[0]["generated_text"] == stopped


def test_a_generation_config_says_how_long_an_answer_is(generate, llava):
    config = GenerationConfig(max_new_tokens=3, do_sample=False, pad_token_id=0)
    text = generate("What?", generation_config=config)[0]["generated_text"]
    assert text == generate("What?", max_new_tokens=3, do_sample=False)[0]["generated_text"]


def test_words_of_other_pipelines(generate):
    plain = generate("What?", **NEW)
    assert generate("What?", generate_kwargs=NEW) == plain
    assert generate("What?", return_full_text=False, **NEW) == plain
    for options, way in (({"return_full_text": True}, "Put the prompt"), ({"stop_sequence": "x"}, "stop_strings")):
        with pytest.raises(ValueError, match=way):
            generate("What?", **options, **NEW)


def test_special_tokens_can_be_kept(generate, llava):
    options = {"max_new_tokens": 2, "do_sample": False, "forced_eos_token_id": llava[1].tokenizer.eos_token_id}
    eos = llava[1].tokenizer.eos_token
    assert eos in generate("What?", skip_special_tokens=False, **options)[0]["generated_text"]
    assert eos not in generate("What?", **options)[0]["generated_text"]


# ---- Candidates ----


def test_candidates_of_many_kinds(retrieve):
    expected = retrieve("A dog.", ["A cat.", "A dog.", RED])
    rows = Dataset.from_dict({"text": ["A cat.", "A dog."]})
    for candidates in (
        ("A cat.", "A dog.", RED),
        UserList(["A cat.", "A dog.", RED]),
        (each for each in ["A cat.", "A dog.", RED]),
        {0: "A cat.", 1: "A dog.", 2: RED}.values(),
    ):
        assert retrieve("A dog.", candidates) == expected
    for candidates in (rows, rows["text"], np.array(["A cat.", "A dog."]), rows.to_iterable_dataset()):
        assert [found["index"] for found in retrieve("A dog.", candidates)] == [1, 0]


def test_a_data_set_of_images_and_texts(retrieve):
    features = Features({"image": ImageFeature(), "text": Value("string")})
    rows = Dataset.from_dict({"image": [RED, BLUE, None], "text": ["A cat.", "A dog.", "A cow."]}, features=features)
    samples = [[RED, "A cat."], [BLUE, "A dog."], "A cow."]
    query = {"query": [BLUE, "A dog."]}
    found, expected = (retrieve(query, candidates) for candidates in (rows, samples))
    assert [each["index"] for each in found] == [each["index"] for each in expected]
    assert [each["score"] for each in found] == pytest.approx([each["score"] for each in expected], abs=1e-5)
    [best] = retrieve(BLUE, rows.select_columns("image").select([0, 1]), top_k=1)
    assert (best["index"], best["score"]) == (1, pytest.approx(1, abs=1e-5))


def test_the_name_of_a_picture_in_a_column_of_pictures(retrieve, tmp_path):
    rows = Dataset.from_dict({"image": [file_of(RED, tmp_path)]})
    assert retrieve(RED, rows)[0]["score"] == pytest.approx(1, abs=1e-5)


class DataFrame:
    """As of pandas: what it yields are the names of its columns."""

    def __iter__(self):
        return iter(["image", "text"])


def test_candidates_that_are_refused(retrieve, subtests):
    for candidates, reason in [
        ("A cat.", "got a str"),
        (RED, "got a Image"),
        ({"text": ["A cat."]}, "got a dict"),
        (DataFrame(), "got a DataFrame"),
        (3, "got a int"),
        ([], "no candidate"),
        (Dataset.from_dict({"text": ["a"], "year": [3]}), "candidate 0: a row with the columns text, year"),
        (Dataset.from_dict({"year": [3]}), "candidate 0, part 0: int is neither text nor image"),
    ]:
        with (
            subtests.test(candidates=f"{candidates!r:.60}", reason=reason),
            pytest.raises(ValueError, match=reason),
        ):
            retrieve("A dog.", candidates)


def test_an_index_is_still_one(retrieve):
    index = CandidateIndex(["A cat."], retrieve.encode(["A cat."]))
    assert retrieve("A cat.", index)[0]["score"] == pytest.approx(1, abs=1e-5)
