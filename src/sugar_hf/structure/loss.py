"""Objectives that pull the model's similarities towards the labels. They know no model and no teacher."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, normalize

from .config import TEMPERATURES, StructureLossConfig


def softmax_temperature(config: StructureLossConfig) -> float:
    """Return the temperature of ``infonce`` and ``kl``, or where a learnt one begins; 1 for ``mse``."""
    return config.temperature or TEMPERATURES.get(config.objective, 1.0)


def structure_loss(
    embeddings: Tensor,
    labels: Tensor,
    config: StructureLossConfig | None = None,
    *,
    sample_ids: Tensor | None = None,
    rows: Tensor | None = None,
    positives: Tensor | None = None,
    left_out: Tensor | None = None,
    anchors: int | None = None,
    logit_scale: Tensor | None = None,
) -> Tensor:
    """Loss L_d of the cosines M^r of the embeddings against the labels M^l.

    - ``mse`` (the paper's, eq. 5): ``sum_ij (M^r_ij - M^l_ij)²``, divided by n² (``reduction="mean"``) or, as in the
      paper, by n.
    - ``infonce``: for each end, the other ends of its sample and ``positives`` are positives (Khosla et al. 2020, eq.
      2), all others in the batch negatives; the labels are not read. Rows without a positive are left out. Where no
      row has one, as in a batch of samples with one slice each and without ``positives``, there is nothing to
      contrast: the loss is 0, with a warning.
    - ``kl``: Kullback-Leibler divergence from the target of a row to the softmax of ``M^r / temperature``, without the
      diagonal; the mean over rows. The target is ``softmax(M^l / target_temperature)``. With a ``positive_share`` s
      it is ``(1 - s) softmax(M^l / target_temperature) + s / |P| [j in P]``, for rows with positives P.
      ``mse_weight * mse`` is added.

    With ``matryoshka_dims`` it is the weighted mean, over these sizes k, of the loss of the first k numbers of each
    embedding. The labels are the same for all sizes.

    Args:
        embeddings: of all n prefix ends; need not be normalised.
        labels: label matrix, or the part of it for ``rows``.
        config: objective, reduction and temperature; the defaults when None.
        sample_ids: the sample of each end; needed by ``infonce``, and by ``positive_share`` for ``"all"`` positives.
        rows: indices of the ends whose rows ``labels`` holds; all when None. The result is then the share that these
            rows have in the loss of all n: the shares of all parts add up to it.
        positives: which entries are positives of pairs, for ``infonce`` and ``positive_share``.
        left_out: which entries are not compared at all. ``mse`` counts them as met.
        anchors: number of all n ends that have a positive of ``infonce``; counted by ``sample_ids`` when None.
        logit_scale: log of 1 / temperature, as CLIP learns it; for ``learn_temperature``. It takes a gradient.

    Shape:
        embeddings (n, d), labels (n, n) or (r, n), sample_ids (n,), rows (r,), positives and left_out bool like
        labels, logit_scale (); returns () in float32 or wider.

    Raises:
        ValueError: for shapes that do not fit, a size above d, positives without ``sample_ids``, or ``logit_scale``
            without ``learn_temperature`` and the reverse.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> labels = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
        >>> structure_loss(embeddings, labels, StructureLossConfig(objective="mse"))  # (0.25 + 0.25) / 4
        tensor(0.1250)

        A third of each row's target is lifted to the positive; the model's softmax is (1/2, 1/2):

        >>> config = StructureLossConfig(objective="kl", positive_share=1 / 3)  # targets (2/3, 1/3), (2/3, 1/3), 1/2
        >>> structure_loss(torch.ones(3, 2), torch.zeros(3, 3), config, sample_ids=torch.tensor([0, 0, 1]))
        tensor(0.0378)
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
    if config.learn_temperature is not (logit_scale is not None):
        raise ValueError(
            f"learn_temperature={config.learn_temperature}: logit_scale, the log of 1 / temperature, goes with "
            "learn_temperature=True, and only with it."
        )
    lifts = config.positive_share > 0
    positive = positives if lifts else None  # (r, n)
    if config.objective == "infonce" or (lifts and config.lifted_positives == "all"):
        same = _same_sample(sample_ids, count)  # (n, n)
        positive = same[rows] if positives is None else same[rows] | positives
    if config.objective == "infonce":
        anchors = int((same.sum(1) > 1).sum()) if anchors is None else anchors
        if not anchors:
            warnings.warn(
                "InfoNCE found no two ends of one sample in the batch and no positive of a pair, so the structure "
                "loss is 0. Train on pairs, or draw at least two positions per sample, from samples with at least two "
                "slices.",
                stacklevel=2,
            )
    # Half precision would lose what tells close pairs apart; inside autocast too.
    with torch.autocast(embeddings.device.type, enabled=False):
        wide = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        labels = labels.detach().to(wide.dtype)
        temperature = softmax_temperature(config) if logit_scale is None else (-logit_scale.to(wide.dtype)).exp()
        parts = (labels, config, rows, positive, left_out, anchors or 0, temperature)
        if config.matryoshka_dims is None:
            return _loss_of_unit(normalize(wide, dim=-1), *parts)
        if max(config.matryoshka_dims) > wide.shape[1]:
            raise ValueError(
                f"matryoshka_dims={list(config.matryoshka_dims)}: the embeddings have {wide.shape[1]} dimensions only."
            )
        weights = config.matryoshka_weights or [1.0] * len(config.matryoshka_dims)
        losses = [
            weight * _loss_of_unit(normalize(wide[:, :size], dim=-1), *parts)
            for size, weight in zip(config.matryoshka_dims, weights, strict=True)
        ]
        return torch.stack(losses).sum() / sum(weights)


def _same_sample(sample_ids: Tensor | None, count: int) -> Tensor:
    """Whether two of the ends (n, n) are of one sample."""
    if sample_ids is None:
        raise ValueError(
            "objective='infonce' needs sample_ids, the sample that each embedding comes from; so does positive_share."
        )
    if sample_ids.shape != (count,):
        raise ValueError(f"sample_ids must have shape ({count},); got {tuple(sample_ids.shape)}.")
    return sample_ids[:, None] == sample_ids


def _loss_of_unit(
    unit: Tensor,
    labels: Tensor,
    config: StructureLossConfig,
    rows: Tensor,
    positive: Tensor | None,
    left_out: Tensor | None,
    anchors: int,
    temperature: float | Tensor,
) -> Tensor:
    """The rows' share of the loss of embeddings (n, k) of length 1."""
    count = len(unit)
    similarity = unit[rows] @ unit.T  # M^r (r, n)
    if config.objective == "mse":
        return _squared_error(similarity, labels, config, left_out)
    itself = rows[:, None] == torch.arange(count, device=rows.device)
    hidden = itself if left_out is None else itself | left_out
    logits = (similarity / temperature).masked_fill(hidden, -math.inf)
    if config.objective == "infonce":
        assert positive is not None
        return _contrastive_loss(logits, positive & ~itself) / max(anchors, 1)
    label_logits = labels / (config.target_temperature or softmax_temperature(config))
    loss = _soft_target_loss(logits, label_logits, hidden, positive, config.positive_share) / count
    if config.mse_weight:
        loss = loss + config.mse_weight * _squared_error(similarity, labels, config, left_out)
    return loss


def _squared_error(similarity: Tensor, labels: Tensor, config: StructureLossConfig, left_out: Tensor | None) -> Tensor:
    """The share of the rows of M^r (r, n) in equation 5."""
    squared = (similarity - labels).square()
    if left_out is not None:
        squared = squared.masked_fill(left_out, 0)
    count = similarity.shape[1]
    return squared.sum() / (count * count if config.reduction == "mean" else count)


def _contrastive_loss(logits: Tensor, positive: Tensor) -> Tensor:
    """Sum over the rows with a positive, mean over their positives, of the negative log of the softmax."""
    usable = positive.any(1)
    if not bool(usable.any()):
        return logits.masked_fill(logits.isinf(), 0).sum() * 0
    positive = positive[usable]
    log_share = log_softmax(logits[usable], dim=1).where(positive, 0)
    return -(log_share.sum(1) / positive.sum(1)).sum()


def _soft_target_loss(
    logits: Tensor, label_logits: Tensor, hidden: Tensor, positive: Tensor | None, positive_share: float
) -> Tensor:
    """Sum over rows of the divergence from the targets to the model's softmax."""
    compared = ~hidden.all(1)
    if not bool(compared.any()):
        return logits.masked_fill(hidden, 0).sum() * 0  # a single end has nothing to be compared with
    logits, label_logits, hidden = logits[compared], label_logits[compared], hidden[compared]
    target = log_softmax(label_logits.masked_fill(hidden, -math.inf), dim=1).masked_fill(hidden, 0)
    if positive is not None:
        positive = positive[compared] & ~hidden
        count = positive.sum(1, keepdim=True)  # (r, 1)
        lifted = (1 - positive_share) * target.exp() + positive_share * positive / count.clamp(min=1)
        # 0 log 0 is 0, and so is the smallest number times its log
        lifted = lifted.clamp(min=torch.finfo(lifted.dtype).tiny).log()
        target = torch.where(count > 0, lifted, target).masked_fill(hidden, 0)
    log_share = log_softmax(logits, dim=1).masked_fill(hidden, 0)
    return (target.exp().masked_fill(hidden, 0) * (target - log_share)).sum()
