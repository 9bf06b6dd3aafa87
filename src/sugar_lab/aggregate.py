"""From the results of single measurements to the figures of tables, over seeds."""

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from datasets import load_from_disk

from sugar_hf._files import atomic_write

from .label_histograms import LABELLED, label_histograms
from .measurements import CURVES, read_extra
from .mix import mix_folder
from .model_rows import ROWS
from .row_training import LOG, row_arguments
from .stage_files import MARK, write_json
from .stages import Lab, measurements
from .twins import Twin

DECIMALS = 4
KEPT = "measured.jsonl"
_CURVES = {"loss_lm": "lm_loss", "loss_structure": "structure_loss"}


def aggregate(results: Iterable[Mapping[str, Any]], twins: Mapping[str, Twin]) -> dict[str, list[dict[str, Any]]]:
    """Figures by table.

    A twin's figures go where its `paper` says: into that table and column. Those of a twin that the paper lacks go
    into a table of the twin's name: the figures whose chance is known, else the primary one.

    Args:
        results: as `stages.measurements` has them.
        twins: the twins by name.

    Returns:
        By table, entries `{"table", "row", "metric", "mean", "spread", "seeds", "values", "n", "chance", "command",
        "versions", "budget"}`, sorted by row and metric. `spread` is the sample standard deviation of the values over
        the seeds, 0 for one seed; `n` counts questions, queries or pairs; `chance` is missing where it is not known.
        Numbers have four decimals.

    Raises:
        ValueError: results of one figure differ in budget, number of questions or versions, or a figure that a twin
            names is missing.
    """
    groups: dict[tuple[str, str, str], list[tuple[float, Mapping[str, Any]]]] = defaultdict(list)
    chances: dict[tuple[str, str], float] = {}
    for result in results:
        twin = twins[result["twin"]]
        for figure, (table, metric) in _places(twin).items():
            value = result["figures"].get(figure)
            if not isinstance(value, int | float):
                raise ValueError(f"{result['row']} on {twin.name}: there is no figure {figure!r}: measure it again.")
            groups[table, result["row"], metric].append((float(value), result))
            if figure in twin.chance:
                chances[table, metric] = twin.chance[figure]
    tables: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for (table, row, metric), found in sorted(groups.items(), key=lambda item: _order(*item[0])):
        entry = _entry(found, f"{table}, {row}, {metric}")
        known = {"chance": round(chances[table, metric], DECIMALS)} if (table, metric) in chances else {}
        tables[table].append({"table": table, "row": row, "metric": metric, **entry, **known})
    return dict(sorted(tables.items()))


def _places(twin: Twin) -> dict[str, tuple[str, str]]:
    """Table and column of a twin's figures."""
    if not twin.paper:
        return {figure: (twin.name, figure) for figure in (twin.chance or [twin.primary_metric])}
    places = {}
    for figure, place in twin.paper.items():
        table, _, metric = place.partition("/")
        places[figure] = (table, metric)
    return places


def _order(table: str, row: str, metric: str) -> tuple[Any, ...]:
    names = list(ROWS)
    name = next((name for name in names if row == name or row.startswith((f"{name},", f"{name} +"))), "")
    return table, names.index(name) if name else len(names), row, metric


def _entry(found: list[tuple[float, Mapping[str, Any]]], where: str) -> dict[str, Any]:
    found = sorted(found, key=lambda item: item[1]["seed"])
    shared = {}
    for name in ("n", "budget", "versions", "command"):
        shared[name] = found[0][1][name]
        if any(result[name] != shared[name] for _, result in found):
            raise ValueError(f"{where}: the seeds differ in {name}. Measure them again in one work folder.")
    values = [value for value, _ in found]
    return {
        "mean": round(statistics.fmean(values), DECIMALS),
        "spread": round(statistics.stdev(values), DECIMALS) if len(values) > 1 else 0.0,
        "seeds": [result["seed"] for _, result in found],
        "values": [round(value, DECIMALS) for value in values],
        **shared,
    }


def read_curves(work: Path) -> dict[str, list[dict[str, float]]]:
    """The losses of all trained models: by row and seed, as `sugar-0`, the points of the curve."""
    found = {}
    for path in sorted((work / "models").glob(f"*/{LOG}")):
        log = json.loads(path.read_text(encoding="utf-8"))
        found[path.parent.name] = [
            {"step": entry["step"]}
            | {to: round(entry[name], DECIMALS) for name, to in _CURVES.items() if name in entry}
            for entry in log
        ]
    return found


def write_tables(lab: Lab, output: Path) -> list[Path]:
    """Write a file for each table, `curves.json`, `labels.json`, and the measurements themselves as `KEPT`.

    Curves and labels of before that the work folder knows nothing of stay.

    Args:
        lab: what was run.
        output: where the files go; tables of before are overwritten.

    Returns:
        The files.
    """
    found = measurements(lab)
    contents: dict[str, Any] = {**aggregate(found.values(), lab.twins())}
    contents["curves"] = {**read_extra(output, CURVES), **read_curves(lab.work)}
    data = mix_folder("all", lab.budget.rows, lab.budget.seeds[0], lab.work)
    if (data / MARK).is_file():
        rows = [lab.rows[name] for name in LABELLED if name in lab.rows]
        configs = {row.name: row_arguments(row, 0, lab.budget, lab.work).structure_loss_config() for row in rows}
        contents["labels"] = label_histograms(load_from_disk(str(data)), configs)
    for name, content in contents.items():
        write_json(output / f"{name}.json", content)
    lines = [json.dumps(result, ensure_ascii=False, sort_keys=True) for result in found.values()]
    atomic_write(output / KEPT, "\n".join(lines) + "\n")
    return [output / f"{name}.json" for name in contents]
