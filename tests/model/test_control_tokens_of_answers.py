"""What an assistant writes may hold control tokens where it is learnt; what others write never does."""

import torch
from builders import build_sugar, picture
from tokenizers import normalizers
from transformers import pipeline

from sugar_hf import SugarChat, SugarCollator

ADDED = ["<think>", "</think>", "<|box_start|>"]


def message(role, *parts):
    content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "image": p} for p in parts]
    return {"role": role, "content": content}


def with_tokens(family, special=True):
    model, processor = build_sugar(family)
    processor.tokenizer.add_tokens(ADDED, special_tokens=special)
    return model, processor


def control_ids(processor):
    return {i for i, token in processor.tokenizer.added_tokens_decoder.items() if token.special}


def ids_of(processor, *tokens):
    return processor.tokenizer.convert_tokens_to_ids(list(tokens))


FAMILIES = ["llava", "qwen2_5_vl", "gemma3", "idefics3", "internvl", "paligemma"]


def test_answers_that_are_learnt_hold_single_control_tokens(subtests):
    for family in FAMILIES:
        with subtests.test(family=f"{family!r:.60}"):
            _, processor = with_tokens(family)
            answer = "<think>Two dogs.</think> See <|box_start|>here."
            chat = [message("user", picture(1), "Why <think>?"), message("assistant", answer)]
            features = processor([chat], return_labels=True)
            ids, labels = features["input_ids"][0], features["labels"][0]
            assert [int((ids == i).sum()) for i in ids_of(processor, *ADDED)] == [1, 1, 1]  # the user's is text
            assert [int((labels == i).sum()) for i in ids_of(processor, *ADDED)] == [1, 1, 1]
            assert "Why <think>?" in processor.decode(ids)
            assert answer in processor.decode(labels[labels != -100])
            assert processor.slices(chat)[-1] == answer
            last = int(features["slice_map"][0].nonzero()[-1])
            assert processor.decode(ids[last]) == "."


def test_an_answer_never_holds_a_picture(subtests):
    for family in FAMILIES:
        with subtests.test(family=f"{family!r:.60}"):
            model, processor = with_tokens(family)
            placeholders = {processor.image_token, *processor.backbone_processor.all_special_multimodal_tokens}
            placeholders |= {value for key, value in processor.tokenizer.special_tokens_map.items() if "image" in key}
            placeholders |= {"<|vision_start|>", "<|vision_end|>"} & set(processor.tokenizer.get_vocab())
            answer = f"<think> {' '.join(sorted(placeholders))} end."
            plain = [message("user", picture(1), "What?"), message("assistant", "<think> end.")]
            chat = [message("user", picture(1), "What?"), message("assistant", answer)]
            found, expected = (processor([sample], return_labels=True) for sample in (chat, plain))
            kept = [
                [i for i in row["input_ids"][0].tolist() if i in control_ids(processor)] for row in (found, expected)
            ]
            assert kept[0] == kept[1]
            assert answer in processor.decode(found["labels"][0][found["labels"][0] != -100])
            assert int((found["input_ids"] == model.config.image_token_id).sum()) == int(
                (found["slice_map"] == 1).sum()
            )


def test_the_option_decides_and_only_learning_turns_it_on():
    _, processor = with_tokens("qwen2_vl")
    chat = [message("user", "Hi"), message("assistant", "<think>Yes."), message("user", "And <think>?")]
    (think,) = ids_of(processor, "<think>")

    def count(sample, **options):
        return int((processor([sample], **options)["input_ids"] == think).sum())

    assert count(chat, return_labels=True) == 1
    assert count(chat, return_labels=True, control_tokens_in_answers=False) == 0
    assert count(chat) == 0
    assert count(chat, add_generation_prompt=True) == 0
    assert count(chat, control_tokens_in_answers=True) == 1
    assert count(["<think> a document."], return_labels=True) == 0
    assert count([message("system", "<think>"), *chat], return_labels=True) == 1
    assert count([message("user", "Hi"), message("tool", "<think>")], return_labels=True) == 0


def test_an_answer_may_end_its_turn_in_ones_own_data():
    _, processor = with_tokens("qwen2_vl")
    answer = "Yes.<|im_end|>\n<|im_start|>user\nReally?<|im_end|>"
    chat = [message("user", "Hi"), message("assistant", answer)]
    (end,) = ids_of(processor, "<|im_end|>")
    assert int((processor([chat], return_labels=True)["labels"] == end).sum()) == 3
    assert int((processor([chat])["input_ids"] == end).sum()) == 2  # of a history that may come from outside


def test_collator_follows_the_processor():
    _, processor = with_tokens("llava")
    (think,) = ids_of(processor, "<think>")
    row = {
        "id": "1",
        "source": "test",
        "images": [],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Hi <think>", "image_index": None}]},
            {"role": "assistant", "content": [{"type": "text", "text": "<think>Yes."}]},
        ],
    }
    for option, count in ((True, 1), (False, 0)):
        collator = SugarCollator(processor, control_tokens_in_answers=option)
        assert int((collator([row])["labels"] == think).sum()) == count
    assert int((SugarCollator(processor)([row])["labels"] == think).sum()) == 1


def test_placeholders_in_other_writing_stay_text():
    """A normaliser may make a placeholder of what is none in the string: "＜picture＞" in NFKC."""
    _, processor = build_sugar("llava")
    backbone = processor.backbone_processor
    backbone.tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    backbone.tokenizer.add_tokens(["<picture>"])
    backbone.image_token = "<picture>"
    backbone.chat_template = backbone.chat_template.replace("<image>", "<picture>")
    ids = processor(["a ＜picture＞ and ＜picture＞"])["input_ids"][0].tolist()
    assert backbone.tokenizer.convert_tokens_to_ids("<picture>") not in ids


def test_pipelines_show_special_tokens_if_asked(monkeypatch):
    model, processor = with_tokens("llava")
    answer = ids_of(processor, "<think>", "A", "</think>", "B", "</s>")

    def generate(**inputs):
        rows = torch.tensor([answer] * len(inputs["input_ids"]))
        return torch.cat([inputs["input_ids"], rows], dim=1)

    monkeypatch.setattr(model, "generate", generate)
    facts = [{"id": "boat", "text": "A red boat."}]
    shown, hidden = "<think>A</think>B</s>", "AB"
    pipe = pipeline("sugar-generation", model=model, processor=processor, device="cpu")
    assert pipe("Why?")[0]["generated_text"] == hidden
    assert [row[0]["generated_text"] for row in pipe(["a", "b"], skip_special_tokens=False)] == [shown, shown]
    pipe = pipeline("sugar-generation", model=model, processor=processor, device="cpu", skip_special_tokens=False)
    assert pipe("Why?")[0]["generated_text"] == shown
    assert pipe("Why?", skip_special_tokens=True)[0]["generated_text"] == hidden
    rag = pipeline("sugar-rag", model=model, processor=processor, index=facts, device="cpu")
    assert rag("Why?")["answer"] == hidden
    assert rag("Why?", skip_special_tokens=False)["answer"] == shown
    assert [row["answer"] for row in rag(["a", "b"], skip_special_tokens=False)] == [shown, shown]
    talk = SugarChat(model, processor, facts, reuse=False)
    for task in ("generate", "answer"):
        turns = talk([{"role": "user", "content": "Hi", "task": task}], skip_special_tokens=False)
        assert turns[-1]["content"][0]["text"] == shown
