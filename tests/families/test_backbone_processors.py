"""Processors of families beyond the tested models: loading them, and finding images in what they write."""

import json
from types import SimpleNamespace

import pytest
import torch
from builders import build_tiny_gemma3, build_tiny_idefics3, build_tiny_llava, build_tiny_qwen2_vl, picture
from shrinker import tiny_config
from tiny_processors import processor_forms, tiny_processor
from transformers import AutoImageProcessor, AutoProcessor, MiniCPMV4_6Processor, ProcessorMixin
from transformers.utils import is_torchvision_available
from versions import since_5_23

from sugar_hf.model import SugarConfig, SugarProcessor, processing_sugar, tokenizing_sugar
from sugar_hf.model.processing_sugar import without_video
from sugar_hf.model.tokenizing_sugar import recorded_spans
from sugar_hf.retrieval.prefix_cache import shared_length

ONE, TWO = picture(1, 40, 32), picture(2, 64, 32)
GEMMA4 = since_5_23("gemma4", reason="the module of its processor imports torchvision")
HUNYUAN = since_5_23("hunyuan_vl", reason="its image processor needs torchvision")


def processor_of(model_type):
    return tiny_processor(model_type, tiny_config(model_type))


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


# --- loading


@pytest.mark.parametrize(
    "model_type",  # the video processor is passed by name, stands first, in the middle and last, and is asked at once
    [GEMMA4, "llava_next_video", "minicpmv4_6", "video_llava", "smolvlm"],
)
def test_processors_with_video_load_from_both_kinds_of_folder(model_type, tmp_path):
    config = tiny_config(model_type)
    backbone = tiny_processor(model_type, config)
    expected = SugarProcessor(backbone)([["A cat.", ONE, "A dog."]])
    backbone.save_pretrained(tmp_path / "backbone")
    config.save_pretrained(tmp_path / "backbone")
    loaded = SugarProcessor.from_pretrained(tmp_path / "backbone")
    assert type(loaded.backbone_processor).__name__ == type(backbone).__name__
    assert ("video_processor" in loaded.backbone_processor.get_attributes()) == is_torchvision_available()
    assert_same(loaded([["A cat.", ONE, "A dog."]]), expected)
    loaded.save_pretrained(tmp_path / "sugar")
    SugarConfig(vlm_config=config).save_pretrained(tmp_path / "sugar")
    for loader in (SugarProcessor, AutoProcessor):
        again = loader.from_pretrained(tmp_path / "sugar")
        assert again.to_dict() == loaded.to_dict()
        assert_same(again([["A cat.", ONE, "A dog."]]), expected)


def test_arguments_keep_their_places_without_a_video_processor():
    parts = processor_of("minicpmv4_6")
    made = without_video(MiniCPMV4_6Processor)(parts.image_processor, None, parts.tokenizer)
    assert made.tokenizer is parts.tokenizer
    assert made.image_processor is parts.image_processor
    with pytest.raises(ValueError, match="loaded without its video processor, which needs torchvision"):
        made.video_processor([])


@pytest.mark.parametrize("settings", [{}, {"processor_class": "SugarProcessor"}])
def test_a_processor_without_a_named_class_follows_from_other_files_or_the_configuration(settings, tmp_path):
    config = tiny_config("llava")
    backbone = tiny_processor("llava", config)
    SugarProcessor(backbone).save_pretrained(tmp_path)
    SugarConfig(vlm_config=config).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "processor_config.json").read_text())
    kept = {key: value for key, value in written.items() if "class" not in key}
    (tmp_path / "processor_config.json").write_text(json.dumps({**kept, **settings}))
    for tokenizer_names_it in (True, False):
        if not tokenizer_names_it:
            named = json.loads((tmp_path / "tokenizer_config.json").read_text())
            named.pop("processor_class")
            (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
        loaded = SugarProcessor.from_pretrained(tmp_path)
        assert type(loaded.backbone_processor) is type(backbone)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("[]", "processor_config.json is no dictionary of settings. Restore the file"),
        ('{"processor_class": "BertModel"}', "name 'BertModel' as the class of the processor, which is none"),
        ('{"processor_class": 3}', "name 3 as the class of the processor, which is none"),
        (
            '{"processor_class": "WhisperProcessor"}',
            "reads feature_extractor, tokenizer, and Sugar needs texts and images",
        ),
    ],
)
def test_what_is_no_processor_is_refused(settings, message, tmp_path):
    tiny_config("llava").save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text(settings)
    with pytest.raises(ValueError, match=message):
        SugarProcessor.from_pretrained(tmp_path)


def test_a_type_without_processor_is_refused(tmp_path):
    tiny_config("mistral4").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a mistral4 has no processor for texts and images"):
        SugarProcessor.from_pretrained(tmp_path)


# --- forms of samples


