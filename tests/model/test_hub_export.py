"""The exported folder works without this package, and everything in it is uploaded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from builders import picture
from hub_stand_in import MODEL_FILES, put_in_place
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, AutoProcessor, pipeline
from transformers.dynamic_module_utils import get_relative_import_files

from sugar_hf.model import SugarForConditionalGeneration, export_for_hub
from sugar_hf.model.checkpoint_sugar import CODE_FILES
from sugar_hf.model.model_card import TEMPLATE, model_card

SAMPLE = ["A cat.", picture(1), "A dog."]

# Runs where `import sugar_hf` fails.
STRANGER = """
import sys
sys.modules["sugar_hf"] = None
import torch
from PIL import Image
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, pipeline

folder, image, out = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = processor([["A cat.", Image.open(image), "A dog."]])
for auto_class in (AutoModel, AutoModelForImageTextToText):
    model = auto_class.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        embeds = model(**inputs).retrieval_embeds
retrieve = pipeline("sugar-retrieval", model=folder, trust_remote_code=True, device="cpu")
found = retrieve({"query": ["A cat.", Image.open(image)]}, ["A dog.", Image.open(image)], top_k=2)
generate = pipeline("sugar-generation", model=folder, trust_remote_code=True, device="cpu")
answer = generate("What?", images=Image.open(image), do_sample=False)
retrieve.save_pretrained(out + "/again")  # and what it saves works as well
again = pipeline("sugar-generation", model=out + "/again", trust_remote_code=True, device="cpu")
assert again("What?", images=Image.open(image), do_sample=False) == answer
assert "sugar_hf" not in type(model).__module__
torch.save({"embeds": embeds, "scores": [result["score"] for result in found], "answer": answer}, out + "/out.pt")
"""

CARD = """---
library_name: transformers
license: apache-2.0
pipeline_tag: image-text-to-text
tags:
- sugar
- multimodal-retrieval
- image-text-to-text
- sentence-transformers
- arxiv:2411.00304
---

# tiny

A test.

