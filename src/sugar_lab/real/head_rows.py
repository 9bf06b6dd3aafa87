"""The settings of the head study: what is screened on validation, and the rows that are measured on test."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sugar_hf.structure import StructureLossConfig

from .head_study import HeadRow
from .joint_training import JointRow

TEMPERATURES = (0.07, 0.1, 0.15, 0.2, 0.3, 0.5)


def kl(temperature: float, **settings: Any) -> StructureLossConfig:
    """Return soft targets at a temperature."""
    return StructureLossConfig(objective="kl", temperature=temperature, **settings)


def mse(kernel: str = "calibrated", **settings: Any) -> StructureLossConfig:
    """Return the squared error."""
    return StructureLossConfig(objective="mse", label_kernel=kernel, **settings)


def infonce(temperature: float) -> StructureLossConfig:
    """Return InfoNCE at a temperature."""
    return StructureLossConfig(objective="infonce", temperature=temperature)


def screened() -> list[HeadRow]:
    """Return the grid: poolings, labels, objectives, temperatures and compositions."""
    both: dict[str, StructureLossConfig] = {"mse calibrated": mse(), "paper": StructureLossConfig.paper()}
    for temperature in TEMPERATURES:
        both[f"infonce {temperature}"] = infonce(temperature)
        both[f"kl {temperature}"] = kl(temperature)
    for temperature in (0.15, 0.3):
        both[f"kl {temperature} mean"] = kl(temperature, label_kernel="mean")
    mean: dict[str, StructureLossConfig] = {"mse mean": mse("mean"), "mse aligned": mse("aligned")}
    mean["mse gak"] = mse("gak", delta=0.7)
    mean["kl 0.3 gak"] = kl(0.3, label_kernel="gak", delta=0.7)
    for temperature in (0.15, 0.3):
        mean[f"kl {temperature} aligned"] = kl(temperature, label_kernel="aligned")
        mean[f"kl {temperature} clip"] = kl(temperature, teachers="clip")
        for weight in (1.0, 10.0):
            mean[f"kl {temperature} + {weight:g} mse"] = kl(temperature, mse_weight=weight)
        for share in (0.1, 0.3):
            mean[f"kl {temperature} lifted {share}"] = kl(temperature, positive_share=share)
    mean["kl 0.3 one"] = kl(0.3, same_sample="one")
    for temperature, target in ((0.05, 0.1), (0.07, 0.15), (0.1, 0.05), (0.15, 0.1), (0.2, 0.1), (0.3, 0.15)):
        mean[f"kl {temperature} target {target}"] = kl(temperature, target_temperature=target)
    for target in (0.07, 0.15):
        learnt = kl(target, target_temperature=target, learn_temperature=True)
        mean[f"kl learnt target {target}"] = learnt
    rows = [HeadRow(f"{name} / last", loss, "last") for name, loss in both.items()]
    rows += [HeadRow(f"{name} / mean", loss, "mean") for name, loss in {**both, **mean}.items()]
    rows += [HeadRow(f"random / {pooling}", None, pooling) for pooling in ("last", "mean")]
    return [*rows, *(HeadRow(f"raw / {pooling}", None, pooling, steps=0) for pooling in ("last", "mean"))]


def widened(best: HeadRow) -> list[HeadRow]:
    """Return larger budgets of a row, to see what closes the gap to the text teacher."""
    base = replace(best, name="as screened")
    titled = replace(base, name="titles", data="titled")
    return [
        base,
        titled,
        replace(base, name="1200 steps", steps=1200),
        replace(titled, name="titles, 1200 steps", steps=1200),
        replace(titled, name="titles, 1200 steps, wide", steps=1200, retrieval_dim=512, hidden=1536),
        replace(titled, name="titles, 1200 steps, rate 3e-3", steps=1200, learning_rate=3e-3),
        replace(titled, name="titles, 1200 steps, rate 3e-4", steps=1200, learning_rate=3e-4),
        replace(titled, name="titles, batch 128", batch_size=128),
        replace(titled, name="titles, batch 128, wide", batch_size=128, retrieval_dim=512, hidden=1536),
        replace(
            titled,
            name="titles, batch 128, 1200 steps, wide",
            batch_size=128,
            steps=1200,
            retrieval_dim=512,
            hidden=1536,
        ),
    ]


#: The row that is best on validation, and whose head answers questions.
BEST = "kl-0.3"


def chosen() -> list[HeadRow]:
    """Return the rows that are measured on test: each objective, the best setting, and it with each part taken out."""
    best = HeadRow(BEST, kl(0.3), "mean")
    rows = {
        "raw": HeadRow("", None, "mean", steps=0),
        "random": HeadRow("", None, "mean"),
        "infonce": HeadRow("", infonce(0.1), "mean"),
        "mse": HeadRow("", mse(), "mean"),
        "paper": HeadRow("", StructureLossConfig.paper(), "last"),
        "kl-0.07": HeadRow("", kl(0.07), "mean"),
        BEST: best,
        f"{BEST}-all-ends": replace(best, positions="all", head=BEST),
        f"{BEST}-mean-labels": replace(best, loss=kl(0.3, label_kernel="mean")),
        f"{BEST}-gak-labels": replace(best, loss=kl(0.3, label_kernel="gak", delta=0.7)),
        f"{BEST}-last-token": replace(best, pooling="last"),
        f"{BEST}-clip-alone": replace(best, loss=kl(0.3, teachers="clip")),
    }
    return [replace(row, name=name) for name, row in rows.items()]


def joint_rows() -> list[JointRow]:
    """Return the rows that are trained whole, each from its own head."""
    best = kl(0.3)
    return [
        JointRow("start", None, 0.0, "mean", BEST, is_trained=False),
        JointRow("lm-only", None, 0.0, "mean", BEST),
        JointRow("kl-0.3", best, 0.3, "mean", "kl-0.3"),
        JointRow("mse", mse(), 10.0, "mean", "mse"),
        JointRow("infonce", infonce(0.1), 0.3, "mean", "infonce"),
        JointRow("kl-0.07", kl(0.07), 0.3, "mean", "kl-0.07"),
    ]
