"""Sugar in sentence-transformers: the files from which it loads a model, and how it finds the module they name.

`modules.json` names [`SugarModule`] of `input_module_sugar.py`. Sentence-transformers asks for `trust_remote_code`
before it imports a class of anyone else, be it from the folder or from an installed package. Importing this package is
that trust: it hands the class over when sentence-transformers is imported, or at once if it is already. A version that
does not take it asks for `trust_remote_code=True`, and then imports the class by its name.
"""

import json
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

_SETTINGS_FILE = "config_sentence_transformers.json"
_FLAT_NAME = "input_module_sugar.SugarModule"  # where the code lies in the folder
_NAME = _FLAT_NAME if __name__.startswith("transformers_modules.") else f"{__package__}.{_FLAT_NAME}"
_LOADER = "sentence_transformers.base.model"


def _files(with_code: bool) -> dict[str, Any]:
    return {
        "modules.json": [{"idx": 0, "name": "0", "path": "", "type": _FLAT_NAME if with_code else _NAME}],
        "sentence_bert_config.json": {"processing_kwargs": {}},
        _SETTINGS_FILE: {
            "model_type": "SentenceTransformer",
            "prompts": {"query": "", "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
            "requirements": {"sentence-transformers": ">=6.2"},
        },
    }


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
        if name != _SETTINGS_FILE or not (folder / name).exists():
            (folder / name).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def hand_over() -> None:
    """Make sentence-transformers know [`SugarModule`], now or once it is imported. Repeating it does no harm."""
    if _LOADER in sys.modules:
        _hand_to(sys.modules[_LOADER])
    elif not any(isinstance(finder, _AtImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AtImport())


class _AtImport(MetaPathFinder):
    """Waits for the module of sentence-transformers that loads models."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _LOADER:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_hand_over(module: ModuleType) -> None:
                execute(module)
                _hand_to(module)

            spec.loader.exec_module = execute_and_hand_over  # type: ignore[method-assign]
        return spec


def _hand_to(loader: ModuleType) -> None:
    from .input_module_sugar import SugarModule  # which imports sentence-transformers

    known = vars(loader.BaseModel).get("_module_classes")
    if isinstance(known, dict):
        loader.BaseModel._module_classes = {**known, _NAME: SugarModule, _FLAT_NAME: SugarModule}