One model generates and retrieves over interleaved images and texts: a vision-language model (type `llava`) with a
retrieval head on the hidden states of every slice (an image or a text), trained as in
[Unified Generative and Discriminative Training for Multi-modal Large Language Models](https://arxiv.org/abs/2411.00304)
(Sugar, NeurIPS 2024).

- **Backbone:** type `llava`
- **Embeddings:** 16 dimensions, compared by cosine; the tokens of an image are pooled by `mean`, of a text by `last`
- **License:** apache-2.0

## Use

### Pipelines

```python
from transformers import pipeline

retrieve = pipeline("sugar-retrieval", model="me/tiny", trust_remote_code=True)
retrieve({"query": ["A cat on a mat.", image]}, candidates=["a dog", other_image], top_k=1)

generate = pipeline("sugar-generation", model="me/tiny", trust_remote_code=True)
generate("What is in the picture?", images=image)
```

### Model and processor

```python
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("me/tiny", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("me/tiny", trust_remote_code=True)
inputs = processor([["A cat on a mat.", image]])  # one sample of two slices
embeddings, mask = model.get_retrieval_embeddings(**inputs)  # a unit vector for the end of each slice
```

After `import sugar_hf` these, and sentence-transformers, use the code of the package and need no `trust_remote_code`.

### sentence-transformers

```python
from sentence_transformers import SentenceTransformer  # 6.2 or later

model = SentenceTransformer("me/tiny", trust_remote_code=True)
model.encode(["a dog", image, {"text": "A cat on a mat.", "image": image}])
```

### Server

```bash
pip install "sugar-hf[serve]"
sugar-hf serve me/tiny  # OpenAI's routes, such as /v1/chat/completions and /v1/embeddings
```

## Results

| Metric | Value |
|---|---|
| R@1 | 0.1235 |
| pool | 200 |

## Citation

```bibtex
@inproceedings{sugar2024,
  title     = {Unified Generative and Discriminative Training for Multi-modal Large Language Models},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024},
  url       = {https://arxiv.org/abs/2411.00304}
}
```
"""


@pytest.fixture
def exported(llava, tmp_path):
    model, processor = llava
    return export_for_hub(model, processor, tmp_path / "tiny")


@torch.no_grad()
def test_works_without_the_package(exported, llava, tmp_path):
    model, processor = llava
    picture(1).save(tmp_path / "image.png")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [sys.executable, "-c", STRANGER, str(exported), str(tmp_path / "image.png"), str(tmp_path)],
        env=environment,
        cwd=tmp_path,
        check=True,
        stdin=subprocess.DEVNULL,  # any prompt to trust the code would fail
    )
    found = torch.load(tmp_path / "out.pt")
    assert torch.allclose(found["embeds"], model(**processor([SAMPLE])).retrieval_embeds, atol=1e-6)
    retrieve = pipeline("sugar-retrieval", model=model, processor=processor, device="cpu")
    expected = retrieve({"query": SAMPLE[:2]}, ["A dog.", picture(1)], top_k=2)
    assert found["scores"] == pytest.approx([result["score"] for result in expected], abs=1e-5)
    generate = pipeline("sugar-generation", model=model, processor=processor, device="cpu")
    assert found["answer"] == generate("What?", images=picture(1), do_sample=False)


def test_exported_files(exported):
    assert {path.name for path in exported.iterdir()} == MODEL_FILES
    config = json.loads((exported / "config.json").read_text())
    assert config["auto_map"]["AutoModel"] == "modeling_sugar.SugarForConditionalGeneration"
    assert config["custom_pipelines"].keys() == {"sugar-retrieval", "sugar-generation"}


def test_what_travels_is_what_the_settings_name_and_what_that_imports():
    source = Path(sys.modules["sugar_hf.model.hub"].__file__).parent
    assert {path.name for path in source.glob("*_sugar.py")} == set(CODE_FILES)
    named = ("configuration", "modeling", "processing", "pipeline", "input_module")
    roots = [str(source / f"{name}_sugar.py") for name in named]
    needed = {Path(file).name for root in roots for file in [root, *get_relative_import_files(root)]}
    assert needed == set(CODE_FILES)
    for file in CODE_FILES:
        for line in (source / file).read_text().splitlines():
            assert not line.lstrip().startswith(("import sugar_hf", "from sugar_hf", "from . import", "from ..")), file


def test_with_the_package_its_own_classes_are_used_and_save_a_clean_folder(exported, tmp_path):
    model = AutoModel.from_pretrained(exported)
    processor = AutoProcessor.from_pretrained(exported)
    assert type(model) is SugarForConditionalGeneration
    model.save_pretrained(tmp_path / "sugar")
    processor.save_pretrained(tmp_path / "sugar")
    assert not {"auto_map", "custom_pipelines"} & json.loads((tmp_path / "sugar" / "config.json").read_text()).keys()
    assert not any(path.suffix == ".py" for path in (tmp_path / "sugar").iterdir())
    assert pipeline("sugar-retrieval", model=str(tmp_path / "sugar"), device="cpu")("a", ["b"])


@pytest.fixture
def hub(tmp_path, monkeypatch):
    return put_in_place(monkeypatch, tmp_path / "hub")


def test_push_uploads_everything(llava, hub):
    model, processor = llava
    url = model.push_to_hub(
        "me/tiny",
        processor,
        metrics={"R@1": 0.12345, "pool": 200},
        description="A test.",
        card_data={"license": "apache-2.0"},
        revision="draft",
    )
    assert url == "https://huggingface.co/me/tiny/commit/1"
    (commit,) = hub.commits
    assert commit["repo_id"] == "me/tiny"
    assert commit["revision"] == "draft"
    assert commit["files"] == MODEL_FILES
    assert (hub.folder("me/tiny") / "README.md").read_text() == CARD


def test_pipelines_push_everything_too(llava, hub):
    model, processor = llava
    pipeline("sugar-retrieval", model=model, processor=processor, device="cpu").push_to_hub("me/tiny")
    assert hub.files("me/tiny") == MODEL_FILES
    assert "## Results" not in (hub.folder("me/tiny") / "README.md").read_text()


def test_the_template_lies_in_the_package_and_is_shown_with_the_cards():
    assert TEMPLATE.parent == Path(sys.modules["sugar_hf.model"].__file__).parent
    assert (Path(__file__).parents[2] / "model_cards" / "template.md").resolve() == TEMPLATE.resolve()


def test_push_needs_the_processor(llava):
    with pytest.raises(ValueError, match="processor is missing"):
        llava[0].push_to_hub("me/tiny")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT asks
def test_adapters_must_be_merged_first(fresh_llava, tmp_path):
    model, processor = fresh_llava
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="merge_adapter"):
        export_for_hub(adapted, processor, tmp_path)
    with pytest.raises(ValueError, match="merge_adapter"):  # an adapter of transformers' own integration
        export_for_hub(model, processor, tmp_path)


def test_a_base_of_the_hub_is_named_with_its_revision_and_a_folder_is_not(fresh_llava, tmp_path):
    model, _ = fresh_llava
    model.config.name_or_path = str(tmp_path)
    model.vlm.config.name_or_path = "llava-hf/llava-1.5-7b-hf"
    model.vlm.config._commit_hash = "b234b804b114d9e37bb655e11cbbb5f5e971b7a9"
    card = ModelCard(model_card(model, "me/tiny"))
    assert card.data.base_model == "llava-hf/llava-1.5-7b-hf"
    assert (
        "(https://huggingface.co/llava-hf/llava-1.5-7b-hf) at revision `b234b804b114d9e37bb655e11cbbb5f5e971b7a9`"
        in card.text
    )
    assert str(tmp_path) not in str(card)
    again = ModelCard(model_card(model, "llava-hf/llava-1.5-7b-hf"))  # a model is not made of itself
    assert again.data.base_model is None
    named = model_card(model, "me/tiny", card_data={"base_model": "you/other"})
    assert "at revision" not in named


def test_what_people_write_into_a_card_is_shown_and_not_obeyed(llava):
    evil = "a | b\n\n<script>c</script>"
    card = model_card(
        llava[0],
        'me/x`"y\n# heading',
        metrics={evil: evil, "R@1": 0.5},
        description="One *paragraph*.\n\n<img src=x onerror=y>",
        card_data={"base_model": "a`\n\n<b>"},
    )
    text = card.split("---\n", 2)[2]
    assert "<script" not in text
    assert "<img" not in text
    assert "<b>" not in text.replace("`a <b>`", "")  # between backticks nothing is obeyed
    assert "One *paragraph*." in text
    assert r"| a \| b &lt;script>c&lt;/script> | a \| b &lt;script>c&lt;/script> |" in text.splitlines()
    assert 'model="me/xy # heading"' in text
    assert not any(line.startswith("# heading") for line in text.splitlines())
