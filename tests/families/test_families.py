"""What has to hold for every family of backbones that has a builder, with its real processor."""

import json
import os
import subprocess
import sys
import warnings

import pytest
import torch
from builders import build_sugar, build_tiny_paligemma2, cached_sugar, picture
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    pipeline,
)
from versions import IS_BEFORE_5_23

from sugar_hf.model import SugarForConditionalGeneration, SugarProcessor, check_prefix_embeddings, export_for_hub

SQUARE, WIDE, SMALL = picture(1, 48, 48), picture(2, 96, 48), picture(3)
CHAT = [
    {"role": "user", "content": [{"type": "image", "image": SMALL}, {"type": "text", "text": "What is it?"}]},
    {"role": "assistant", "content": "A bird."},
]
LONG = ["A cat sits.", SQUARE, WIDE, "Two dogs\nrun.", SQUARE, "The sun rises."]
LONGER = [SQUARE, WIDE, "Two balls.", SMALL, "A dog.", "The lake.", WIDE]
SAMPLES = ["A cat.", SQUARE, LONG, CHAT]

#: Image tokens of `SQUARE` and `WIDE`, by hand from the sizes in builders.
IMAGE_TOKENS = {
    "llava": (9, 9),
    "llava_next": (9 + 3 * 3 + 3, 9 + 3 * 6 + 3),  # the whole, tiles, a token at the end of each row
    "llava_onevision": (9 + 1, 9 + 1),  # two images: not tiled
    "qwen2_vl": (3 * 3, 2 * 5),  # cells of 16 x 16; the wide one is above the limit of 64 * 64 pixels
    "qwen2_5_vl": (3 * 3, 2 * 5),
    "qwen3_vl": (3 * 3, 2 * 5),
    "idefics3": (4 * (4 + 1), 4 * (2 + 1)),  # tiles of the image at 64 pixels, and the whole
    "smolvlm": (4 * (4 + 1), 4 * (2 + 1)),
    "gemma3": (4, 4),
    "internvl": (4, 4 * (2 + 1)),  # one tile needs no image of the whole
    "paligemma": (16, 16),
}
#: Families whose embeddings inside a sample are not those of its beginnings, and what says so.
INEXACT = {
    "llava_onevision": ("gives an image 30 tokens in one sample and 10 in a longer one",),
    "paligemma": ("tokens see what comes after them", "otherwise when more follows"),
}


@torch.no_grad()
def embed(model, processor, samples, **options):
    return model.get_retrieval_embeddings(**processor(samples, **options))


# --- logits, loss, generation


@torch.no_grad()
def test_logits_loss_and_generation_are_the_backbones(sugar):
    model, processor = sugar
    inputs = processor(SAMPLES, return_labels=True)
    backbone_inputs = {key: value for key, value in inputs.items() if key != "slice_map"}
    output, expected = model(**inputs), model.vlm(**backbone_inputs)
    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(output.loss, expected.loss)
    prompt = processor([CHAT[:1], LONG], padding_side="left", add_generation_prompt=True)
    generated = model.generate(**prompt, max_new_tokens=5, do_sample=False)
    prompt.pop("slice_map")
    assert torch.equal(generated, model.vlm.generate(**prompt, max_new_tokens=5, do_sample=False))


