"""Export to the Hugging Face Hub: a folder that works where only transformers is installed."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCardData
from transformers import PreTrainedModel

from .adapters import has_adapters
from .checkpoint_sugar import save_code, staged, write_settings
from .pipeline_sugar import PIPELINES
from .processing_sugar import SugarProcessor

_MODEL = "modeling_sugar.SugarForConditionalGeneration"
CONFIG_ADDITIONS = {
    "auto_map": {
        "AutoConfig": "configuration_sugar.SugarConfig",
        "AutoModel": _MODEL,
        "AutoModelForImageTextToText": _MODEL,
        "AutoModelForCausalLM": _MODEL,
    },
    # Only here: with this key in it, `pipeline` refuses a local folder that it would load with the package installed.
    "custom_pipelines": {
        task: {"impl": f"pipeline_sugar.{pipeline_class.__name__}", "pt": ["AutoModel"], "type": "multimodal"}
        for task, pipeline_class in PIPELINES.items()
    },
}
PROCESSOR_ADDITIONS = {"auto_map": {"AutoProcessor": "processing_sugar.SugarProcessor"}}

CARD = """---
{metadata}
---

# {name}

{description}

One model generates and retrieves over interleaved images and texts: a vision-language model ({base}) with a
retrieval head on the hidden states of every slice (an image or a text), trained as in
[Unified Generative and Discriminative Training for Multi-modal Large Language Models](https://arxiv.org/abs/2411.00304)
(Sugar, NeurIPS 2024).

## Use

```python
from transformers import pipeline

retrieve = pipeline("sugar-retrieval", model="{model}", trust_remote_code=True)
retrieve({{"query": ["A cat on a mat.", image]}}, candidates=["a dog", other_image], top_k=1)

generate = pipeline("sugar-generation", model="{model}", trust_remote_code=True)
generate("What is in the picture?", images=image)
```

```python
from sentence_transformers import SentenceTransformer  # 6.2 or later

model = SentenceTransformer("{model}", trust_remote_code=True)
model.encode(["a dog", image, {{"text": "A cat on a mat.", "image": image}}])
```

`AutoModel.from_pretrained("{model}", trust_remote_code=True)` gives the model, `AutoProcessor` its processor. After
`import sugar_hf` these two, and sentence-transformers, use the code of the package and need no `trust_remote_code`.

Embeddings have {dim} dimensions; the tokens of an image are pooled by `{pooling}`.
{results}"""


def export_for_hub(
    model: PreTrainedModel,
    processor: SugarProcessor,
    folder: str | Path,
    *,
    metrics: Mapping[str, float | str] | str | None = None,
    description: str = "",
    name: str | None = None,
    card_data: Mapping[str, Any] | None = None,
) -> Path:
    """Write model, processor, their code and a model card, for use with `trust_remote_code=True`.

    Args:
        model: A Sugar model.
        processor: Its processor.
        folder: Where to; made if it is not there.
        metrics: Results for the card: a table of names and values, or Markdown.
        description: A paragraph for the card, in Markdown without HTML.
        name: The model's name on the Hub (`user/model`), used in the card; the folder's name when `None`.
        card_data: Further metadata of the card (`license`, `datasets`, `base_model`, ...).

    Returns:
        The folder.

    Raises:
        ValueError: If the model has adapters that are not merged.
    """
    if not isinstance(model, PreTrainedModel) or has_adapters(model):
        raise ValueError(
            f"cannot export a {type(model).__name__} with adapters. Merge them first: sugar_hf.merge_adapter(model)."
        )
    folder = Path(folder)
    with staged(folder) as stage:  # an older export stays whole until this one is
        model.save_pretrained(stage)
        processor.save_pretrained(stage)
        write_settings(stage, with_code=True)
        _add_settings(stage / "config.json", CONFIG_ADDITIONS)
        _add_settings(stage / "processor_config.json", PROCESSOR_ADDITIONS)
        save_code(stage, model.config)
        card = model_card(model, name or folder.name, metrics, description, card_data)
        (stage / "README.md").write_text(card, encoding="utf-8")
    return folder


def push_to_hub(
    model: PreTrainedModel,
    processor: SugarProcessor,
    repo_id: str,
    *,
    metrics: Mapping[str, float | str] | str | None = None,
    description: str = "",
    card_data: Mapping[str, Any] | None = None,
    commit_message: str = "Upload Sugar model",
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload everything that [`export_for_hub`] writes, in one commit.

    Args:
        model: A Sugar model.
        processor: Its processor.
        repo_id: `user/model`; made if it is not there.
        metrics: See [`export_for_hub`].
        description: See [`export_for_hub`].
        card_data: See [`export_for_hub`].
        commit_message: Message of the commit.
        private: Make a new repository private.
        token: Access token; the one that was logged in with when `None`.
        revision: Branch.
        create_pr: Open a pull request instead.

    Returns:
        The address of the commit.
    """
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as temporary:
        folder = export_for_hub(
            model,
            processor,
            Path(temporary) / "model",
            metrics=metrics,
            description=description,
            name=repo_id,
            card_data=card_data,
        )
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
        )
    return commit.commit_url


def model_card(
    model: PreTrainedModel,
    name: str,
    metrics: Mapping[str, float | str] | str | None = None,
    description: str = "",
    card_data: Mapping[str, Any] | None = None,
) -> str:
    """Write the model card; see [`export_for_hub`] for the arguments."""
    data = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["sugar", "multimodal-retrieval", "image-text-to-text", "sentence-transformers", "arxiv:2411.00304"],
        **(card_data or {}),
    }
    if isinstance(metrics, Mapping):
        rows = [
            f"| {in_cell(key)} | {value:.4g} |"
            if isinstance(value, float)
            else f"| {in_cell(key)} | {in_cell(value)} |"
            for key, value in metrics.items()
        ]
        metrics = "\n".join(["| Metric | Value |", "|---|---|", *rows])
    base = f"type `{model.config.vlm_config.model_type}`"
    if "base_model" in data:
        base = f"`{in_code(data['base_model'])}`"
    text = CARD.format(
        metadata=ModelCardData(**data).to_yaml().strip(),
        name=in_line(name.split("/")[-1]),
        model=in_code(name),
        description=without_html(description),
        base=base,
        dim=model.config.retrieval_dim,
        pooling=model.config.image_pooling,
        results=f"\n## Results\n\n{metrics}\n" if metrics else "",
    )
    return text.replace("\n\n\n", "\n\n")


def without_html(text: str) -> str:
    """Markdown whose HTML is shown instead of obeyed; the Hub cleans cards, other viewers may not."""
    return text.replace("<", "&lt;")


def in_line(text: object) -> str:
    """A text in a line of Markdown."""
    return without_html(" ".join(str(text).split()))


def in_cell(text: object) -> str:
    """A text in a cell of a table."""
    return in_line(text).replace("|", "\\|")


def in_code(text: object) -> str:
    """A name in code, between backticks or in quotes, which it must not end."""
    return " ".join(str(text).split()).translate({ord(c): None for c in '`"\\'})


def _add_settings(file: Path, additions: dict[str, Any]) -> None:
    settings = {**json.loads(file.read_text(encoding="utf-8")), **additions}
    file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
