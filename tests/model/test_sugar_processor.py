"""Slice map, rendering and labels, token by token."""

import random
from pathlib import Path

import pytest
import torch
from builders import VICUNA_TEMPLATE, build_tiny_llava, picture
from PIL import Image
from transformers import BatchFeature

from sugar_hf.model import SugarProcessor
from sugar_hf.model.processing_sugar import without_video
from sugar_hf.model.samples_sugar import first_slices, parse_sample, sentence_spans

RED, BLUE = picture(1), picture(2, 64, 20)


def user(*content):
    return {"role": "user", "content": list(content)}


def text(value):
    return {"type": "text", "text": value}


def image(value):
    return {"type": "image", "image": value}


def row(features, i=0):
    """Real tokens of a row: ids and slice numbers."""
    mask = features["attention_mask"][i].bool()
    return features["input_ids"][i][mask], features["slice_map"][i][mask].abs()


def written(processor, features, i=0):
    return processor.decode(row(features, i)[0])


def learnt(processor, features, i=0):
    labels = features["labels"][i]
    return processor.decode(labels[labels != -100])


def image_id(model):
    return model.config.image_token_id


def test_random_interleavings(sugar):
    _, processor = sugar
    generator = random.Random(0)
    words = ["A cat.", "two dogs run", "The sun!", "x", "<image>", "Ünïcode 猫 🐈", "  spaced  ", "line\nbreak."]
    samples = [[generator.choice([RED, BLUE, *words]) for _ in range(generator.randint(1, 6))] for _ in range(12)]
    features = processor(samples)
    for i, sample in enumerate(samples):
        ids, slices = row(features, i)
        assert slices.max() == len(sample)
        for number, part in enumerate(sample, start=1):
            if isinstance(part, str):
                places = (slices == number).nonzero().flatten()
                assert processor.decode(ids[: places[-1] + 1]).endswith(part.strip())
                assert processor.decode(ids[places]).strip() == part.strip()  # its own tokens and no others
        assert processor.slices(sample)[-1] == (sample[-1].strip() if isinstance(sample[-1], str) else sample[-1])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(sugar, side):
    _, processor = sugar
    samples = ["A cat.", ["A dog.", RED]]
    features = processor(samples, padding_side=side, pad_to_multiple_of=64, return_labels=True)
    assert features["input_ids"].shape[1] % 64 == 0
    padding = ~features["attention_mask"].bool()
    column = 0 if side == "left" else -1
    assert padding[0, column]
    assert not padding[0, -1 - column]
    assert (features["slice_map"][padding] == 0).all()
    assert (features["labels"][padding] == -100).all()
    for i, sample in enumerate(samples):
        alone = processor([sample])
        assert torch.equal(row(alone)[0], row(features, i)[0])
        assert torch.equal(row(alone)[1], row(features, i)[1])
    assert processor(samples, padding="max_length", max_length=200)["input_ids"].shape == (2, 200)


def test_mixed_batches_keep_the_backbones_inputs(sugar, family):
    model, processor = sugar
    features = processor(["A cat.", RED, ["A dog.", BLUE, RED]])
    assert isinstance(features, BatchFeature)
    if "image_grid_thw" in features:
        assert torch.equal(features["mm_token_type_ids"] == 1, features["input_ids"] == image_id(model))
        assert len(features["image_grid_thw"]) == 3
    if family == "gemma3":
        assert torch.equal(features["token_type_ids"] == 1, features["input_ids"] == image_id(model))
    if family == "paligemma":  # the prompt, which sees all of itself, ends where something is to be learnt
        types = features["token_type_ids"]
        assert [int(types[i][features["attention_mask"][i].bool()].sum()) for i in range(3)] == [
            int(features["attention_mask"][0].sum()),
            0,
            int(features["attention_mask"][2].sum()),
        ]
    if family == "llava":
        assert features["pixel_values"].shape == (3, 3, 24, 24)
    assert "pixel_values" not in processor(["A cat.", "A dog."])


# --- what the user writes is text


