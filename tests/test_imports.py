"""The import rule of the project: which package may know which, read from the source of every file."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
MOST_LINES = 800

#: What each package may import besides itself, by the start of the module's name. Parts of `sugar_hf` are packages,
#: too; `sugar_hf/__init__.py` may import all of them. `model`, which travels to the Hub, imports nothing else of ours.
ALLOWED = {
    "sugar_hf": ["sugar_hf"],
    "sugar_hf._files": [],
    "sugar_hf.structure": ["sugar_hf._files", "sugar_hf.model.images_sugar"],
    "sugar_hf.model": [],
    "sugar_hf.data": ["sugar_hf._files", "sugar_hf.model"],
    "sugar_hf.training": ["sugar_hf._files", "sugar_hf.structure", "sugar_hf.model", "sugar_hf.data"],
    "sugar_hf.retrieval": ["sugar_hf._files", "sugar_hf.structure", "sugar_hf.model", "sugar_hf.data"],
    "sugar_hf.evaluation": ["sugar_hf._files", "sugar_hf.model", "sugar_hf.data", "sugar_hf.retrieval"],
    "sugar_hf.serving": ["sugar_hf._files", "sugar_hf.model", "sugar_hf.data", "sugar_hf.retrieval"],
    "sugar_hf.picturebook": ["sugar_hf.data"],
    "sugar_cli": ["sugar_hf"],
    "sugar_lab": ["sugar_hf"],
}


def module_of(path):
    """The dotted name of a file, given by its path below `src`."""
    parts = Path(path).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(module):
    """The package whose rule a module follows: a part of `sugar_hf`, or one of the other packages."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "sugar_hf" else parts[0]


def is_within(module, package):
    return module == package or module.startswith(package + ".")


def imported(node, module, is_package):
    """Yields the modules of this project that an import statement names, with the names taken from each."""
    if isinstance(node, ast.Import):
        found = [(alias.name, "") for alias in node.names]
    elif node.level == 0:
        found = [(node.module, alias.name) for alias in node.names]
    else:
        # One dot is the package the module lies in; a package's __init__ lies in itself.
        parts = module.split(".")
        base = parts[: len(parts) - node.level + is_package]
        found = [(".".join([*base, *([node.module] if node.module else [])]), alias.name) for alias in node.names]
    yield from ((base, name) for base, name in found if base.split(".")[0] in ("sugar_hf", "sugar_cli", "sugar_lab"))


def is_flat(node):
    """Whether a relative import has the form `from .x import Y`, the only one that works in a Hub repository.

    There the files of `model/` lie side by side, and nothing else of the project is.
    """
    return isinstance(node, ast.ImportFrom) and node.level == 1 and bool(node.module) and "." not in node.module


def import_statements(source, path):
    return [node for node in ast.walk(ast.parse(source, str(path))) if isinstance(node, (ast.Import, ast.ImportFrom))]


def faults(path, source):
    """Lists what is wrong with the imports of a file, given by its path below `src`."""
    module, is_package = module_of(path), Path(path).stem == "__init__"
    package = package_of(module)
    if package not in ALLOWED:
        return [f"{path}: unknown package {package!r}; modules belong into one of {', '.join(ALLOWED)}"]
    in_model = package == "sugar_hf.model"
    found = []
    for node in import_statements(source, path):
        place = f"{path}:{node.lineno}: `{ast.unparse(node)}`"
        is_relative = isinstance(node, ast.ImportFrom) and node.level > 0
        for base, name in imported(node, module, is_package):
            # `from sugar_hf import training` names a part; the top of the library is no part, and may not be asked.
            target = f"{base}.{name}" if base == "sugar_hf" and f"{base}.{name}" in ALLOWED else base
            if not any(is_within(target, allowed) for allowed in [package, *ALLOWED[package]]):
                found.append(f"{place}: {package} may not know {target}")
            if in_model and not is_relative:
                found.append(f"{place}: model/ imports itself by relative names, as it does on the Hub")
        if in_model and not is_package and is_relative and not is_flat(node):
            found.append(f"{place}: files that travel to the Hub write `from .x import Y`")
    return found


