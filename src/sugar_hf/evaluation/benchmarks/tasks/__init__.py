"""The benchmarks of the paper and of retrieval beyond it, by name."""

from importlib import import_module

from .task import Evaluator, Task

_MODULES = (
    "vqa",
    "multiple_choice",
    "yes_no",
    "judged_tasks",
    "demon_tasks",
    "image_text_retrieval",
    "image_pairs",
    "augmented_vqa",
    "knowledge_vqa",
    "webqa_tasks",
    "interleaved_retrieval",
    "universal_retrieval",
    "page_retrieval",
)


def all_tasks() -> dict[str, Task]:
    """Every task by its name, in the order of the paper's tables; those beyond the paper last."""
    found: dict[str, Task] = {}
    for module in _MODULES:
        found |= import_module(f".{module}", __name__).TASKS
    return found


__all__ = ["Evaluator", "Task", "all_tasks"]
