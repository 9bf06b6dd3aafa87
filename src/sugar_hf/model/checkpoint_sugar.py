"""Checkpoints: how models and adapters are read, with nothing left to chance, and how a folder is written.

The backbone is read and written by its own class, under our prefix, with the head beside it. A folder is written
atomically, with the settings by which sentence-transformers loads it.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import cached_file, find_adapter_config_file

from .backbone_sugar import check_config
from .configuration_sugar import SugarConfig

HEAD_PREFIX = "retrieval_head."
VLM_PREFIX = "vlm."
# What the head's layers were called in checkpoints of older versions.
OLD_HEAD_NAMES = {"up_proj": "pooled_to_hidden", "down_proj": "hidden_to_embedding"}

# Fields of the configuration that say what the head is and what it takes; options of `from_pretrained`, too.
HEAD_FIELDS = ("retrieval_dim", "retrieval_hidden_size", "image_pooling", "text_pooling")
# Options of `from_pretrained` that say where files are.
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
_FROM_THE_HEAD_OF = r"^vlm\."

CONFIG_FILE = "config.json"
_SINGLE = "model*.safetensors"
_INDEX = "model.safetensors.index*.json"
#: The files of code that travel to the Hub. They lie flat, and import each other only as `from .x import Y`.
CODE_FILES = (
    "backbone_sugar.py",
    "checkpoint_sugar.py",
    "configuration_sugar.py",
    "download_sugar.py",
    "embedding_sugar.py",
    "images_sugar.py",
    "input_module_sugar.py",
    "modeling_sugar.py",
    "pipeline_sugar.py",
    "processing_sugar.py",
    "samples_sugar.py",
    "tokenizing_sugar.py",
)
#: Files of sentence-transformers' settings. `modules.json` names the module that embeds.
PROMPTS_FILE = "config_sentence_transformers.json"
FLAT_MODULE = "input_module_sugar.SugarModule"  # where the code lies in the folder
MODULE = FLAT_MODULE if __name__.startswith("transformers_modules.") else f"{__package__}.{FLAT_MODULE}"


def hub_options(options: dict[str, Any]) -> dict[str, Any]:
    """Those of the options of `from_pretrained` that say where files are."""
    return {key: options[key] for key in _HUB_OPTIONS if options.get(key) is not None}


def new_head_name(key: str) -> str:
    """The name that a weight of the head has today, for a name of any version."""
    before, prefix, name = key.rpartition(HEAD_PREFIX)
    layer, dot, rest = name.partition(".")
    return f"{before}{prefix}{OLD_HEAD_NAMES.get(layer, layer)}{dot}{rest}" if prefix else key


# --- plain backbones


def plain_backbone(backbone: Any, **options: Any) -> PreTrainedModel:
    """Load a vision-language model as transformers does, or take one that is loaded.

    Raises:
        ValueError: If it is no such model, a Sugar model, has adapters, or some of its weights are missing.
    """
    if not isinstance(backbone, str | os.PathLike):
        if not isinstance(backbone, PreTrainedModel):
            raise ValueError(
                f"a {type(backbone).__name__} is no backbone: give a model of transformers, its name on the Hub or "
                "its folder. Take adapters off first (merge_and_unload), or train them on the Sugar model."
            )
        _refuse_sugar(backbone.config)
        check_config(backbone.config)
        if "peft_config" in vars(backbone):
            raise ValueError(
                f"this {type(backbone).__name__} has adapters, which would not be saved with the Sugar model. Merge "
                "them into its weights first."
            )
        return backbone
    where = hub_options(options)
    if find_adapter_config_file(backbone, **where) is not None:
        raise ValueError(
            f"{backbone} is an adapter. One that was trained on a Sugar model loads with "
            "SugarForConditionalGeneration.from_pretrained; merge any other into its base model first."
        )
    config = options.pop("config", None)
    if not isinstance(config, PreTrainedConfig):
        trust = {key: options[key] for key in ("trust_remote_code", "code_revision") if key in options}
        config = AutoConfig.from_pretrained(backbone, **where, **trust)
    _refuse_sugar(config)
    check_config(config)
    options = {**options, **_own_names(options), "output_loading_info": True}
    vlm, info = AutoModelForImageTextToText.from_pretrained(backbone, config=config, **options)
    require_complete(info, backbone)
    return vlm


def is_sugar(config: Any) -> bool:
    """Whether this is a Sugar model's configuration; code from the Hub may define its class a second time."""
    return isinstance(config, PreTrainedConfig) and config.model_type == SugarConfig.model_type


