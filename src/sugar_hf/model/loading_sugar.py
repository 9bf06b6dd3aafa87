"""What is checked when a checkpoint is loaded: nothing may be left to chance."""

import json
from typing import Any

from transformers.utils import find_adapter_config_file

from .configuration_sugar import SugarConfig

HEAD_PREFIX = "retrieval_head."


def plain_config(config: Any) -> Any:
    """Refuse to wrap a model twice."""
    if isinstance(config, SugarConfig):
        raise ValueError(
            f"{config.name_or_path or 'the model'} is a Sugar model already: load it with "
            "SugarForConditionalGeneration.from_pretrained."
        )
    return config


def split_adapter(path: Any, kwargs: dict[str, Any]) -> tuple[Any, str | None, dict[str, Any]]:
    """Tell an adapter's folder from a checkpoint's. Returns (base path, adapter path or None, adapter options)."""
    options = dict(kwargs.pop("adapter_kwargs", None) or {})
    adapter = options.pop("_adapter_model_path", None)  # the Auto classes have resolved it
    if adapter is not None and str(path) != str(adapter):
        return path, adapter, options
    hub_options = {key: kwargs[key] for key in ("token", "revision", "cache_dir", "local_files_only") if key in kwargs}
    adapter_config = find_adapter_config_file(path, **hub_options)
    if adapter_config is None:
        return path, None, options
    with open(adapter_config, encoding="utf-8") as file:
        return json.load(file)["base_model_name_or_path"], str(path), options


def require_complete(info: dict[str, Any], source: Any, head_may_lack: bool = False) -> None:
    """Raise if loading left any weight to chance."""
    missing = sorted(key for key in info["missing_keys"] if not (head_may_lack and key.startswith(HEAD_PREFIX)))
    problems = {
        "missing": missing,
        "unexpected": sorted(info["unexpected_keys"]),
        "of another shape": sorted(str(key[0]) for key in info["mismatched_keys"]),
    }
    found = [f"{len(keys)} {kind}: {', '.join(keys)}" for kind, keys in problems.items() if keys]
    if not found:
        return
    hint = ""
    if missing and all(key.startswith(HEAD_PREFIX) for key in missing):
        hint = " To put an untrained retrieval head on a backbone, use SugarForConditionalGeneration.from_backbone."
    raise ValueError(f"The weights of {source} do not fit the model ({'; '.join(found)}).{hint}")