def arrows(sources):
    """For each module of a dictionary of paths and sources, the modules among them that it imports."""
    modules = {module_of(path) for path in sources}
    found = {}
    for path, source in sources.items():
        module, is_package = module_of(path), Path(path).stem == "__init__"
        targets = set()
        for node in import_statements(source, path):
            for base, name in imported(node, module, is_package):
                targets.add(f"{base}.{name}" if f"{base}.{name}" in modules else base)
        found[module] = (targets & modules) - {module}
    return found


def circles(graph):
    """Groups of modules that import each other, along whatever way, each sorted."""
    reach = {module: set(targets) for module, targets in graph.items()}
    for middle in graph:  # Warshall
        for targets in reach.values():
            if middle in targets:
                targets |= reach[middle]
    return sorted({tuple(sorted(o for o in reach[m] if m in reach[o])) for m in graph if m in reach[m]})


def all_sources():
    return {str(path.relative_to(SOURCE)): path.read_text("utf-8") for path in sorted(SOURCE.rglob("*.py"))}


def test_every_import_goes_the_right_way():
    sources = all_sources()
    assert len(sources) > 100
    found = [fault for path, source in sources.items() for fault in faults(path, source)]
    assert not found, "\n".join(found)


def test_no_module_imports_itself_by_way_of_others():
    found = circles(arrows(all_sources()))
    assert not found, "\n".join(" <-> ".join(circle) for circle in found)


def test_a_circle_is_found():
    sources = {
        "sugar_hf/model/a.py": "from .b import x",
        "sugar_hf/model/b.py": "def late():\n    from .c import y",
        "sugar_hf/model/c.py": "if TYPE_CHECKING:\n    from .a import z",
        "sugar_hf/model/d.py": "from .a import z",
    }
    assert circles(arrows(sources)) == [("sugar_hf.model.a", "sugar_hf.model.b", "sugar_hf.model.c")]


def test_contributing_describes_the_packages():
    text = (SOURCE.parent / "CONTRIBUTING.md").read_text("utf-8")
    parts = re.findall(r"^\| `(\w+)` \| (?!\d)", text, re.MULTILINE)
    assert sorted(parts) == sorted(name.split(".")[1] for name in ALLOWED if "." in name)
    lines = re.findall(r"^\| `(\w+)` \| ([\d,]+) \|$", text, re.MULTILINE)
    assert [package for package, _ in lines] == ["sugar_hf", "sugar_cli", "sugar_lab"]
    for package, count in lines:
        found = sum(path.read_text("utf-8").count("\n") for path in (SOURCE / package).rglob("*.py"))
        assert int(count.replace(",", "")) == pytest.approx(found, rel=0.05)


def test_what_travels_lies_flat():
    model = SOURCE / "sugar_hf" / "model"
    assert not [path for path in model.iterdir() if path.is_dir() and path.name != "__pycache__"]


def test_a_name_of_a_module_occurs_once():
    """But for the modules for `evaluate`, whose files have to be called like their folders."""
    stems = Counter(
        path.stem
        for path in SOURCE.rglob("*.py")
        if "modules" not in path.parts and path.stem not in ("__init__", "__main__")
    )
    assert not [name for name, times in stems.items() if times > 1]


def test_no_file_is_too_long():
    lengths = {path: source.count("\n") for path, source in all_sources().items()}
    assert not {path: lines for path, lines in lengths.items() if lines > MOST_LINES}