def _refuse_sugar(config: PreTrainedConfig) -> None:
    if is_sugar(config):
        raise ValueError(
            f"{config.name_or_path or 'the model'} is a Sugar model already: load it with "
            "SugarForConditionalGeneration.from_pretrained."
        )


def _own_names(options: dict[str, Any]) -> dict[str, Any]:
    """Options that name modules of the Sugar model, with the names that these have in the backbone alone."""
    changed: dict[str, Any] = {}
    if isinstance(options.get("device_map"), dict):
        places = options["device_map"].items()
        changed["device_map"] = {
            "" if name == VLM_PREFIX.rstrip(".") else name.removeprefix(VLM_PREFIX): place
            for name, place in places
            if not name.startswith(HEAD_PREFIX.rstrip("."))
        }
    quantization = options.get("quantization_config")
    if quantization is not None:
        changed["quantization_config"] = quantization = copy.deepcopy(quantization)
        fields = quantization if isinstance(quantization, dict) else vars(quantization)
        for name in ("llm_int8_skip_modules", "modules_to_not_convert", "ignore"):
            if isinstance(fields.get(name), list):
                fields[name] = [module.removeprefix(VLM_PREFIX) for module in fields[name]]
    return changed


# --- Sugar checkpoints


@dataclass
class Source:
    """Where the weights of a Sugar model are: in files, or in a state dict that was given."""

    path: Any
    config: SugarConfig
    options: dict[str, Any] = field(default_factory=dict)
    state_dict: dict[str, Tensor] | None = None

    @classmethod
    def read(cls, path: Any, config: Any, options: dict[str, Any]) -> Source:
        """Sort the arguments of `from_pretrained`, and read the configuration if none is given."""
        options = dict(options)
        state_dict = options.pop("state_dict", None)
        fields = {key: options.pop(key) for key in HEAD_FIELDS if key in options}
        where = hub_options(options)
        if not is_sugar(config):
            config = SugarConfig.from_pretrained(path if config is None else config, **where, **fields)
        else:
            config = SugarConfig.from_dict({**config.to_dict(), **fields}) if fields else config
        config.name_or_path = str(path or "")
        return cls(path, config, options, state_dict)

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return "the given state dict" if self.path is None else str(self.path)

    def head(self) -> dict[str, Tensor]:
        """The weights of the retrieval head under the names they have today, without the head's prefix."""
        if self.state_dict is not None:
            found = {key: value for key, value in self.state_dict.items() if key.startswith(HEAD_PREFIX)}
        else:
            found = {}
            for file in self._weight_files():
                with safe_open(file, framework="pt") as weights:
                    names = [key for key in weights.keys() if key.startswith(HEAD_PREFIX)]  # noqa: SIM118  # no dict
                    found |= {key: weights.get_tensor(key) for key in names}
        return {new_head_name(key).removeprefix(HEAD_PREFIX): value for key, value in found.items()}

    def _weight_files(self) -> list[str]:
        """The files that hold weights of the head: one, or those that an index names."""
        where = {**hub_options(self.options), "_raise_exceptions_for_missing_entries": False}
        variant = f".{self.options['variant']}" if self.options.get("variant") else ""
        whole = cached_file(self.path, f"model{variant}.safetensors", **where)
        if whole is not None:
            return [whole]
        index = cached_file(self.path, f"model.safetensors.index{variant}.json", **where)
        if index is None:
            raise OSError(f"{self.path} has no weights: neither model{variant}.safetensors nor its index is there.")
        weight_map = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
        names = sorted({file for key, file in weight_map.items() if key.startswith(HEAD_PREFIX)})
        return [file for name in names if (file := cached_file(self.path, name, **where)) is not None]

    def backbone(self) -> tuple[PreTrainedModel, dict[str, Any]]:
        """Load the backbone as the model of its own class. Returns it and the report of what did not fit."""
        options = {**self.options, **_own_names(self.options)}
        given = options.pop("dtype", options.pop("torch_dtype", None))
        options["dtype"] = self.config.dtype or "auto" if given is None else given
        config = self.config.vlm_config
        quantization = vars(self.config).get("quantization_config")
        if quantization is not None and "quantization_config" not in vars(config):
            # where older versions wrote it
            config.quantization_config = _own_names({"quantization_config": quantization})["quantization_config"]
        if self.state_dict is not None:
            own = {key.removeprefix(VLM_PREFIX): value for key, value in self.state_dict.items()}
            options["state_dict"] = {key: value for key, value in own.items() if not key.startswith(HEAD_PREFIX)}
        else:
            options["key_mapping"] = {_FROM_THE_HEAD_OF: "", **(options.get("key_mapping") or {})}
        for key in ("_from_auto", "_from_pipeline"):
            options.pop(key, None)
        vlm, info = _own_class(self.path, config, options)
        if "_weight_conversions" in vars(vlm):  # the rule that took our prefix off is not the backbone's
            vlm._weight_conversions = [
                rule for rule in vlm._weight_conversions if _FROM_THE_HEAD_OF not in rule.source_patterns
            ]
        return vlm, info