@pytest.mark.parametrize("model_type", [GEMMA4, HUNYUAN, "idefics2", "minicpmv4_6", "qianfan_ocr", "video_llava"])
def test_every_form_is_as_the_backbone_has_it(model_type):
    assert set(processor_forms(processor_of(model_type)).values()) == {"yes"}


def test_mllama_has_one_token_for_an_image_and_no_mixed_batches():
    processor = SugarProcessor(processor_of("mllama"))
    forms = processor_forms(processor.backbone_processor)
    said = "sample 0 has 0 images and sample 1 1: in a batch of MllamaProcessor they would change each other"
    assert said in forms.pop("mixed batch")
    assert set(forms.values()) == {"yes"}
    features = processor([[ONE, TWO, "A cat."], ["A dog.", TWO, ONE]])
    slices = features["slice_map"].abs()  # an image of one token is marked as a text is
    assert torch.bincount(slices[0])[1:3].tolist() == [1, 1]
    assert features["cross_attention_mask"].shape[:2] == features["input_ids"].shape
    is_image = features["input_ids"] == processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    assert torch.equal(is_image[1], torch.isin(slices[1], torch.tensor([2, 3])))


@pytest.mark.parametrize("splits", [False, True])
def test_idefics2_has_the_same_number_of_tokens_for_every_image(splits):
    backbone = processor_of("idefics2")
    backbone.image_processor.do_image_splitting = splits
    backbone.image_seq_len = 3
    processor = SugarProcessor(backbone)
    features = processor([[ONE, TWO, "A cat.", ONE], "A dog."])
    count = 15 if splits else 3
    counts = torch.bincount(features["slice_map"][0].clamp(min=0))[1:].tolist()
    assert counts == [count, count, 0, count]  # the text has -3
    is_image = features["input_ids"] == processor.tokenizer.convert_tokens_to_ids("<image>")
    assert torch.equal(is_image[0], torch.isin(features["slice_map"][0], torch.tensor([1, 2, 4])))


@pytest.mark.parametrize(
    ("model_type", "name", "reason"),
    [
        ("blip-2", "Blip2Processor", "it tokenises pieces of a text one by one"),
        ("florence2", "Florence2Processor", "it does not write an image in the place of"),
        ("git", "GitProcessor", "it names no token that stands for an image"),
        ("got_ocr2", "GotOcr2Processor", "it does not write an image in the place of"),
        ("idefics", "IdeficsProcessor", "it names no token that stands for an image"),
        ("kosmos-2.5", "Kosmos2_5Processor", "it writes .* or not in their places"),
        since_5_23(
            "shieldgemma2",
            "ShieldGemma2Processor",
            "it leaves out texts or writes them elsewhere",
            reason="it is mapped to no processor",
        ),
    ],
)
def test_images_that_cannot_be_found_are_refused_in_one_sentence(model_type, name, reason):
    processor = SugarProcessor(processor_of(model_type))
    message = rf"^sample 0: no images can be used with {name}: {reason}.*\. Leave images out, or take a backbone whose"
    with pytest.raises(ValueError, match=message):
        processor([["A cat.", ONE]])


@pytest.mark.parametrize("model_type", ["blip-2", "git", "idefics"])
def test_texts_alone_work_where_images_do_not(model_type):
    assert processor_forms(processor_of(model_type))["text"] == "yes"


@pytest.mark.parametrize("model_type", [HUNYUAN])
def test_a_template_without_bos_gets_none_where_the_backbone_gives_none(model_type):
    backbone = processor_of(model_type)
    backbone.chat_template = backbone.chat_template.replace("{{ bos_token }}", "")
    processor = SugarProcessor(backbone)
    chat = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}]}]
    expected = backbone.apply_chat_template([chat], tokenize=True, return_dict=True, return_tensors="pt")
    assert torch.equal(processor([chat])["input_ids"], expected["input_ids"])
    assert processor.tokenizer.bos_token_id not in processor([chat])["input_ids"]
    assert torch.equal(processor(["A cat."])["input_ids"], backbone(text="A cat.", return_tensors="pt")["input_ids"])


# --- what a version of transformers may change


def shifted(record):
    return [{**entry, "new_span": tuple(n + 1 for n in entry["new_span"])} for entry in record]


NOTES = {
    "none": lambda record: [],
    "one too few": lambda record: record[:-1],
    "shifted": shifted,
    "reversed": lambda record: record[::-1],
    "renamed": lambda record: [{"kind": "image", "place": entry["new_span"]} for entry in record],
    "no list": lambda record: None,
}


@pytest.mark.parametrize("build", [build_tiny_llava, build_tiny_gemma3, build_tiny_idefics3, build_tiny_qwen2_vl])
def test_other_notes_on_where_images_are_change_nothing(build, monkeypatch):
    processor = SugarProcessor(build()[1])
    samples = [["A cat.", ONE, TWO, "A dog."], [TWO, ONE]]
    expected = processor(samples)
    for change in NOTES.values():
        monkeypatch.setattr(
            tokenizing_sugar,
            "recorded_spans",
            lambda text, record, count, change=change: recorded_spans(text, change(record), count),
        )
        assert_same(processor(samples), expected)