def test_control_tokens_in_text_stay_text(sugar):
    _, processor = sugar
    special = list(processor.tokenizer.all_special_tokens)
    special += [token.content for token in processor.tokenizer.added_tokens_decoder.values()]
    sample = f"Look: {' '.join(dict.fromkeys(special))} end<image>."
    pairs = [
        (sample, "Look."),
        ([user(text(sample))], [user(text("Look."))]),
        ([user(image(RED), text(sample))], [user(image(RED), text("Look."))]),
    ]
    for sample_of, plain_of in pairs:
        features = processor([sample_of])
        ids, slices = row(features)
        plain = processor([plain_of])
        control = {number for number, added in processor.tokenizer.added_tokens_decoder.items() if added.special}
        assert [i for i in ids.tolist() if i in control] == [i for i in row(plain)[0].tolist() if i in control]
        assert sample in processor.decode(ids)
        assert processor.decode(ids[: (slices == slices.max()).nonzero().max() + 1]).rstrip().endswith(sample)


def test_added_words_that_are_no_control_tokens_keep_their_token():
    _, backbone = build_tiny_llava()
    backbone.tokenizer.add_tokens(["sugarword"])
    ids, _ = row(SugarProcessor(backbone)(["a sugarword here"]))
    assert backbone.tokenizer.convert_tokens_to_ids("sugarword") in ids.tolist()


def test_placeholder_that_is_no_special_token_is_text_too():
    _, backbone = build_tiny_llava()
    backbone.tokenizer.add_tokens(["<picture>"])
    backbone.image_token = "<picture>"
    backbone.chat_template = VICUNA_TEMPLATE.replace("<image>", "<picture>")
    processor = SugarProcessor(backbone)
    ids, _ = row(processor(["a <picture> here"]))
    assert backbone.tokenizer.convert_tokens_to_ids("<picture>") not in ids.tolist()
    assert processor.decode(ids).endswith("a <picture> here")


# --- chats


def test_usual_chats_are_tokenised_as_the_backbone_does(sugar, family, subtests):
    for generation_prompt in [True, False]:
        with subtests.test(generation_prompt=generation_prompt):
            _, processor = sugar
            chats = [
                [user(image(RED), text("What is it?"))],
                [user(text("Two dogs run?")), {"role": "assistant", "content": [text("Yes.")]}, user(text("Why?"))],
                [{"role": "system", "content": [text("Be nice.")]}, user(image(RED), image(BLUE), text("Which?"))],
            ]
            if family == "paligemma":  # its own processor refuses samples without images
                del chats[1]
            for chat in chats:
                expected = processor.backbone_processor.apply_chat_template(
                    chat, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=generation_prompt
                )
                ids, _ = row(processor([chat], add_generation_prompt=generation_prompt))
                assert torch.equal(ids, expected["input_ids"][0])


def test_order_within_a_message_is_kept(sugar):
    _, processor = sugar
    chat = [
        user(text("First"), image(RED), text("then"), image(BLUE), text("so?")),
        {"role": "assistant", "content": "Yes."},
    ]
    ids, slices = row(processor([chat]))
    order = [int(number) for number in slices[slices > 0]]
    assert order == sorted(order)
    assert slices.max() == 6
    for number, word in ((1, "First"), (3, "then"), (5, "so?"), (6, "Yes.")):
        assert processor.decode(ids[: (slices == number).nonzero().max() + 1]).endswith(word)


def test_llava_writes_an_interleaved_message_as_text_with_images_in_place(llava):
    _, processor = llava
    chat = [user(text("First "), image(RED), text("\nthen"), image(BLUE), text("so?"))]
    assert written(processor, processor([chat], add_generation_prompt=True)) == (
        f"<s>USER: First {'<image>' * 9}\nthen{'<image>' * 9}\nso? ASSISTANT:"
    )


def test_two_texts_of_a_message_are_not_glued(sugar):
    _, processor = sugar
    assert "A cat.\nA dog." in written(processor, processor([[user(text("A cat."), text("A dog."))]]))


def test_templates_for_strings_work():
    _, backbone = build_tiny_llava()
    backbone.chat_template = "{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'] + '\n' }}{% endfor %}"
    processor = SugarProcessor(backbone)
    chat = [user(text("See"), image(RED), text("this")), {"role": "assistant", "content": "Yes"}]
    assert written(processor, processor([chat])) == f"<s>[user] See{'<image>' * 9}this\n[assistant] Yes\n"


def test_template_of_the_tokenizer_is_used_if_the_processor_has_none():
    _, backbone = build_tiny_llava()
    backbone.tokenizer.chat_template, backbone.chat_template = backbone.chat_template, None
    processor = SugarProcessor(backbone)
    assert written(processor, processor([[user(text("Hi"))]])) == "<s>USER: Hi "
    assert processor.apply_chat_template([user(text("Hi"))]) == "USER: Hi "


