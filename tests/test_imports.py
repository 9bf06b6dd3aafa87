"""The import rule of the house: who may know whom, read from the source of every file."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "sugar_hf"

#: What each package may import besides itself: packages, or one module of a package. `sugar_hf/__init__.py` may import
#: anything. The safe image loader travels to the Hub, so it lies in `model`, and others take it from there.
ALLOWED = {
    "structure": {"model.images_sugar"},
    "model": set(),
    "data": {"model.images_sugar"},
    "training": {"structure", "model", "data"},
    "retrieval": {"structure", "model", "data"},
    "evaluation": {"model", "data", "retrieval"},
    "picturebook": {"data"},
    "lab": {"structure", "model", "data", "training", "retrieval", "evaluation", "picturebook"},
    "cli": {"structure", "model", "data", "training", "retrieval", "evaluation", "picturebook", "lab"},
}


def imported(node, module, is_package):
    """Yields the full names of the modules of this project that an import statement names."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif node.level == 0:
        names = [f"{node.module}.{alias.name}" if node.module == "sugar_hf" else node.module for alias in node.names]
    else:
        # One dot is the package the module lies in; a package's __init__ lies in itself.
        base = module[: len(module) - node.level + is_package]
        parent = ".".join([*base, *([node.module] if node.module else [])])
        names = [f"{parent}.{alias.name}" if parent == "sugar_hf" else parent for alias in node.names]
    yield from (name for name in names if name.split(".")[0] == "sugar_hf")


def is_flat(node):
    """Whether a relative import has the form `from .x import Y`, the only one that works in a Hub repository.

    There the files of `model/` lie side by side, and nothing else of the project is.
    """
    return isinstance(node, ast.ImportFrom) and node.level == 1 and bool(node.module) and "." not in node.module


def faults(path, source):
    """Lists what is wrong with the imports of a file, given by its path below `src/sugar_hf`."""
    parts = Path(path).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    module = ("sugar_hf", *(parts[:-1] if is_package else parts))
    if len(parts) == 1:
        return [] if is_package else [f"{path}: modules belong into one of {', '.join(ALLOWED)}"]
    package, travels = parts[0], parts[0] == "model" and not is_package
    if package not in ALLOWED:
        return [f"{path}: unknown package {package!r}"]
    found = []
    for node in ast.walk(ast.parse(source, filename=str(path))):
        if not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        place = f"{path}:{node.lineno}: `{ast.unparse(node)}`"
        is_relative = isinstance(node, ast.ImportFrom) and node.level > 0
        for name in sorted(set(imported(node, module, is_package))):
            target = name.split(".")[1] if "." in name else "the whole project"
            if target != package and not {target, name.removeprefix("sugar_hf.")} & ALLOWED[package]:
                found.append(f"{place}: {package} may not know {target}")
            if package == "model" and not is_relative:
                found.append(f"{place}: model/ imports itself by relative names, as it does on the Hub")
        if travels and is_relative and not is_flat(node):
            found.append(f"{place}: files that travel to the Hub write `from .x import Y`")
    return found


def test_every_import_goes_the_right_way():
    files = sorted(SOURCE.rglob("*.py"))
    assert len(files) > 10
    found = [fault for file in files for fault in faults(str(file.relative_to(SOURCE)), file.read_text("utf-8"))]
    assert not found, "\n".join(found)


def test_what_travels_lies_flat():
    assert not [path for path in (SOURCE / "model").iterdir() if path.is_dir() and path.name != "__pycache__"]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("structure/labels.py", "from sugar_hf.model import SugarConfig"),
        ("structure/labels.py", "from ..model import SugarConfig"),
        ("structure/labels.py", "from .. import model"),
        ("structure/__init__.py", "from ..model import SugarConfig"),
        ("structure/labels.py", "import sugar_hf.model.hub as hub"),
        ("structure/labels.py", "import sugar_hf"),
        ("structure/labels.py", "def late():\n    from sugar_hf import training"),
        ("structure/labels.py", "if TYPE_CHECKING:\n    from sugar_hf.data import to_sample"),
        ("model/hub.py", "from ..structure import log_gak"),
        ("model/hub.py", "from sugar_hf.model.modeling_sugar import SugarOutput"),
        ("model/__init__.py", "import sugar_hf.model.hub"),
        ("model/modeling_sugar.py", "from . import configuration_sugar"),
        ("model/modeling_sugar.py", "from .parts.head import Head"),
        ("model/modeling_sugar.py", "from ..model.configuration_sugar import SugarConfig"),
        ("model/hub.py", "from . import modeling_sugar"),
        ("data/readers.py", "from ..picturebook import load"),
        ("data/images.py", "from ..model import SugarConfig"),
        ("data/images.py", "from ..model.samples_sugar import parse_sample"),
        ("retrieval/index.py", "from sugar_hf.evaluation import recall"),
        ("retrieval/index.py", "from ..training import SugarTrainer"),
        ("training/script.py", "from ..cli import main"),
        ("picturebook/recipe/loop.py", "from ...training import SugarTrainer"),
        ("evaluation/metrics.py", "from sugar_hf.training import SugarTrainer"),
        ("extra/a.py", ""),
        ("loose.py", ""),
    ],
)
def test_a_wrong_import_is_caught(path, source):
    assert faults(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("__init__.py", "from .model import SugarConfig\nfrom . import training"),
        ("structure/__init__.py", "from .labels import label_matrix"),
        (
            "structure/labels.py",
            "import torch\nfrom transformers.utils import logging\nfrom .alignment import log_gak",
        ),
        ("model/modeling_sugar.py", "from .configuration_sugar import SugarConfig"),
        ("model/__init__.py", "from . import modeling_sugar"),
        ("model/hub.py", "from .modeling_sugar import SugarOutput"),
        ("data/images.py", "from ..model.images_sugar import read_image"),
        ("training/collator.py", "from sugar_hf.data import to_sample\nfrom ..structure import label_matrix"),
        ("training/collator.py", "from .. import model\nfrom sugar_hf import structure"),
        ("picturebook/recipe/loop.py", "from ..world import load\nfrom ...data import FEATURES"),
        ("picturebook/recipe/__init__.py", "from .loop import run\nfrom ..world import load"),
        ("evaluation/metrics.py", "import sugar_hf.retrieval.index"),
    ],
)
def test_a_right_import_passes(path, source):
    assert faults(path, source) == []
