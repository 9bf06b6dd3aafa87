"""Export to the Hugging Face Hub: a folder that works where only transformers is installed."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers import PreTrainedConfig, PreTrainedModel

from .adapters import has_adapters
from .checkpoint_sugar import save_code, staged, write_settings
from .model_card import is_hub_name, model_card
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


def export_for_hub(
    model: PreTrainedModel,
    processor: SugarProcessor,
    folder: str | Path,
    *,
    metrics: Mapping[str, float | str] | str | None = None,
    description: str = "",
    name: str | None = None,
    card_data: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
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
        training: How it was trained, from `sugar_hf.training.training_record`.

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
        add_code(stage, model.config)
        card = model_card(model, name or folder.name, metrics, description, card_data, training=training)
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
    training: Mapping[str, Any] | None = None,
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
        training: See [`export_for_hub`].
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
            training=training,
        )
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
        )
    return commit.commit_url


def add_code(folder: Path, config: PreTrainedConfig) -> None:
    """Make of a saved model and processor a folder that works with `trust_remote_code=True`.

    Args:
        folder: Where both were saved. It gets the code, and the settings that name it.
        config: The model's configuration.
    """
    write_settings(folder, with_code=True)
    drop_folders(folder / "config.json")
    _add_settings(folder / "config.json", CONFIG_ADDITIONS)
    _add_settings(folder / "processor_config.json", PROCESSOR_ADDITIONS)
    save_code(folder, config)


def drop_folders(file: Path) -> None:
    """Take the names of folders on this machine out of a configuration; Hub names of what it was made of stay."""

    def cleaned(settings: Any) -> Any:
        if not isinstance(settings, dict):
            return settings
        names = {key for key in ("_name_or_path", "name_or_path") if not is_hub_name(str(settings.get(key)))}
        return {key: cleaned(value) for key, value in settings.items() if key not in names}

    settings = cleaned(json.loads(file.read_text(encoding="utf-8")))
    file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _add_settings(file: Path, additions: dict[str, Any]) -> None:
    settings = {**json.loads(file.read_text(encoding="utf-8")), **additions}
    file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