def test_templates_that_lose_parts_are_refused():
    _, backbone = build_tiny_llava()
    processor = SugarProcessor(backbone)
    processor.chat_template = "{% for m in messages if m['role'] != 'tool' %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(ValueError, match=r"sample 1: the model's chat template does not keep .* than user, tool"):
        processor(["fine", [user(text("Hi")), {"role": "tool", "content": "42"}]])
    backbone.chat_template = None
    with pytest.raises(ValueError, match="sample 0: this model has no chat template"):
        processor([[user(text("Hi"))]])


def test_system_message_makes_no_slice(sugar):
    _, processor = sugar
    chat = [{"role": "system", "content": "Be nice."}, user(text("A cat.")), {"role": "assistant", "content": "Yes."}]
    assert processor.slices(chat) == ["A cat.", "Yes."]
    assert row(processor([[{"role": "system", "content": [text("Be nice.")]}, *chat[1:]]]))[1].max() == 2


# --- plain samples


def test_plain_rendering(llava):
    _, processor = llava
    picture_text = "<image>" * 9
    sample = [" A cat. ", RED, BLUE, "\nA dog.", "So."]
    assert written(processor, processor([sample])) == f"<s>A cat.\n{picture_text}\n{picture_text}\nA dog.\nSo."
    assert written(processor, processor(["A cat."])) == "<s>A cat."
    assert written(processor, processor([RED])) == f"<s>{picture_text}"


def test_no_token_reaches_over_the_end_of_a_slice(sugar):
    _, processor = sugar
    tokenizer = processor.tokenizer
    assert len(tokenizer(".\n", add_special_tokens=False)["input_ids"]) == 1  # this one would
    ids, slices = row(processor([["A cat.", "A dog."]]))
    assert processor.decode(ids[(slices == 1).nonzero()[-1, 0]]) == "."


def test_forms_of_the_same_sample(llava, tmp_path):
    _, processor = llava
    RED.save(tmp_path / "red.png")
    forms = [
        ["A cat.", RED],
        ("A cat.", tmp_path / "red.png"),
        [text("A cat."), image(RED)],
        [text("A cat."), {"type": "image", "path": str(tmp_path / "red.png"), "text": None}],
        [{"type": "text", "text": "A cat.", "image": None}, {"type": "image", "image": tmp_path / "red.png"}],
    ]
    expected = processor(forms[:1])
    for form in forms[1:]:
        features = processor([form])
        assert all(torch.equal(features[key], expected[key]) for key in expected)
    lone = processor("A cat.")
    assert torch.equal(lone["input_ids"], processor(["A cat."])["input_ids"])
    assert processor(Path(tmp_path / "red.png"))["slice_map"].max() == 1


def test_every_mode_of_image_becomes_rgb(llava):
    _, processor = llava
    for mode in ("L", "RGBA", "P", "CMYK", "1", "I;16"):
        (slice_,) = processor.slices(Image.new(mode, (9, 7)))
        assert slice_.mode == "RGB"
        assert processor([Image.new(mode, (9, 7))])["pixel_values"].shape == (1, 3, 24, 24)


# --- sentences


def test_sentence_spans():
    def split(value):
        return [value[a:b] for a, b in sentence_spans(value)]

    assert split('He said "No." Then he left… Why?!') == ['He said "No."', "Then he left…", "Why?!"]
    assert split("Pi is 3.14 here.\n\nNew line") == ["Pi is 3.14 here.", "New line"]
    assert split("猫がいる。犬もいる。") == ["猫がいる。", "犬もいる。"]
    assert split("no end") == ["no end"]
    assert split(" . ") == ["."]


def test_sentences_are_slices_of_the_same_string(sugar):
    _, processor = sugar
    sample = ["A cat. A dog!\nTwo balls", RED]
    features = processor([sample], split_sentences=True)
    assert written(processor, features) == written(processor, processor([sample]))
    assert processor.slices(sample, split_sentences=True)[:3] == ["A cat.", "A dog!", "Two balls"]
    ids, slices = row(features)
    ends = [processor.decode(ids[: (slices == number).nonzero().max() + 1]) for number in (1, 2, 3)]
    assert [end[-4:] for end in ends] == ["cat.", "dog!", "alls"]
    chat = processor([[user(text("猫がいる。犬もいる。"))]], split_sentences=True)
    assert row(chat)[1].max() == 2