@torch.no_grad()
def test_inputs_are_those_of_the_backbones_processor(sugar):
    _, processor = sugar
    chats = [CHAT[:1], [{"role": "user", "content": [*CHAT[0]["content"][:1], *CHAT[0]["content"]]}]]
    for chat in chats:
        expected = processor.backbone_processor.apply_chat_template(
            chat, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
        found = processor([chat], add_generation_prompt=True)
        expected.pop("labels", None)  # one family makes some, for another format
        assert found.keys() - {"slice_map"} == expected.keys()
        for key in expected:
            assert torch.equal(torch.as_tensor(found[key]), torch.as_tensor(expected[key])), key


@torch.no_grad()
def test_logits_are_the_output_embeddings_of_the_last_states(sugar):
    model, processor = sugar
    output = model(**processor(SAMPLES))
    assert torch.equal(model.get_output_embeddings()(output.last_hidden_state), output.logits)


@torch.no_grad()
@pytest.mark.skipif(IS_BEFORE_5_23, reason="there the backbone does not change its logits")
def test_logits_may_be_more_than_output_embeddings():
    """PaliGemma 2 caps them: nothing may take the product of states and output embeddings for the logits."""
    vlm, backbone_processor = build_tiny_paligemma2()
    model = SugarForConditionalGeneration.from_backbone(vlm, retrieval_dim=16)
    inputs = SugarProcessor(backbone_processor)(SAMPLES, return_labels=True)
    output = model(**inputs)
    inputs.pop("slice_map")
    assert torch.equal(output.loss, vlm(**inputs).loss)
    raw = model.get_output_embeddings()(output.last_hidden_state)
    assert not torch.allclose(raw, output.logits, atol=1e-2)
    assert torch.allclose(3 * torch.tanh(raw / 3), output.logits, atol=1e-6)


@torch.no_grad()
def test_loss_is_the_mean_over_labels(sugar):
    model, processor = sugar
    inputs = processor(SAMPLES, return_labels=True)
    output = model(**inputs)
    labels = inputs["labels"][:, 1:]
    learnt = labels != -100
    entropies = torch.nn.functional.cross_entropy(output.logits[:, :-1][learnt], labels[learnt], reduction="none")
    assert torch.allclose(output.loss, entropies.mean(), atol=1e-6)
    shared = model(**inputs, num_items_in_batch=torch.tensor(100)).loss  # as the trainer does
    assert torch.allclose(shared, entropies.sum() / 100, atol=1e-6)


@torch.no_grad()
def test_no_label_is_seen_before_it_is_written(sugar):
    model, processor = sugar
    for sample in (CHAT, LONG, [SQUARE, "A dog."]):
        inputs = processor([sample], return_labels=True)
        logits = model(**inputs).logits
        for place in (inputs["labels"][0] != -100).nonzero().flatten().tolist():
            changed = inputs["input_ids"].clone()
            changed[0, place] = processor.tokenizer.convert_tokens_to_ids("x")
            other = model(**{**inputs, "input_ids": changed}).logits
            assert torch.allclose(other[0, :place], logits[0, :place], atol=1e-5)


# --- slice map


@pytest.mark.parametrize("side", ["left", "right"])
def test_slices_by_hand(sugar, family, side):
    """Adjacent images, tiles, rows without images, padding."""
    model, processor = sugar
    samples = [[SQUARE, WIDE, "A cat."], "A dog.", ["One.", SQUARE, "Two.", WIDE], [WIDE, WIDE]]
    features = processor(samples, padding_side=side)
    square, wide = IMAGE_TOKENS[family]
    expected = [[square, wide, 0], [0], [0, square, 0, wide], [wide, wide]]  # a text is marked by -k
    is_image = features["input_ids"] == model.config.image_token_id
    assert (features["attention_mask"][1, 0 if side == "left" else -1]) == 0
    for i, (sample, counts) in enumerate(zip(samples, expected, strict=True)):
        slices, ids = features["slice_map"][i], features["input_ids"][i]
        assert torch.bincount(slices.clamp(min=0), minlength=len(counts) + 1)[1:].tolist() == counts
        assert not slices[features["attention_mask"][i] == 0].any()
        numbers = slices[slices != 0].abs()
        assert torch.equal(numbers, numbers.sort().values)
        parts = sample if isinstance(sample, list) else [sample]
        images = {number for number, part in enumerate(parts, start=1) if not isinstance(part, str)}
        assert torch.equal(is_image[i], torch.isin(slices, torch.tensor(sorted(images))))
        for number in set(range(1, len(parts) + 1)) - images:
            own = (slices == -number).nonzero()[:, 0]
            assert processor.decode(ids[own]).strip() == parts[number - 1]
            real = features["attention_mask"][i][: own[-1] + 1].bool()
            assert processor.decode(ids[: len(real)][real]).endswith(parts[number - 1])


@pytest.mark.parametrize(("side", "text_pooling"), [("left", "mean"), ("right", "mean"), ("left", "last")])
def test_padding_batch_and_neighbours_do_not_matter(sugar, side, text_pooling, monkeypatch):
    model, processor = sugar
    monkeypatch.setattr(model.config, "text_pooling", text_pooling)
    together, _ = embed(model, processor, SAMPLES, padding_side=side)
    reverse, _ = embed(model, processor, SAMPLES[::-1], padding_side=side)
    for i, sample in enumerate(SAMPLES):
        alone, mask = embed(model, processor, [sample], padding_side=side, pad_to_multiple_of=128)
        count = mask.shape[1]
        assert torch.allclose(alone[0], together[i, :count], atol=1e-5)
        assert torch.allclose(alone[0], reverse[-1 - i, :count], atol=1e-5)
    other_side, _ = embed(model, processor, SAMPLES, padding_side="left" if side == "right" else "right")
    assert torch.allclose(together, other_side, atol=1e-5)


def test_an_image_reaches_its_own_slice(sugar):
    """Guards the invariance tests: they would pass if all embeddings were the same."""
    model, processor = sugar
    embeds = embed(model, processor, [LONG])[0][0]
    assert (embeds @ embeds.T).fill_diagonal_(0).max() < 0.9999
    other = embed(model, processor, [[*LONG[:4], picture(9, 48, 48), LONG[5]]])[0][0]
    distances = (embeds - other).norm(dim=-1)
    assert distances[4] > 1e-3
    assert distances[4] > 0.8 * distances.max()  # the text after it moves with it, and may do so further


@torch.no_grad()
def test_embeddings_need_no_logits(sugar, monkeypatch):
    model, processor = sugar
    inputs = processor(SAMPLES)
    expected = model(**inputs).retrieval_embeds

    def refuse(*args):
        raise AssertionError("logits were computed")

    monkeypatch.setattr(model.get_output_embeddings(), "forward", refuse)
    embeds, mask = model.get_retrieval_embeddings(**inputs)
    assert torch.allclose(embeds, expected, atol=1e-6)
    assert mask.sum() == 11


# --- prefixes


@pytest.mark.parametrize("text_pooling", ["last", "mean"])
def test_prefixes_are_exact_or_said_not_to_be(sugar, family, text_pooling, monkeypatch):
    model, processor = sugar
    monkeypatch.setattr(model.config, "text_pooling", text_pooling)
    deviations = []
    for sample in (LONG, LONGER):
        whole, _ = embed(model, processor, [sample])
        for end in range(1, len(sample)):
            prefix, _ = embed(model, processor, [sample[:end]])
            deviations.append(float((prefix[0] - whole[0, :end]).abs().max()))
    check = check_prefix_embeddings(model, processor)
    assert check.is_exact == (max(deviations) < 1e-5)
    assert check.is_exact == (family not in INEXACT)
    assert (check.deviation < 1e-5) == check.is_exact
    for reason in INEXACT.get(family, ()):
        assert reason in str(check)


def test_positions_of_inexact_families_are_warned_about_once(sugar, family):
    model, processor = sugar
    retrieve = pipeline("sugar-retrieval", model=model, processor=processor, device="cpu")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(2):
            assert len(retrieve({"query": LONG}, ["A cat.", SQUARE], return_positions=True)) == len(LONG)
    ours = [str(warning.message) for warning in found if "return_positions" in str(warning.message)]
    assert len(ours) == (family in INEXACT)
    assert all(reason in ours[0] for reason in INEXACT.get(family, ()))


# --- folders


@torch.no_grad()
def test_round_trip_is_bit_equal(sugar, tmp_path):
    model, processor = sugar
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    inputs = processor([LONG], return_labels=True)
    loaded_processor = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded_processor, SugarProcessor)
    assert "video_processor" not in type(loaded_processor.backbone_processor).get_attributes()
    loaded_inputs = loaded_processor([LONG], return_labels=True)
    assert inputs.keys() == loaded_inputs.keys()
    assert all(torch.equal(inputs[key], loaded_inputs[key]) for key in inputs)
    for auto_class in (AutoModel, AutoModelForImageTextToText, AutoModelForCausalLM):
        loaded = auto_class.from_pretrained(tmp_path)
        assert isinstance(loaded, SugarForConditionalGeneration)
        state = loaded.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        assert torch.equal(loaded(**inputs).retrieval_embeds, model(**inputs).retrieval_embeds)
    assert loaded.generation_config.max_new_tokens == model.generation_config.max_new_tokens