def _own_class(path: Any, config: PreTrainedConfig, options: dict[str, Any]) -> tuple[PreTrainedModel, dict[str, Any]]:
    options = {**options, "output_loading_info": True}
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:  # code from the Hub
        return AutoModelForImageTextToText.from_pretrained(path, config=config, **options)
    options.pop("trust_remote_code", None)
    options.pop("code_revision", None)
    backbone_class = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    if isinstance(backbone_class, tuple):
        backbone_class = backbone_class[0]
    # the head's weights lie in the same files: a class of the same name, for this call, that does not warn of them
    ignored = [*(backbone_class._keys_to_ignore_on_load_unexpected or []), rf"^{HEAD_PREFIX}"]
    own = {"_keys_to_ignore_on_load_unexpected": ignored, "__module__": backbone_class.__module__}
    for_this_call: Any = type(backbone_class.__name__, (backbone_class,), own)
    vlm, info = for_this_call.from_pretrained(path, config=config, **options)
    vlm.__class__ = backbone_class
    return vlm, info


def require_complete(info: dict[str, Any], source: Any, prefix: str = "") -> None:
    """Raise if loading left any weight to chance."""
    missing = sorted(prefix * (not key.startswith(HEAD_PREFIX)) + key for key in info["missing_keys"])
    problems = {
        "missing": missing,
        "unexpected": sorted(key for key in info["unexpected_keys"]),
        "of another shape": sorted(str(key if isinstance(key, str) else key[0]) for key in info["mismatched_keys"]),
    }
    found = [f"{len(keys)} {kind}: {', '.join(keys)}" for kind, keys in problems.items() if keys]
    errors = info.get("error_msgs") or info.get("conversion_errors") or {}
    found += [str(error) for error in (errors.values() if isinstance(errors, dict) else errors)]
    if not found:
        return
    hint = ""
    if missing and all(key.startswith(HEAD_PREFIX) for key in missing):
        hint = " To put an untrained retrieval head on a backbone, use SugarForConditionalGeneration.from_backbone."
    raise ValueError(f"The weights of {source} do not fit the model ({'; '.join(found)}).{hint}")


# --- adapters


