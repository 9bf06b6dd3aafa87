"""The rows of the head study, of which validation chooses one, and the rows of joint training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sugar_hf.structure import StructureLossConfig

from ..model_rows import KERNELS
from .head_study import HeadRow
from .joint_training import JointRow

#: The row whose head finds sections for questions.
SEARCHER = "kl-0.15-whitened-all-ends"
#: The row of the default loss, whose head trained models start from.
DEFAULT = "kl-0.15"
#: The rows of all seeds; the others are screened with one.
CHOSEN = (
    *("raw", "random", "infonce-0.1", "mse", "paper", "kl-0.07", "kl-0.3", "kl-0.3-all-ends", "infonce-0.1-all-ends"),
    *("kl-0.15", "kl-0.15-all-ends", "kl-0.15-mean-labels", "kl-0.15-lifted-0.1"),
    *("whitened", "whitened-all-ends", "kl-0.15-whitened", "kl-0.15-whitened-all-ends"),
    *("whitened-late", "infonce-0.1-whitened-late", "kl-0.15-late", "kl-0.15-whitened-late"),
    *("infonce-0.1-whitened", "infonce-0.1-whitened-all-ends", "mse-whitened", "mse-whitened-all-ends"),
    *(
        "kl-0.3-lifted-0.1",
        "kl-0.3-lifted-0.1-all-ends",
        "kl-0.3-mean-labels",
        "kl-0.3-gak-labels",
        "kl-0.3-clip-alone",
        "kl-0.3-last-token",
        "infonce-0.1-last-token",
    ),
)


def kl(temperature: float, **settings: Any) -> StructureLossConfig:
    """Return soft targets at a temperature."""
    return StructureLossConfig(objective="kl", temperature=temperature, **settings)


def mse(kernel: str = "calibrated", **settings: Any) -> StructureLossConfig:
    """Return the squared error."""
    return StructureLossConfig(objective="mse", label_kernel=kernel, **settings)


def infonce(temperature: float) -> StructureLossConfig:
    """Return InfoNCE at a temperature."""
    return StructureLossConfig(objective="infonce", temperature=temperature)


def head_rows() -> list[HeadRow]:
    """Return all rows: objectives, temperatures and compositions, labels, poolings, and what is not trained."""
    losses: dict[str, StructureLossConfig] = {"mse": mse(), "mse-mean-labels": mse("mean")}
    losses |= {f"infonce-{temperature}": infonce(temperature) for temperature in (0.07, 0.1, 0.2, 0.3)}
    losses |= {f"kl-{temperature}": kl(temperature) for temperature in (0.07, 0.15, 0.2, 0.3, 0.5)}
    losses |= {
        "kl-0.15-mean-labels": kl(0.15, label_kernel="mean"),
        "kl-0.3-mean-labels": kl(0.3, label_kernel="mean"),
        "kl-0.3-gak-labels": kl(0.3, **KERNELS["gak"]),
        "kl-0.3-clip-alone": kl(0.3, teachers="clip"),
        "kl-0.3-mse-1": kl(0.3, mse_weight=1.0),
        "kl-0.3-mse-10": kl(0.3, mse_weight=10.0),
        "kl-0.15-lifted-0.1": kl(0.15, positive_share=0.1),
        "kl-0.3-lifted-0.1": kl(0.3, positive_share=0.1),
        "kl-0.3-lifted-0.3": kl(0.3, positive_share=0.3),
        "kl-0.1-target-0.05": kl(0.1, target_temperature=0.05),
        "kl-0.15-target-0.1": kl(0.15, target_temperature=0.1),
        "kl-0.2-target-0.1": kl(0.2, target_temperature=0.1),
        "kl-0.3-target-0.15": kl(0.3, target_temperature=0.15),
        "kl-learnt-target-0.15": kl(0.15, target_temperature=0.15, learn_temperature=True),
    }
    rows = {name: HeadRow(name, loss, "mean") for name, loss in losses.items()}
    for name in ("mse", "infonce-0.1", "kl-0.07", "kl-0.3"):
        rows[f"{name}-last-token"] = replace(rows[name], pooling="last")
    for name in ("infonce-0.1", "mse", "kl-0.15", "kl-0.3"):
        rows[f"{name}-whitened"] = replace(rows[name], whitened=True)
    rows["whitened"] = HeadRow("whitened", None, "mean", whitened=True)
    rows["paper"] = HeadRow("paper", StructureLossConfig.paper(), "last")
    with_ends = ("infonce-0.1", "mse", "kl-0.15", "kl-0.3", "kl-0.3-lifted-0.1")
    for name in (*with_ends, "whitened", "infonce-0.1-whitened", "mse-whitened", "kl-0.15-whitened"):
        rows[f"{name}-all-ends"] = replace(rows[name], positions="all", head=name)
    for name in ("whitened", "infonce-0.1-whitened", "kl-0.15", "kl-0.15-whitened"):
        rows[f"{name}-late"] = replace(rows[name], positions="late", head=name)
    rows["raw"] = HeadRow("raw", None, "mean", steps=0)
    rows["random"] = HeadRow("random", None, "mean")
    return [replace(row, name=name) for name, row in rows.items()]


def chosen() -> list[HeadRow]:
    """Return the rows that are trained with further seeds, which change nothing where there is no head."""
    return [row for row in head_rows() if row.name in CHOSEN and row.steps]


def label_rows() -> list[HeadRow]:
    """Return the default loss by each kind of labels, from whitened heads, with InfoNCE and what is not trained."""
    default = row_named("kl-0.15-whitened")
    others = [
        replace(default, name=f"{default.name}-{kernel}-labels", loss=kl(0.15, **settings))
        for kernel, settings in KERNELS.items()
    ]
    return [row_named("whitened"), row_named("infonce-0.1-whitened"), default, *others]


def widened() -> list[HeadRow]:
    """Return larger budgets of the best row, to see what closes the gap to the text teacher, and of its rivals."""
    base = HeadRow("", kl(0.3), "mean")
    titled = replace(base, data="titled")
    rows = {
        "kl-0.3-titles": titled,
        "kl-0.3-titles-1200": replace(titled, steps=1200),
        "kl-0.3-titles-1200-wide": replace(titled, steps=1200, retrieval_dim=512, hidden=1536),
        "kl-0.3-titles-1200-rate-3e-3": replace(titled, steps=1200, learning_rate=3e-3),
        "kl-0.07-titles-1200": replace(titled, steps=1200, loss=kl(0.07)),
        "infonce-0.1-titles-1200": replace(titled, steps=1200, loss=infonce(0.1)),
        "mse-titles-1200": replace(titled, steps=1200, loss=mse()),
        "kl-0.3-titles-128": replace(titled, batch_size=128),
        "kl-0.3-titles-128-wide": replace(titled, batch_size=128, retrieval_dim=512, hidden=1536),
    }
    white = replace(titled, loss=kl(0.15), whitened=True)
    rows |= {
        "kl-0.15-whitened-titles": white,
        "kl-0.15-whitened-titles-1200": replace(white, steps=1200),
        "kl-0.15-whitened-titles-128-wide": replace(white, batch_size=128, retrieval_dim=512, hidden=1536),
        "infonce-0.1-whitened-titles": replace(white, loss=infonce(0.1)),
    }
    for name in ("kl-0.3-titles-1200", *(name for name in rows if "whitened" in name)):
        rows[f"{name}-all-ends"] = replace(rows[name], positions="all", head=name)
        rows[f"{name}-late"] = replace(rows[name], positions="late", head=name)
    return [replace(row, name=name) for name, row in rows.items()]


def row_named(name: str) -> HeadRow:
    """Return a row of the study of heads, or a larger one."""
    return next(row for row in (*head_rows(), *widened()) if row.name == name)


#: The trained models that are asked with the answer at each place, and those that they are compared with.
CURVED = (DEFAULT, "lm-only")
#: Those of the models that were trained longest.
ASKED = (f"{DEFAULT}-whitened", "lm-only")


def joint_rows() -> list[JointRow]:
    """Return the rows that are trained whole, each from its own head; the first is measured as it starts."""
    return [
        JointRow("start", None, 0.0, "mean", DEFAULT, is_trained=False),
        JointRow("lm-only", None, 0.0, "mean", DEFAULT),
        JointRow(DEFAULT, kl(0.15), 0.45, "mean", DEFAULT),
        JointRow("mse", mse(), 10.0, "mean", "mse"),
        JointRow("infonce-0.1", infonce(0.1), 0.3, "mean", "infonce-0.1"),
        JointRow("start-whitened", None, 0.0, "mean", f"{DEFAULT}-whitened", is_trained=False),
        JointRow(f"{DEFAULT}-whitened", kl(0.15), 0.45, "mean", f"{DEFAULT}-whitened"),
    ]


def longer_rows() -> list[JointRow]:
    """Return the rows that are trained longer, from whitened heads."""
    names = ("start-whitened", f"{DEFAULT}-whitened")
    rows = [row for row in joint_rows() if row.name in names]
    return [*rows, JointRow("lm-only", None, 0.0, "mean", f"{DEFAULT}-whitened")]


def longest_rows() -> list[JointRow]:
    """Return the rows that are trained longest: those trained longer, and InfoNCE from its own whitened head."""
    name = "infonce-0.1-whitened"
    return [*longer_rows(), JointRow(name, infonce(0.1), 0.3, "mean", name)]