def as_on_the_hub(folder):
    """Bring a processor's files to the form in which most checkpoints lie on the Hub, video settings included."""
    settings = json.loads((folder / "processor_config.json").read_text())
    image_settings = settings.pop("image_processor")
    image_settings["processor_class"] = settings["processor_class"]
    (folder / "preprocessor_config.json").write_text(json.dumps(image_settings))
    (folder / "video_preprocessor_config.json").write_text('{"video_processor_type": "Qwen2VLVideoProcessor"}')
    if settings.keys() == {"processor_class"}:
        (folder / "processor_config.json").unlink()
    else:
        (folder / "processor_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("is_from_the_hub", [False, True])
@torch.no_grad()
def test_from_backbone_folder_has_the_backbones_weights(sugar, tmp_path, is_from_the_hub):
    model, processor = sugar
    model.vlm.save_pretrained(tmp_path)
    processor.backbone_processor.save_pretrained(tmp_path)
    if is_from_the_hub:
        as_on_the_hub(tmp_path)
    loaded = SugarForConditionalGeneration.from_backbone(tmp_path, retrieval_dim=8, retrieval_hidden_size=12)
    state = loaded.vlm.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.vlm.state_dict().items())
    assert loaded.retrieval_head.pooled_to_hidden.weight.shape == (12, 32)
    assert loaded.retrieval_head.pooled_to_hidden.weight.std() > 0.01
    loaded_processor = SugarProcessor.from_pretrained(tmp_path)
    assert type(loaded_processor.backbone_processor).__name__ == type(processor.backbone_processor).__name__
    inputs = loaded_processor([LONG])
    assert torch.equal(inputs["input_ids"], processor([LONG])["input_ids"])
    assert loaded(**inputs).retrieval_embeds.shape == (1, 6, 8)