# --- labels


def test_labels_of_chats_are_the_answers_and_their_ends(sugar, family):
    model, processor = sugar
    chat = [
        {"role": "system", "content": [text("Be nice.")]},
        user(image(RED), text("What?")),
        {"role": "assistant", "content": "A cat."},
        user(text("And?")),
        {"role": "assistant", "content": [text("A dog.")]},
    ]
    lead = " " if family in ("llava", "llava_next", "idefics3", "smolvlm") else ""  # not in the generation prompt
    features = processor([chat, "Padding " * 40], return_labels=True)
    ends = processor.tokenizer.eos_token
    assert learnt(processor, features) == f"{lead}A cat.{ends}{lead}A dog.{ends}"
    labelled = features["labels"] != -100
    assert torch.equal(features["labels"][labelled], features["input_ids"][labelled])
    assert not (features["labels"] == image_id(model)).any()


def test_labels_of_plain_samples_are_all_texts(sugar):
    _, processor = sugar
    features = processor([["A cat.", RED, "A dog."], RED], return_labels=True)
    assert learnt(processor, features) == "A cat.A dog."
    assert (features["labels"][1] == -100).all()


def test_a_plain_sample_may_be_a_prompt(sugar, family):
    _, processor = sugar
    features = processor([["A cat.", RED, "A dog?"]], add_generation_prompt=True, return_labels=True)
    assert (features["labels"] == -100).all()
    assert torch.equal(features["input_ids"], processor([["A cat.", RED, "A dog?"]])["input_ids"])
    if family == "paligemma":
        assert not features["token_type_ids"].any()


def test_templates_without_end_of_turn_get_a_final_eos():
    _, backbone = build_tiny_llava()
    backbone.chat_template = VICUNA_TEMPLATE.replace("'</s>'", "' '")
    processor = SugarProcessor(backbone)
    chat = [user(text("Hi")), {"role": "assistant", "content": "Yes."}]
    assert learnt(processor, processor([chat], return_labels=True)) == " Yes. </s>"
    assert written(processor, processor([chat])) == "<s>USER: Hi ASSISTANT: Yes. "
    prompt = processor([chat[:1]], return_labels=True)
    assert (prompt["labels"] == -100).all()


# --- length


def test_too_long_says_how_long_and_what_to_do(llava):
    _, processor = llava
    sample = ["A cat.", RED, BLUE, "Two balls."]
    length = processor([sample])["input_ids"].shape[1]
    message = rf"sample 1 has {length} tokens in 4 slices, 3 more than max_length={length - 3}\. .*'slice'"
    with pytest.raises(ValueError, match=message):
        processor(["Fits.", sample], max_length=length - 3)
    assert processor([sample], max_length=length)["input_ids"].shape == (1, length)


def test_truncation_drops_whole_slices_and_says_so(sugar):
    _, processor = sugar
    sample = ["A cat.", RED, "A dog.", BLUE, "Two balls."]
    full = processor([sample])["input_ids"].shape[1]
    with pytest.warns(UserWarning, match=r"sample 1 has .* dropped its last [1-4] slices\.") as warned:
        features = processor(["Fits.", sample], max_length=full - 2, truncation="slice")
    assert len([warning for warning in warned if warning.category is UserWarning]) == 1
    kept = int(features["slice_map"][1].max())
    assert torch.equal(row(features, 1)[0], row(processor([sample[:kept]]))[0])
    assert features["input_ids"].shape[1] <= full - 2


def test_truncation_of_chats_and_sentences(llava):
    _, processor = llava
    chat = [user(image(RED), text("A cat. A dog. Two balls.")), {"role": "assistant", "content": "Yes. No."}]
    length = processor([chat], split_sentences=True)["input_ids"].shape[1]
    with pytest.warns(UserWarning, match="dropped its last"):
        features = processor([chat], split_sentences=True, max_length=length - 3, truncation="slice")
    assert written(processor, features).endswith("Two balls. ASSISTANT: Yes.</s>")


def test_a_first_slice_that_does_not_fit_is_an_error(llava):
    _, processor = llava
    with pytest.raises(ValueError, match=r"named has .* its first slice alone does not fit"):
        processor([[RED, "A cat."]], max_length=8, truncation="slice", names=["named"])


