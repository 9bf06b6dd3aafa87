"""Invented figures of the lab."""

import json
import statistics


def entry(table, row, metric, *values, seeds=None, n=300, chance=None, budget="full", **more):
    """A result as the lab's runner stores it."""
    return {
        "table": table,
        "row": row,
        "metric": metric,
        "mean": statistics.fmean(values),
        "spread": statistics.stdev(values) if len(values) > 1 else 0.0,
        "seeds": list(range(len(values))) if seeds is None else seeds,
        "values": list(values),
        "n": n,
        "command": f"python -m sugar_lab --budget {budget} --only {row}/{table}",
        "versions": {"torch": "2.9", "machine": "2 cores"},
        "budget": budget,
        "chance": chance,
        **more,
    }


def write(folder, entries, name="results.json"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(entries))
    return folder
