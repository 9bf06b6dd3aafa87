"""What makes others know Sugar: the Auto classes, `pipeline`, and sentence-transformers.

`modules.json` of a model names [`SugarModule`] of `input_module_sugar.py`. Sentence-transformers asks for
`trust_remote_code` before it imports a class of anyone else, be it from the folder or from an installed package.
Importing this package is that trust: it hands the class over when sentence-transformers is imported, or at once if it
is already. A version that does not take it asks for `trust_remote_code=True`, and then imports the class by its name.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    Pipeline,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .checkpoint_sugar import FLAT_MODULE, MODULE
from .configuration_sugar import SugarConfig
from .hub import push_to_hub
from .modeling_sugar import SugarForConditionalGeneration
from .pipeline_sugar import PIPELINES
from .processing_sugar import SugarProcessor

_LOADER = "sentence_transformers.base.model"


class DefaultModel(dict):
    """The `default` of a registered pipeline, looked up when it is needed.

    `./sugar`, where training leaves its result, else the checkpoint that ships with the package.
    """

    #: The checkpoint that ships with the package, which names it when it is imported.
    shipped: Path | None = None

    def __init__(self) -> None:
        super().__init__(model=None)

    def __getitem__(self, key: str) -> tuple[str, str]:
        for folder in (Path("sugar"), self.shipped):
            if folder is not None and (folder / "config.json").is_file():
                return str(folder.resolve()), "main"
        raise ValueError(f"no model: there is neither ./sugar nor {self.shipped}. Pass model=, or train one first.")


def register_pipelines(pipelines: dict[str, type[Pipeline]]) -> None:
    """Make `pipeline` know tasks. Repeating it does no harm."""
    for task, pipeline_class in pipelines.items():
        if task not in PIPELINE_REGISTRY.get_supported_tasks():
            PIPELINE_REGISTRY.register_pipeline(
                task, pipeline_class, pt_model=AutoModel, default=DefaultModel(), type="multimodal"
            )


def register() -> None:
    """Make the Auto classes, `pipeline` and sentence-transformers know Sugar. Repeating it does no harm."""
    AutoConfig.register(SugarConfig.model_type, SugarConfig, exist_ok=True)
    for auto_class in (AutoModel, AutoModelForImageTextToText, AutoModelForCausalLM):
        auto_class.register(SugarConfig, SugarForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(SugarConfig, SugarProcessor, exist_ok=True)
    SugarForConditionalGeneration.upload = push_to_hub
    register_pipelines(PIPELINES)
    hand_over()


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
        loader.BaseModel._module_classes = {**known, MODULE: SugarModule, FLAT_MODULE: SugarModule}
