"""A processor in several threads gives what it gives in one."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from builders import build_sugar, cached_sugar, picture

from sugar_hf.model import SugarProcessor

FAMILIES = ("llava", "qwen2_5_vl", "gemma3", "idefics3")
THREADS = 8


def chat(*content):
    return [{"role": "user", "content": [part if isinstance(part, dict) else as_part(part) for part in content]}]


def as_part(part):
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}


def calls_of(processor):
    """Calls that leave different settings behind in a tokenizer that they share."""
    tokens = " ".join(processor.tokenizer.all_special_tokens)
    picture_token, pictures = processor.image_token, [[picture(1)], [picture(2)]]
    yield lambda: processor([["A cat sits.", picture(1)]])
    yield lambda: processor([f"{tokens} {picture_token} " * 40])
    yield lambda: processor(["A dog runs. " * 30, "Two balls."], split_sentences=True)
    yield lambda: processor([chat(picture(2), "What is it?"), chat(f"A {picture_token}?")], add_generation_prompt=True)
    # what others do with the same tokenizer: the backbone's own call pads, and a tokenizer's call may truncate
    yield lambda: processor(text=[f"{picture_token} A cat.", f"{picture_token} x"], images=pictures)
    yield lambda: processor.tokenizer(["A cat sits on the mat."], truncation=True, max_length=3)
    yield lambda: processor.tokenizer("A <s> cat", split_special_tokens=True)


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def test_threads_do_not_change_each_others_tokens(subtests):
    for family in FAMILIES:
        with subtests.test(family=family):
            _, processor = cached_sugar(family)
            calls = list(calls_of(processor))
            own = calls[:4]
            expected = [call() for call in own]
            with ThreadPoolExecutor(THREADS) as pool:
                jobs = [(i, pool.submit(calls[i])) for _ in range(20) for i in range(len(calls))]
                found = [(i, job.result()) for i, job in jobs if i < len(own)]
            assert all(same(features, expected[i]) for i, features in found)


def test_threads_on_a_processor_that_nothing_has_called_yet():
    for seed in range(3):
        _, processor = build_sugar("llava")
        samples = [["A cat.", picture(seed)], "a <image> and </s>", chat("Hi <image>")]
        expected = [SugarProcessor(processor)([sample]) for sample in samples]
        with ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(lambda i: processor([samples[i % 3]]), range(24)))  # noqa: B023
        assert all(same(features, expected[i % 3]) for i, features in enumerate(found))


def test_settings_of_the_tokenizer_do_not_reach_the_processor(llava):
    _, processor = build_sugar("llava")
    expected = processor(["A cat sits on the mat.", "a </s> b"])
    backend = processor.tokenizer.backend_tokenizer
    backend.enable_truncation(2)
    backend.enable_padding(length=40)
    backend.encode_special_tokens = True
    assert same(processor(["A cat sits on the mat.", "a </s> b"]), expected)
    assert (backend.truncation["max_length"], backend.padding["length"]) == (2, 40)
    assert backend.encode_special_tokens
    assert same(SugarProcessor(processor.backbone_processor)(["A cat sits on the mat.", "a </s> b"]), expected)


def test_what_is_added_to_the_tokenizer_counts_at_once():
    _, processor = build_sugar("llava")
    tokenizer = processor.tokenizer
    before = processor(["a sugarword <think> b"])["input_ids"]
    tokenizer.add_tokens(["sugarword", "<think>"])
    ids = tokenizer.convert_tokens_to_ids(["sugarword", "<think>"])
    assert set(ids) <= set(processor(["a sugarword <think> b"])["input_ids"][0].tolist())
    tokenizer.add_tokens(["<think>"], special_tokens=True)  # from now on a control token
    found = processor(["a sugarword <think> b"])["input_ids"][0].tolist()
    assert ids[0] in found
    assert ids[1] not in found
    assert before.shape[1] > len(found)


def new_template(backbone):
    backbone.chat_template = "{{ 'Q: ' }}" + backbone.chat_template.replace("<image>", "<image> ")


def new_template_of_the_tokenizer(backbone):
    backbone.tokenizer.chat_template, backbone.chat_template = "{{ 'Q: ' }}" + backbone.chat_template, None


def new_image_token(backbone):
    backbone.tokenizer.add_tokens(["<picture>"])
    backbone.image_token = "<picture>"
    backbone.image_token_id = backbone.tokenizer.convert_tokens_to_ids("<picture>")
    backbone.chat_template = backbone.chat_template.replace("<image>", "<picture>")


def new_end(backbone):
    backbone.tokenizer.add_special_tokens({"eos_token": "<picture>"})


CHANGES = [new_template, new_template_of_the_tokenizer, new_image_token, new_end]


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_changed_in_the_backbones_processor_counts_at_once(change):
    sample = [*chat(picture(1), "What is <picture>?"), {"role": "assistant", "content": "A <picture> <image>."}]
    _, processor = build_sugar("llava")
    before = processor([sample], return_labels=True)
    change(processor.backbone_processor)
    found = processor([sample], return_labels=True)
    assert same(found, SugarProcessor(processor.backbone_processor)([sample], return_labels=True))
    assert not same(found, before)


def test_a_processor_travels_to_other_processes_as_it_is():
    _, processor = build_sugar("llava")
    expected = processor([["a <image>", picture(1)]])
    assert same(pickle.loads(pickle.dumps(processor))([["a <image>", picture(1)]]), expected)