def test_first_slices_cuts_inside_a_text():
    messages = parse_sample([user(text("One. Two. Three."), image(RED)), user(text("Four."))], "s", True)
    assert [part.text for message in first_slices(messages, 2) for part in message.parts] == ["One. Two."]
    assert len(first_slices(messages, 4)) == 1
    assert first_slices(messages, 5) == messages


# --- errors name the sample, the field and the mend


def test_bad_samples(llava, subtests):
    for sample, message in [
        ("  ", r"sample 1, part 0: the text is empty"),
        (["a", ""], r"sample 1, part 1: the text is empty"),
        ([user(text(" "))], r"sample 1, message 0, part 0: the text is empty"),
        ([], r"sample 1: .*neither text nor image"),
        (None, r"sample 1, part 0: NoneType is neither text nor image"),
        (["a", 3], r"sample 1, part 1: int is neither"),
        ([user(text("a")), {"role": "user", "content": None}], r"sample 1, message 1: needs a `role`"),
        ([user(text("a")), {"content": "a"}], r"sample 1, part 0: dict is neither"),
        ([{"type": "image"}], r"sample 1, part 0: an image part needs one of image, path, base64, url"),
        ([{"type": "text", "text": None}], r"sample 1, part 0: NoneType"),
        ([{"role": "system", "content": "Be nice."}], r"sample 1: .*neither text nor image"),
        (Path("nowhere.png"), r"sample 1, part 0: cannot use the image: no file 'nowhere\.png'\. Check the path"),
        (
            [{"type": "image", "path": __file__}],
            r"sample 1, part 0: cannot use the image: .* not an image",
        ),
    ]:
        with subtests.test(message=message), pytest.raises(ValueError, match=message):
            llava[1](["fine", sample])


def test_bad_options(llava, subtests):
    for samples, options, message in [
        ([], {}, "list of at least one sample"),
        ([user(text("a"))], {}, r"one chat\. Pass a list of samples"),
        (["a"], {"truncation": True}, "give False or 'slice'"),
        (["a"], {"padding": "max_length"}, "'max_length' with max_length="),
        (["a", "a b c"], {"padding": False}, "differ in length"),
    ]:
        with subtests.test(message=message), pytest.raises(ValueError, match=message):
            llava[1](samples, **options)


def test_unknown_option(llava):
    with pytest.raises(TypeError, match="no options foo"):
        llava[1](["a"], foo=1)


# --- the backbone's own interface


def test_the_backbones_interface_is_forwarded(llava):
    _, processor = llava
    backbone = processor.backbone_processor
    assert processor.tokenizer is backbone.tokenizer
    assert processor.image_processor is backbone.image_processor
    own = processor(text="<image> x", images=RED, return_tensors="pt")
    expected = backbone(text="<image> x", images=RED, return_tensors="pt")
    assert torch.equal(own["input_ids"], expected["input_ids"])
    assert processor.batch_decode([[5, 6]]) == backbone.batch_decode([[5, 6]])
    assert "slice_map" in processor.model_input_names
    assert SugarProcessor(processor).backbone_processor is backbone
    assert "SugarProcessor" in repr(processor)
    big = processor([RED], images_kwargs={"do_normalize": False})["pixel_values"]
    assert not torch.equal(big, processor([RED])["pixel_values"])


def test_processing_leaves_the_backbones_processor_as_it_was(sugar):
    _, processor = sugar
    before = dict(vars(processor.backbone_processor))
    processor(["a <image>", RED, [user(text("a"))]])
    assert vars(processor.backbone_processor) == before


def test_video_processors_are_left_out(sugar):
    backbone_class = type(sugar[1].backbone_processor)
    assert "video_processor" not in backbone_class.get_attributes()
    assert without_video(backbone_class) is backbone_class


def test_slow_tokenizers_are_refused(llava, monkeypatch):
    monkeypatch.setattr(type(llava[1].tokenizer), "is_fast", property(lambda self: False))
    with pytest.raises(ValueError, match="Use a fast tokenizer"):
        llava[1](["a"])


def test_content_may_be_a_string_or_parts(sugar):
    as_string = sugar[1]([[{"role": "user", "content": "Hi"}]])
    as_parts = sugar[1]([[user(text("Hi"))]])
    assert torch.equal(as_string["input_ids"], as_parts["input_ids"])
