"""The metrics as modules of Hugging Face `evaluate`, loaded from this package: no network is needed.

Each folder holds one module, which `evaluate.load(path_of_the_folder)` loads just as well.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import evaluate

_FOLDER = Path(__file__).parent


def metric_names() -> list[str]:
    """The names that `load_metric` knows, in alphabetical order."""
    return sorted(path.stem for path in _FOLDER.glob("*/*.py") if path.stem == path.parent.name)


def load_metric(name: str, config_name: str | None = None) -> "evaluate.Metric":
    """Load a metric as a module of `evaluate`.

    `evaluate` copies the module into its own cache and imports it from there.

    Args:
        name: one of `metric_names()`.
        config_name: which form of a module that has several, as `mmvp_pairs` has.

    Returns:
        A metric with `compute`, `add` and `add_batch`; `inputs_description` says what it takes and gives.

    Raises:
        ValueError: for an unknown name.
        ImportError: without `evaluate`.
    """
    if name not in metric_names():
        raise ValueError(f"no metric {name!r}: there are {', '.join(metric_names())}")
    try:
        import evaluate
    except ImportError as error:
        raise ImportError('metric modules need evaluate: pip install "sugar-hf[eval]"') from error
    return evaluate.load(str(_FOLDER / name), config_name)