# Runs where `import sugar_hf` fails; for all families at once, as starting Python takes most of the time.
STRANGER = """
import sys
sys.modules["sugar_hf"] = None
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

root, *families = sys.argv[1:]
torch.set_num_threads(1)
for family in families:
    processor = AutoProcessor.from_pretrained(f"{root}/{family}", trust_remote_code=True)
    model = AutoModelForImageTextToText.from_pretrained(f"{root}/{family}", trust_remote_code=True)
    assert "sugar_hf" not in type(model).__module__
    inputs = processor([["A cat.", Image.open(f"{root}/image.png"), "A dog."]])
    with torch.no_grad():
        save_file({"embeds": model(**inputs).retrieval_embeds}, f"{root}/{family}/embeds.safetensors")
"""


EXPORT_TEST = "test_export_works_without_the_package"


@pytest.fixture(scope="session")
def exported(request, tmp_path_factory):
    """A folder for each family that is tested, with the embeddings that a stranger to the package gets from it."""
    tested = [item.callspec.params["family"] for item in request.session.items if item.name.startswith(EXPORT_TEST)]
    root = tmp_path_factory.mktemp("hub")
    SQUARE.save(root / "image.png")
    for name in tested:
        export_for_hub(*cached_sugar(name), root / name)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HOME": str(root / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", STRANGER, str(root), *tested]
    done = subprocess.run(
        command, env=environment, cwd=root, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    return root, done.stderr


@torch.no_grad()
def test_export_works_without_the_package(sugar, family, exported):
    model, processor = sugar
    root, said = exported
    assert (root / family / "embeds.safetensors").is_file(), said
    expected = model(**processor([["A cat.", SQUARE, "A dog."]])).retrieval_embeds
    assert torch.allclose(load_file(root / family / "embeds.safetensors")["embeds"], expected, atol=1e-6)


# --- gradients


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
def test_gradient_checkpointing_gives_the_same_gradients(family):
    gradients = []
    for options in (None, {"use_reentrant": True}, {"use_reentrant": False}):
        model, processor = build_sugar(family)
        model.train()
        if options is not None:
            model.gradient_checkpointing_enable(options)
            model.enable_input_require_grads()
        output = model(**processor([LONG, CHAT, "Two balls."], return_labels=True))
        embeds = output.retrieval_embeds[output.retrieval_mask]
        (output.loss + (embeds @ embeds.T - torch.eye(len(embeds))).square().mean()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        assert all(torch.allclose(gradient, others[name], atol=1e-5) for others in gradients[1:]), name
    assert any("vis" in name and gradient.abs().sum() > 0 for name, gradient in gradients[0].items())