@dataclass(frozen=True)
class Adapter:
    """An adapter's folder and the model that it belongs to."""

    path: str
    base: str
    revision: str | None  # of the base
    options: dict[str, Any]

    @classmethod
    def find(cls, path: Any, options: dict[str, Any]) -> Adapter | None:
        """Tell an adapter's folder from a checkpoint's; takes `adapter_kwargs` out of the options.

        Raises:
            ValueError: If `adapter_config.json` does not name a base model.
        """
        adapter_options = dict(options.pop("adapter_kwargs", None) or {})
        given = adapter_options.pop("_adapter_model_path", None)  # the Auto classes have found it
        place = path if given is None else given
        if place is None:
            return None
        where = hub_options(options) if given is None else {**hub_options(options), **adapter_options}
        file = find_adapter_config_file(place, **where)
        if file is None:
            return None
        try:
            settings = json.loads(Path(file).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is no valid JSON ({error}). Save the adapter once more.") from None
        base = settings.get("base_model_name_or_path") if isinstance(settings, dict) else None
        if not isinstance(base, str) or not base:
            raise ValueError(
                f"{file} does not name the model that the adapter was trained on. Write its Hub name or folder as "
                '"base_model_name_or_path" into this file.'
            )
        revision = settings.get("revision")
        if given is not None and str(path) != str(given):
            base, revision = (
                str(path),
                options.get("revision"),
            )  # the Auto classes have resolved the base already
        return cls(str(place), base, revision, adapter_options)

    def config(self, options: dict[str, Any]) -> SugarConfig | None:
        """The configuration of the Sugar model that was trained, if it was saved with the adapter."""
        where = {**hub_options(options), "_raise_exceptions_for_missing_entries": False}
        file = cached_file(self.path, "config.json", **where)
        return None if file is None else SugarConfig.from_pretrained(str(Path(file).parent))


def base_config(adapter: Adapter, options: dict[str, Any]) -> PreTrainedConfig:
    """The configuration of the model that an adapter was trained on."""
    where = {key: value for key, value in hub_options(options).items() if key not in ("revision", "subfolder")}
    try:
        return AutoConfig.from_pretrained(adapter.base, revision=adapter.revision, **where)
    except OSError as error:
        raise OSError(
            f"The adapter in {adapter.path} belongs to the model {adapter.base}, which cannot be read: {error} If it "
            'was moved, change "base_model_name_or_path" in adapter_config.json.'
        ) from error


def read_config(name: str | os.PathLike, **options: Any) -> PreTrainedConfig:
    """The configuration of a checkpoint, or of the model that an adapter makes of what it was trained on."""
    adapter = Adapter.find(name, options)
    if adapter is None:
        return AutoConfig.from_pretrained(name, **hub_options(options))
    return adapter.config(options) or base_config(adapter, options)


def unlanded(saved: dict[str, Tensor], model: dict[str, Tensor]) -> list[str]:
    """Names of saved weights of an adapter that the model does not have, or has with other values."""
    wrong = []
    for key, value in saved.items():
        key = new_head_name(key).removeprefix("base_model.model.")
        mine = model.get(key)
        if mine is None or mine.shape != value.shape or not torch.equal(value.to(mine.device, mine.dtype), mine):
            wrong.append(key)
    return wrong


# --- writing


@contextmanager
def staged(folder: str | os.PathLike) -> Iterator[Path]:
    """Yield an empty folder, whose files replace those of the same name in `folder` when the block ends.

    While they are exchanged the folder has no `config.json`, so that nothing loads new weights with an old
    configuration, and weights that are not among the new ones are taken away. If the block fails, or the process dies
    before the exchange, the folder is as it was. Prompts of sentence-transformers that lie there stay.

    Args:
        folder: The folder; made if it is not there.

    Raises:
        NotADirectoryError: If there is a file of that name.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".writing-*"):  # of a process that died
        shutil.rmtree(left, ignore_errors=True)
    stage = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder))
    try:
        yield stage
        files = [file.relative_to(stage) for file in stage.rglob("*") if file.is_file()]
        for file in files:
            _flush(stage / file)
        has_config, has_weights = Path(CONFIG_FILE) in files, any(file.match(_SINGLE) for file in files)
        if has_config:
            (folder / CONFIG_FILE).unlink(missing_ok=True)
        if has_weights:
            for old in (*folder.glob(_SINGLE), *folder.glob(_INDEX)):
                old.unlink()
        kept = [file for file in files if file.name == PROMPTS_FILE and (folder / file).exists()]
        for file in sorted(set(files) - set(kept), key=lambda name: name == Path(CONFIG_FILE)):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(stage / file, folder / file)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _flush(file: Path) -> None:
    """Have the file's bytes on the disk: a rename that is there before them would show an empty file after a crash."""
    with open(file, "rb+") as opened:
        os.fsync(opened.fileno())


def save_backbone(
    vlm: PreTrainedModel, folder: Path, prefix: str, head: dict[str, Tensor], options: dict[str, Any]
) -> None:
    """Save the backbone as its own class does, then put its weights under the prefix and the head beside them.

    Going by the class's own `save_pretrained` undoes whatever loading did to the weights, quantised or not.

    Args:
        vlm: The backbone.
        folder: An empty folder.
        prefix: What the names of its weights get in front.
        head: Weights that are added under their own names.
        options: Of `PreTrainedModel.save_pretrained`.
    """
    vlm.save_pretrained(folder, **options)
    files = sorted(folder.glob(_SINGLE))
    for file in files:
        with safe_open(file, framework="pt") as opened:  # memory-mapped: a shard is not read into memory
            weights = {prefix + key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  # no dict
            metadata = opened.metadata()
        if file == files[-1]:
            weights |= {key: value.detach().cpu().contiguous() for key, value in head.items()}
        renamed = file.with_name(f"{file.name}.renamed")
        save_file(weights, renamed, metadata=metadata)
        del weights
        os.replace(renamed, file)
    for index in folder.glob(_INDEX):
        settings = json.loads(index.read_text(encoding="utf-8"))
        weight_map = {prefix + key: name for key, name in settings["weight_map"].items()}
        settings["weight_map"] = weight_map | dict.fromkeys(head, files[-1].name)
        size = sum(value.numel() * value.element_size() for value in head.values())
        settings["metadata"]["total_size"] = settings["metadata"].get("total_size", 0) + size
        index.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def upload_files(folder: Path, repo_id: str, options: dict[str, Any]) -> None:
    """Upload a folder, with the options of `save_pretrained(push_to_hub=True)`."""
    api = HfApi(token=options.get("token"))
    repo_id = api.create_repo(repo_id, private=options.get("private"), exist_ok=True).repo_id
    known = {key: options[key] for key in ("commit_message", "revision", "create_pr") if key in options}
    api.upload_folder(repo_id=repo_id, folder_path=folder, **known)


def _files(with_code: bool) -> dict[str, Any]:
    return {
        "modules.json": [{"idx": 0, "name": "0", "path": "", "type": FLAT_MODULE if with_code else MODULE}],
        "sentence_bert_config.json": {"processing_kwargs": {}},
        PROMPTS_FILE: {
            "model_type": "SentenceTransformer",
            "prompts": {"query": "", "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
            "requirements": {"sentence-transformers": ">=6.2"},
        },
    }


def read_prompts(name_or_path: str | os.PathLike) -> dict[str, str]:
    """Read the prompts that a checkpoint has for sentence-transformers, by name; none if it has no file of them.

    Args:
        name_or_path: Folder or Hub name.

    Raises:
        ValueError: The file cannot be read.
    """
    is_optional = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    file = cached_file(str(name_or_path), PROMPTS_FILE, **is_optional)
    if file is None:
        return {}
    try:
        settings = json.loads(Path(file).read_text(encoding="utf-8"))
        prompts, default = settings.get("prompts") or {}, settings.get("default_prompt_name")
        is_right = all(isinstance(each, str) for each in (*prompts, *prompts.values()))
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{file} cannot be read ({error}). Mend it, or delete it.") from error
    if not is_right:
        raise ValueError(f'{file}: "prompts" has to hold texts by name, got {prompts!r:.80}.')
    if prompts.get(default):
        warnings.warn(
            f"{file}: sentence-transformers embeds everything with the default prompt {default!r}, SugarEmbedder "
            f"without. Pass prompt_name={default!r} to its encode for the same vectors.",
            stacklevel=3,
        )
    return prompts


def save_code(folder: Path, config: PreTrainedConfig) -> None:
    """Copy the files of code into a model's folder.

    Transformers copies of a folder's code only what it runs. The others come from the folder that the model is of.
    """
    for name in CODE_FILES:
        file = Path(__file__).with_name(name)
        if not file.is_file():
            file = Path(str(cached_file(config.name_or_path, name, revision=vars(config).get("_commit_hash"))))
        shutil.copyfile(file, folder / name)


def write_settings(folder: str | os.PathLike, with_code: bool = False) -> None:
    """Write what sentence-transformers loads a Sugar model by; it need not be installed.

    Args:
        folder: The model's folder; made if it is not there. A `config_sentence_transformers.json` that is there
            already stays: it may hold prompts, and sentence-transformers writes it before it saves the model.
        with_code: Whether the folder brings its code along, for those who do not have this package.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, settings in _files(with_code).items():
        if name != PROMPTS_FILE or not (folder / name).exists():
            (folder / name).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