def test_a_wrong_import_is_caught(subtests):
    for path, source in [
        ("sugar_hf/structure/labels.py", "from sugar_hf.model import SugarConfig"),
        ("sugar_hf/structure/labels.py", "from ..model import SugarConfig"),
        ("sugar_hf/structure/labels.py", "from .. import model"),
        ("sugar_hf/structure/__init__.py", "from ..model import SugarConfig"),
        ("sugar_hf/structure/labels.py", "import sugar_hf.model.hub as hub"),
        ("sugar_hf/structure/labels.py", "import sugar_hf"),
        ("sugar_hf/structure/labels.py", "def late():\n    from sugar_hf import training"),
        ("sugar_hf/structure/labels.py", "if TYPE_CHECKING:\n    from sugar_hf.data import to_sample"),
        ("sugar_hf/model/hub.py", "from ..structure import log_gak"),
        ("sugar_hf/model/hub.py", "from sugar_hf.model.modeling_sugar import SugarOutput"),
        ("sugar_hf/model/__init__.py", "import sugar_hf.model.hub"),
        ("sugar_hf/model/modeling_sugar.py", "from . import configuration_sugar"),
        ("sugar_hf/model/modeling_sugar.py", "from .parts.head import Head"),
        ("sugar_hf/model/modeling_sugar.py", "from ..model.configuration_sugar import SugarConfig"),
        ("sugar_hf/model/modeling_sugar.py", "from .._files import atomic_write"),
        ("sugar_hf/model/hub.py", "from . import modeling_sugar"),
        ("sugar_hf/_files.py", "from .data import to_sample"),
        ("sugar_hf/data/readers.py", "from ..picturebook import load"),
        ("sugar_hf/data/schema.py", "from ..retrieval import SugarIndex"),
        ("sugar_hf/retrieval/index.py", "from sugar_hf.evaluation import recall"),
        ("sugar_hf/retrieval/index.py", "from ..training import SugarTrainer"),
        ("sugar_hf/training/script.py", "from sugar_cli import main"),
        ("sugar_hf/picturebook/world.py", "from sugar_lab.recipe import vlm"),
        ("sugar_hf/evaluation/ranking.py", "from sugar_hf.training import SugarTrainer"),
        ("sugar_cli/app.py", "from sugar_lab.stages import Lab"),
        ("sugar_lab/stages.py", "from sugar_cli import main"),
        ("sugar_hf/extra/a.py", ""),
        ("sugar_hf/loose.py", ""),
        ("sugar_other/a.py", ""),
    ]:
        with subtests.test(path=path, source=source):
            assert faults(path, source)


def test_a_right_import_passes(subtests):
    for path, source in [
        ("sugar_hf/__init__.py", "from .model import SugarConfig\nfrom . import training"),
        ("sugar_hf/structure/__init__.py", "from .labels import label_matrix"),
        (
            "sugar_hf/structure/labels.py",
            "import torch\nfrom transformers.utils import logging\nfrom .alignment import log_gak",
        ),
        ("sugar_hf/structure/teacher_columns.py", "from .._files import atomic_write"),
        ("sugar_hf/model/modeling_sugar.py", "from .configuration_sugar import SugarConfig"),
        ("sugar_hf/model/__init__.py", "from . import modeling_sugar"),
        ("sugar_hf/model/hub.py", "from .modeling_sugar import SugarOutput"),
        ("sugar_hf/data/schema.py", "from ..model.images_sugar import read_image"),
        ("sugar_hf/training/collator.py", "from sugar_hf.data import to_sample\nfrom ..structure import label_matrix"),
        ("sugar_hf/training/collator.py", "from .. import model\nfrom sugar_hf import structure"),
        ("sugar_hf/evaluation/ranking.py", "import sugar_hf.retrieval.index"),
        ("sugar_cli/app.py", "from sugar_hf import SugarIndex\nimport sugar_hf\nfrom .output import say"),
        ("sugar_lab/recipe/loop.py", "from ..exercises import draw_many\nfrom sugar_hf.picturebook import load"),
    ]:
        with subtests.test(path=path, source=source):
            assert faults(path, source) == []


def test_inside_the_library_imports_are_relative():
    """One dialect. The modules for `evaluate` are the exception, because that library loads them from anywhere."""
    absolute = [
        f"{path.relative_to(SOURCE)}:{node.lineno}"
        for path in sorted((SOURCE / "sugar_hf").rglob("*.py"))
        if "benchmarks/modules" not in path.as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module])
        if not getattr(node, "level", 0) and name.split(".")[0] == "sugar_hf"
    ]
    assert absolute == []