def test_a_processor_that_writes_otherwise_beside_others_is_refused(monkeypatch):
    processor = SugarProcessor(build_tiny_llava()[1])
    original = ProcessorMixin.get_text_with_replacements

    def changed(self, text, images, *args, **kwargs):
        if not images:
            return original(self, text, images, *args, **kwargs)
        return original(self, text, [one + "<image>" * (len(images) > 1) for one in images], *args, **kwargs)[0], []

    monkeypatch.setattr(ProcessorMixin, "get_text_with_replacements", changed)
    assert processor([[ONE, "A cat."]])["slice_map"].abs().max() == 2
    with pytest.raises(ValueError, match="it writes 20 tokens '<image>' for images that have 18 when alone"):
        processor([[ONE, "A cat.", TWO]])


class Meddling:
    """Makes a processor's result another one."""

    def __init__(self, change):
        self.change = change

    def __call__(self, monkeypatch, backbone):
        original = type(backbone).__call__

        def changed(processor, *args, **kwargs):
            return self.change(original(processor, *args, **kwargs))

        monkeypatch.setattr(type(backbone), "__call__", changed)


def test_tokens_that_are_changed_afterwards_are_refused(monkeypatch):
    _, backbone = build_tiny_llava()
    Meddling(lambda found: {**found, "input_ids": found["input_ids"].flip(1)})(monkeypatch, backbone)
    with pytest.raises(ValueError, match=r"sample 0: .* it changes the tokens of a text afterwards"):
        SugarProcessor(backbone)([[ONE, "A cat."]])


def test_what_a_processor_leaves_as_a_list_stays_one(monkeypatch):
    _, backbone = build_tiny_llava()
    Meddling(lambda found: {**found, "tiles": [[1, 2]]})(monkeypatch, backbone)
    assert SugarProcessor(backbone)([[ONE, "A cat."]])["tiles"] == [[1, 2]]


def test_the_sample_that_a_processor_fails_at_is_named(monkeypatch):
    processor = SugarProcessor(build_tiny_llava()[1])
    original = type(processor.image_processor).__call__

    def picky(self, images, *args, **kwargs):
        if any(image.size == TWO.size for row in images for image in row):
            raise RuntimeError("too wide")
        return original(self, images, *args, **kwargs)

    monkeypatch.setattr(type(processor.image_processor), "__call__", picky)
    with pytest.raises(ValueError, match=r"^sample 2: LlavaProcessor cannot process its images \(too wide\)"):
        processor(["A cat.", [ONE, "A dog."], [ONE, TWO], "Two."])


# --- configurations that name no image token


def test_a_configuration_without_image_token_names_none():
    assert SugarConfig(vlm_config=tiny_config("git")).image_token_id is None
    assert SugarConfig(vlm_config=tiny_config("idefics")).image_token_id is None
    assert SugarConfig(vlm_config=tiny_config("llava")).image_token_id == tiny_config("llava").image_token_id


@pytest.mark.parametrize(("has_image", "expected"), [(True, 0), (False, 2)])
def test_a_beginning_with_images_is_reused_as_a_whole_where_no_token_is_known(has_image, expected):
    images = {"pixel_values": torch.zeros(1, 3, 4, 4)} if has_image else {}
    beginning = {"input_ids": torch.tensor([[1, 2, 3]]), **images}
    other = {"input_ids": torch.tensor([[1, 2, 4, 5]]), **images}
    same = {"input_ids": torch.tensor([[1, 2, 3, 5]]), **images}
    assert shared_length(beginning, other, None) == expected
    assert shared_length(beginning, same, None) == 3


@pytest.mark.parametrize("model_type", ["smolvlm", "llava_next_video"])
def test_torchvision_changes_no_pixel(model_type, tmp_path, monkeypatch):
    """With torchvision, transformers would take another backend than the one that wrote the folder."""
    asked = []

    def from_pretrained(path, **kwargs):
        asked.append(kwargs["backend"])
        return AutoImageProcessor.from_pretrained(path, **kwargs)

    monkeypatch.setattr(processing_sugar, "is_torchvision_available", lambda: True)
    monkeypatch.setattr(processing_sugar, "AutoImageProcessor", SimpleNamespace(from_pretrained=from_pretrained))
    config = tiny_config(model_type)
    backbone = tiny_processor(model_type, config)
    backbone.save_pretrained(tmp_path)
    config.save_pretrained(tmp_path)
    loaded = SugarProcessor.from_pretrained(tmp_path)
    assert asked == ["pil"]
    assert type(loaded.image_processor) is type(backbone.image_processor)
    assert_same(loaded([["A cat.", ONE, "A dog."]]), SugarProcessor(backbone)([["A cat.", ONE, "A dog."]]))
