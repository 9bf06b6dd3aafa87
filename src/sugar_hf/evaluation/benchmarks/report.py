"""Results beside the paper's tables, as Markdown, as a picture, and as metadata of a model card."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index

from .paper_tables import TABLES, PaperTable
from .tasks import Task, all_tasks

#: What kind of task the Hub calls each of ours.
HUB_KINDS = {
    "generate": "image-text-to-text",
    "embed": "image-text-to-image-text",
    "both": "visual-question-answering",
}


def read_results(folder: str | Path) -> list[dict[str, Any]]:
    """Read the results below a folder, in the order of the tasks and then of their paths.

    Raises:
        FileNotFoundError: There are none.
        ValueError: A file is no result.
    """
    found = []
    for path in sorted(Path(folder).rglob("*.json")):
        if path.name.endswith(".submission.json"):
            continue
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            result = {name: result[name] for name in ("task", "run", "model", "metrics", "n")} | result
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: no result of `sugar-hf evaluate` ({error!r}). Move it elsewhere.") from error
        found.append(result)
    if not found:
        raise FileNotFoundError(f"no results below {folder}: `sugar-hf evaluate --output {folder}` writes them.")
    order = list(all_tasks())
    return sorted(found, key=lambda result: order.index(result["task"]) if result["task"] in order else len(order))


def cells(result: Mapping[str, Any], tasks: Mapping[str, Task]) -> dict[str, float]:
    """The cells of the paper's tables that a result fills, as `table/column`."""
    if result["task"] not in tasks:
        return {}
    places = tasks[result["task"]].paper
    return {place: result["metrics"][name] for name, place in places.items() if name in result["metrics"]}


def row_name(result: Mapping[str, Any]) -> str:
    """What a run is called in tables: the model and its retriever, and what sets the run apart."""
    model = Path(str(result["model"])).name or str(result["model"])
    retriever = result.get("retriever")
    return f"{model} + {Path(str(retriever)).name}" if retriever else model


def rows_of(
    name: str, table: PaperTable, results: Sequence[Mapping[str, Any]], tasks: Mapping[str, Task]
) -> dict[str, dict[str, str]]:
    """Our rows of a table, by the name of the row: cells as text, with how many samples if not all of the split."""
    rows: dict[str, dict[str, str]] = {}
    for result in results:
        found = cells(result, tasks)
        for column in table.columns:
            value = found.get(table.aliases.get(column, f"{name}/{column}"))
            if value is None:
                continue
            options = result.get("settings", {}).get("options", {})
            said = "".join(f", {key}={value}" for key, value in sorted(options.items()))
            row = rows.setdefault(row_name(result) + said, {})
            mark = f" (first {result['limit']})" if result.get("limit") else ""
            failed = len(result.get("failed", []))
            mark += f" ({failed} failed)" if failed else ""
            row[column] = f"{value:.1f}{mark}"
    return rows


def as_markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """The paper's tables that our results have a cell of, our rows below the paper's, and all figures of each run."""
    tasks = all_tasks()
    parts = ["# Results beside the paper", ""]
    for name, table in TABLES.items():
        ours = rows_of(name, table, results, tasks)
        if not ours:
            continue
        filled = [column for column in table.columns if any(column in row for row in ours.values())]
        printed = {row: {column: f"{cell:.1f}" for column, cell in found.items()} for row, found in table.rows.items()}
        lines = [(f"{row} (paper)", found) for row, found in printed.items() if found.keys() & set(filled)]
        lines += [(f"**{row}**", found) for row, found in ours.items()]
        parts += [f"## {table.title}", ""]
        parts += _table(["", *filled], [[row, *(found.get(c, "-") for c in filled)] for row, found in lines])
        parts += ["", table.note, ""] if table.note else [""]
    parts += ["## All figures", ""]
    for result in results:
        failed = len(result.get("failed", []))
        said = [f"n = {result['n']}", f"{failed} failed", f"seed {result.get('seed', 0)}"]
        said += [f"the first {result['limit']} only"] if result.get("limit") else []
        said += [f"{key}={value}" for key, value in sorted(result.get("settings", {}).get("options", {}).items())]
        parts += [f"### {result.get('title', result['task'])}: {row_name(result)}", "", ", ".join(said) + ".", ""]
        parts += _table(["metric", "value"], [[key, _text(value)] for key, value in result["metrics"].items()])
        parts.append("")
    return "\n".join(parts)


def model_index(results: Sequence[Mapping[str, Any]], model: str | None = None) -> list[dict[str, Any]]:
    """Results as the metadata `model-index` of a model card.

    Args:
        results: Those of one model, or of several.
        model: Whose to take, if there are several; a name as in the results.

    Raises:
        ValueError: They are of several models and none is named, or none is of that model.
    """
    models = sorted({str(result["model"]) for result in results if model in (None, result["model"])})
    if len(models) != 1:
        there = ", ".join(sorted({str(result["model"]) for result in results}))
        raise ValueError(f"results of one model are needed, there are those of {there}: name one.")
    tasks = all_tasks()
    found = []
    for result in results:
        if result["model"] != models[0] or result["primary_metric"] is None or result.get("limit"):
            continue
        task, settings = tasks.get(result["task"]), result.get("settings", {})
        split = settings.get("split") or (task.split if task else None)
        found.append(
            EvalResult(
                task_type=HUB_KINDS[task.kind] if task else "other",
                dataset_type=settings.get("hub_id") or (task.hub_id if task else None) or result["task"],
                dataset_name=result.get("title", result["task"]),
                dataset_config=settings.get("dataset"),  # of a benchmark with several data sets
                dataset_split=split,
                metric_type=result["primary_metric"].replace(" ", "_"),
                metric_name=result["primary_metric"],
                metric_value=round(float(result["metrics"][result["primary_metric"]]), 2),
            )
        )
    return list(eval_results_to_model_index(Path(models[0]).name, found))


def draw_position_curve(results: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw accuracy by the place of the relevant pair, the paper's curves dashed.

    Args:
        results: Some of the position task among them.
        path: Where; the suffix says what kind of file.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: There is no result of that task.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('drawing needs matplotlib: pip install "sugar-hf[demo]"') from error
    table = TABLES["table5"]
    ours = rows_of("table5", table, results, all_tasks())
    if not ours:
        raise ValueError("no result of webqa-position among these: `sugar-hf evaluate --task webqa-position` first.")
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for (name, row), shade, marker in zip(table.rows.items(), ("0.7", "0.4"), ("v", "^"), strict=True):
        values = [row[column] for column in table.columns]
        axes.plot(table.columns, values, "--", color=shade, marker=marker, label=f"{name} (paper)")
    for name, cells_ in ours.items():
        axes.plot(table.columns, [float(cells_[c].split()[0]) for c in table.columns], marker="o", label=name)
    axes.axhline(50, color="0.85", zorder=0)
    axes.set_xlabel("place of the relevant pair among six")
    axes.set_ylabel("accuracy, yes or no (%)")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    return lines + [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]


def _text(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
