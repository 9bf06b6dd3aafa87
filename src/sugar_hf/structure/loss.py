"""Objectives that pull the model's similarities towards the labels. They know no model and no teacher."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, normalize

from .config import StructureLossConfig


def structure_loss(
    embeddings: Tensor,
    labels: Tensor,
    config: StructureLossConfig | None = None,
    *,
    sample_ids: Tensor | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """Loss L_d of the cosines M^r of the embeddings against the labels M^l.

    - ``mse`` (eq. 5): ``sum_ij (M^r_ij - M^l_ij)²``, divided by n² (``reduction="mean"``) or, as in the paper, by n.
    - ``infonce``: for each end, the other ends of its sample are positives (Khosla et al. 2020, eq. 2), all others in
      the batch negatives; the labels are not read. Rows without a positive are left out. Where no row has one, as in
      a batch of samples with one slice each, there is nothing to contrast: the loss is 0, with a warning.
    - ``kl``: Kullback-Leibler divergence from the softmax of a row of M^l to that of M^r, without the diagonal.

    With ``matryoshka_dims`` it is the weighted mean, over these sizes k, of the loss of the first k numbers of each
    embedding. The labels are the same for all sizes.

    Args:
        embeddings: of all n prefix ends; need not be normalised.
        labels: label matrix, or the part of it for ``rows``.
        config: objective, reduction and temperature; the defaults when None.
        sample_ids: the sample of each end; needed by ``infonce``.
        rows: indices of the ends whose rows ``labels`` holds; all when None. The result is then the share that these
            rows have in the loss of all n: the shares of all parts add up to it.

    Shape:
        embeddings (n, d), labels (n, n) or (r, n), sample_ids (n,), rows (r,); returns () in float32 or wider.

    Raises:
        ValueError: for shapes that do not fit, a size above d, or ``infonce`` without ``sample_ids``.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> structure_loss(embeddings, torch.tensor([[1.0, 0.5], [0.5, 1.0]]))  # (0.25 + 0.25) / 4
        tensor(0.1250)
    """
    config = config or StructureLossConfig()
    if embeddings.dim() != 2 or len(embeddings) == 0:
        raise ValueError(f"embeddings must have shape (n, d) with n >= 1; got {tuple(embeddings.shape)}.")
    count = len(embeddings)
    if rows is None:
        rows = torch.arange(count, device=embeddings.device)
    if labels.shape != (len(rows), count):
        raise ValueError(
            f"labels must have shape ({len(rows)}, {count}), a row for each of the {len(rows)} rows and a column for "
            f"each of the {count} embeddings; got {tuple(labels.shape)}."
        )
    same = _same_sample(sample_ids, count) if config.objective == "infonce" else None  # (n, n)
    # Half precision would lose what tells close pairs apart; inside autocast too.
    with torch.autocast(embeddings.device.type, enabled=False):
        wide = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        labels = labels.detach().to(wide.dtype)
        if config.matryoshka_dims is None:
            return _loss_of_unit(normalize(wide, dim=-1), labels, config, same, rows)
        if max(config.matryoshka_dims) > wide.shape[1]:
            raise ValueError(
                f"matryoshka_dims={list(config.matryoshka_dims)}: the embeddings have {wide.shape[1]} dimensions only."
            )
        weights = config.matryoshka_weights or [1.0] * len(config.matryoshka_dims)
        losses = [
            weight * _loss_of_unit(normalize(wide[:, :size], dim=-1), labels, config, same, rows)
            for size, weight in zip(config.matryoshka_dims, weights, strict=True)
        ]
        return torch.stack(losses).sum() / sum(weights)


def _same_sample(sample_ids: Tensor | None, count: int) -> Tensor:
    """Whether two of the ends (n, n) are of one sample."""
    if sample_ids is None:
        raise ValueError("objective='infonce' needs sample_ids, the sample that each embedding comes from.")
    if sample_ids.shape != (count,):
        raise ValueError(f"sample_ids must have shape ({count},); got {tuple(sample_ids.shape)}.")
    same = sample_ids[:, None] == sample_ids
    if not bool((same.sum(1) > 1).any()):
        warnings.warn(
            "InfoNCE found no two ends of one sample in the batch, so the structure loss is 0. Draw at least two "
            "positions per sample, from samples with at least two slices.",
            stacklevel=3,
        )
    return same


def _loss_of_unit(
    unit: Tensor, labels: Tensor, config: StructureLossConfig, same: Tensor | None, rows: Tensor
) -> Tensor:
    """The rows' share of the loss of embeddings (n, k) of length 1."""
    count = len(unit)
    similarity = unit[rows] @ unit.T  # M^r (r, n)
    if config.objective == "mse":
        squared = (similarity - labels).square()
        return squared.sum() / (count * count if config.reduction == "mean" else count)
    itself = rows[:, None] == torch.arange(count, device=rows.device)
    logits = (similarity / config.temperature).masked_fill(itself, -math.inf)
    if same is None:
        return _soft_target_loss(logits, labels / config.temperature, itself) / count
    contrasted = int((same.sum(1) > 1).sum())
    return _contrastive_loss(logits, same[rows] & ~itself) / max(contrasted, 1)


def _contrastive_loss(logits: Tensor, positive: Tensor) -> Tensor:
    """Sum over the rows with a positive, mean over their positives, of the negative log of the softmax."""
    usable = positive.any(1)
    if not bool(usable.any()):
        return logits.masked_fill(logits.isinf(), 0).sum() * 0
    positive = positive[usable]
    log_share = log_softmax(logits[usable], dim=1).where(positive, 0)
    return -(log_share.sum(1) / positive.sum(1)).sum()


def _soft_target_loss(logits: Tensor, label_logits: Tensor, itself: Tensor) -> Tensor:
    """Sum over rows of the divergence from the labels' softmax to the model's."""
    if logits.shape[1] < 2:
        return logits.masked_fill(itself, 0).sum() * 0  # a single end has nothing to be compared with
    target = log_softmax(label_logits.masked_fill(itself, -math.inf), dim=1).masked_fill(itself, 0)
    log_share = log_softmax(logits, dim=1).masked_fill(itself, 0)
    return (target.exp().masked_fill(itself, 0) * (target - log_share)).sum()
