"""A folder for other engines: the backbone as what it is, the head as modules of sentence-transformers."""

import copy
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from builders import build_sugar, cached_sugar, picture
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from sentence_transformers import SentenceTransformer
from tokenizers.processors import Sequence
from torch import nn

from sugar_cli.export_command import export
from sugar_hf import SugarEmbedder
from sugar_hf.model import export_for_serving
from sugar_hf.model.modeling_sugar import RetrievalHead
from sugar_hf.model.native_export import CHAT, embedding_template, forms_served

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*do not embed every sample:UserWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]

ALWAYS = ["a text", "an image, then a text", "several images, then a text"]
# What sentence-transformers is given, and the sample that it stands for.
PAIRS = [
    ("A cat and a dog", ["A cat and a dog"]),
    ("  a cat \n", ["a cat"]),
    ({"image": picture(1), "text": "A cat."}, [picture(1), "A cat."]),
    ({"image": [picture(1), picture(2)], "text": "a cat"}, [picture(1), picture(2), "a cat"]),
    (
        [{"role": "user", "content": [{"type": "image", "image": picture(3)}, {"type": "text", "text": "It sits."}]}],
        [picture(3), "It sits."],
    ),
]

# Runs where `import sugar_hf` fails, and trusts no code.
STRANGER = """
import sys
sys.modules["sugar_hf"] = None
import numpy as np, torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForImageTextToText, AutoProcessor

folder, image, out = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder)
model = AutoModelForImageTextToText.from_pretrained(folder)
content = [{"type": "image", "image": Image.open(image)}, {"type": "text", "text": "What?"}]
options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
inputs = processor.apply_chat_template([[{"role": "user", "content": content}]], **options)
answer = model.generate(**inputs, do_sample=False, max_new_tokens=5)
encoder = SentenceTransformer(folder, device="cpu")
vectors = encoder.encode(["A cat and a dog", {"image": Image.open(image), "text": "A cat."}])
torch.save({"answer": answer, "class": type(model).__name__, "vectors": torch.tensor(vectors)}, out)
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("native") / "served"
    with pytest.warns(
        UserWarning, match=r"do not embed every sample[\s\S]*an image at the end: its tokens are pooled"
    ):
        report = export_for_serving(*cached_sugar("llava"), folder)
    return folder, report


def test_works_without_the_package_and_without_code(exported, tmp_path):
    folder, _ = exported
    model, processor = cached_sugar("llava")
    picture(1).save(tmp_path / "image.png")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", STRANGER, str(folder), str(tmp_path / "image.png"), str(tmp_path / "out.pt")]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True, stdin=subprocess.DEVNULL)
    found = torch.load(tmp_path / "out.pt")
    assert found["class"] == type(model.vlm).__name__
    chat = [{"role": "user", "content": [{"type": "image", "image": picture(1)}, {"type": "text", "text": "What?"}]}]
    inputs = processor([chat], add_generation_prompt=True)
    assert torch.equal(found["answer"], model.generate(**inputs, do_sample=False, max_new_tokens=5))
    mine = SugarEmbedder(model, processor).encode([["A cat and a dog"], [picture(1), "A cat."]])
    np.testing.assert_allclose(found["vectors"].numpy(), mine, atol=1e-6)


@pytest.mark.parametrize("family", ["llava", "gemma3", "idefics3"])
def test_the_vectors_are_those_of_sugar_alone_and_in_a_batch(family, tmp_path):
    model, processor = cached_sugar(family)
    report = export_for_serving(model, processor, tmp_path)
    assert set(ALWAYS) <= set(report.exact)
    encoder, mine = SentenceTransformer(str(tmp_path), device="cpu"), SugarEmbedder(model, processor)
    given, samples = zip(*PAIRS, strict=True)
    expected = mine.encode(list(samples))
    np.testing.assert_allclose(encoder.encode(list(given[:-1])), expected[:-1], atol=1e-6)
    with pytest.raises(Exception, match="Only texts and images"):  # a chat among others is no message of the user
        encoder.encode(list(given))
    for one, vector in zip(given, expected, strict=True):
        np.testing.assert_allclose(encoder.encode([one])[0], vector, atol=1e-6)


def test_what_is_said_to_differ_differs_and_what_is_offered_is_exact(exported, tmp_path):
    folder, report = exported
    model, processor = cached_sugar("llava")
    encoder, mine = SentenceTransformer(str(folder), device="cpu"), SugarEmbedder(model, processor)
    assert (
        report.forms["an image alone"] == "its tokens are pooled by their mean, and other engines take the last token"
    )
    assert report.forms[CHAT]
    assert np.abs(encoder.encode([picture(1)]) - mine.encode([[picture(1)]])).max() > 1e-2
    marked = [picture(1), "."]
    np.testing.assert_allclose(encoder.encode([{"image": picture(1), "text": "."}]), mine.encode([marked]), atol=1e-6)
    last = copy.deepcopy(model)
    last.config.image_pooling = "last"
    report = export_for_serving(last, processor, tmp_path)
    assert {"an image alone", "an image at the end"} <= set(report.exact)
    found = SentenceTransformer(str(tmp_path), device="cpu").encode([picture(1)])
    np.testing.assert_allclose(found, SugarEmbedder(last, processor).encode([[picture(1)]]), atol=1e-6)
    for chat in (
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a cat"}],
        [{"role": "assistant", "content": "a cat"}],
    ):
        with pytest.raises(Exception, match="One message of the user"):
            encoder.encode([chat])


def test_the_form_of_the_folder(exported):
    folder, report = exported
    model, _ = cached_sugar("llava")
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "3_Dense/config.json",
        "3_Dense/model.safetensors",
        "4_Normalize/config.json",
        "README.md",
        "chat_template.jinja",
        "config.json",
        "config_sentence_transformers.json",
        "embedding_template.jinja",
        "generation_config.json",
        "model.safetensors",
        "modules.json",
        "processor_config.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    assert "auto_map" not in config
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        assert not [name for name in weights.keys() if "retrieval_head" in name]  # noqa: SIM118  # no dict
    # what vLLM reads: types by their old names, the kind of pooling as a flag, activations of torch
    modules = json.loads((folder / "modules.json").read_text())
    kinds = ["Transformer", "Pooling", "Dense", "Dense", "Normalize"]
    assert [module["type"] for module in modules] == [f"sentence_transformers.models.{kind}" for kind in kinds]
    pooling = json.loads((folder / "1_Pooling/config.json").read_text())
    assert [key for key, value in pooling.items() if value is True] == ["pooling_mode_lasttoken", "include_prompt"]
    dense = [json.loads((folder / place / "config.json").read_text()) for place in ("2_Dense", "3_Dense")]
    assert [each["activation_function"] for each in dense] == [
        "torch.nn.modules.activation.GELU",
        "torch.nn.modules.linear.Identity",
    ]
    assert dense[-1]["out_features"] == model.config.retrieval_dim
    card = (folder / "README.md").read_text()
    for form, reason in report.forms.items():
        assert f"| {form} | {reason or 'yes'} |" in card
    assert "--runner pooling --convert embed \\\n  --chat-template embedding_template.jinja" in card


def test_a_backbone_in_half_precision_is_embedded_in_float32(tmp_path):
    model, processor = build_sugar("llava")
    for weight in model.vlm.parameters():  # not .to, which rounds the rotary frequencies too
        weight.data = weight.data.to(torch.bfloat16)
    export_for_serving(model, processor, tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.bfloat16}  # noqa: SIM118
    found = SentenceTransformer(str(tmp_path), device="cpu").encode(["a cat"])
    model.vlm.float()
    np.testing.assert_allclose(found, SugarEmbedder(model, processor).encode([["a cat"]]), atol=1e-6)


def test_the_mean_of_a_text_is_served_where_no_token_stands_around_it(tmp_path):
    model, processor = build_sugar("llava")
    model.config.text_pooling = "mean"
    with pytest.raises(ValueError, match=r'no sample as Sugar does[^\n]*train with text_pooling="last"'):
        export_for_serving(model, processor, tmp_path)  # its tokenizer writes a token before a text
    assert not list(tmp_path.iterdir())
    processor.tokenizer.backend_tokenizer.post_processor = Sequence([])
    report = export_for_serving(model, processor, tmp_path)
    assert report.exact == ["a text", "an image alone"]
    assert report.forms["several texts"].startswith("other engines take the mean of all tokens")
    pooling = json.loads((tmp_path / "1_Pooling/config.json").read_text())
    assert [key for key, value in pooling.items() if value is True] == ["pooling_mode_mean_tokens", "include_prompt"]
    assert "the mean of all tokens" in (tmp_path / "README.md").read_text()
    encoder, mine = SentenceTransformer(str(tmp_path), device="cpu"), SugarEmbedder(model, processor)
    given = ["A cat and a dog", "  a cat \n", "x", picture(1)]
    expected = mine.encode([[part] for part in given])
    np.testing.assert_allclose(encoder.encode(given), expected, atol=1e-6)
    parts = [{"type": "text", "text": text} for text in ("A cat", "A dog")]
    theirs = encoder.encode([[{"role": "user", "content": parts}]])
    assert np.abs(theirs - mine.encode([["A cat", "A dog"]])).max() > 1e-3


def test_samples_are_judged_by_how_the_processor_writes_them():
    _, processor = cached_sugar("qwen3_vl")  # without torchvision it can be judged, and not exported
    forms = forms_served(processor, embedding_template(processor), "last")
    assert [form for form in ALWAYS if forms[form]] == []
    assert forms["an image alone"] == "1 token stand behind the last slice"  # which ends the image


@pytest.mark.parametrize(
    ("family", "reason"),
    [("paligemma", "embed no sample as Sugar does[\\s\\S]*PaliGemmaProcessor"), ("qwen3_vl", "install torchvision")],
)
def test_a_processor_that_engines_cannot_use_is_refused(family, reason, tmp_path):
    with pytest.raises(ValueError, match=reason):
        export_for_serving(*cached_sugar(family), tmp_path / "served")
    assert not (tmp_path / "served" / "config.json").exists()


def test_what_the_modules_cannot_express_is_refused(tmp_path):
    model, processor = build_sugar("llava")
    model.retrieval_head.activation = nn.SiLU()
    with pytest.raises(ValueError, match="retrieval head is a RetrievalHead that was changed"):
        export_for_serving(model, processor, tmp_path)
    model.retrieval_head.activation = nn.GELU(approximate="tanh")
    with pytest.raises(ValueError, match="approximate"):
        export_for_serving(model, processor, tmp_path)
    model.retrieval_head = RetrievalHead(model.config)
    model.vlm.config.auto_map = {"AutoModel": "modeling.Model"}
    with pytest.raises(ValueError, match="needs code that is not part of transformers"):
        export_for_serving(model, processor, tmp_path)
    del model.vlm.config.auto_map
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="merge_adapter"):
        export_for_serving(adapted, processor, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_command_says_what_is_exact(tmp_path, capsys):
    model, processor = cached_sugar("llava")
    model.save_pretrained(tmp_path / "sugar")
    processor.save_pretrained(tmp_path / "sugar")
    export(str(tmp_path / "sugar"), tmp_path / "served", name="you/served", layout="native")
    said = capsys.readouterr().out.splitlines()
    assert "exact      a text" in said
    assert any(line.startswith("not exact  an image at the end: its tokens are pooled") for line in said)
    assert 'SentenceTransformer("you/served")' in (tmp_path / "served" / "README.md").read_text()
