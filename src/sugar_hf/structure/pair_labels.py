"""What is known of pairs in a batch, and how it composes with the labels of the alignment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from .config import StructureLossConfig

#: A known label above it makes a pair a positive of InfoNCE.
POSITIVE = 0.5


@dataclass
class PairLabels:
    """Labels that are known of pairs of samples, whatever their content is.

    A sample is known by a number that its content gives. Equal samples have the same one, so that what is known of
    one of them is known of all.

    Attributes:
        samples: Number of the content, number of the row, and whether the row is one of pairs, of each sample.
        lengths: Number of slices of each sample.
        pairs: Numbers of the contents of both samples of each known pair; they need not be in the batch.
        labels: Their labels.

    Shape:
        samples (B, 3) int64, lengths (B,) int64, pairs (R, 2) int64, labels (R,) float32.
    """

    samples: Tensor
    lengths: Tensor
    pairs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.samples)

    @classmethod
    def unknown(cls, keys: Tensor, lengths: Tensor) -> PairLabels:
        """Return those of samples (B,) of which nothing is known."""
        samples = torch.stack([keys, keys, torch.zeros_like(keys)], dim=1)
        return cls(samples, lengths, keys.new_zeros(0, 2), torch.zeros(0, device=keys.device))

    @classmethod
    def cat(cls, parts: Sequence[PairLabels]) -> PairLabels:
        """Put the samples of several batches into one."""
        return cls(**{name: torch.cat([vars(part)[name] for part in parts]) for name in vars(parts[0])})

    def compose(
        self, labels: Tensor | None, ends: Tensor, config: StructureLossConfig, rows: slice | None = None
    ) -> Composition:
        """Put what is known into the label matrix.

        - The last ends of two samples whose label is known have this label, and of several the largest.
        - Equal prefixes have the label 1. Other ends of equal samples are as those of one sample.
        - All other entries are those of ``labels``. Without them they are 0, and 1 for ends of equal samples.

        Entries that nobody knows are left out of the loss between ends of one row, and between samples that have a
        positive in common: the positives of one query, and the queries of one positive. With ``labels`` only InfoNCE,
        which does not read them, leaves these out.

        Args:
            labels: Those of the alignment; None if there are no teachers' vectors.
            ends: Sample index and slice index of each end.
            config: Says what labels of one sample are, and the objective.
            rows: The ends whose rows ``labels`` holds; all when None.

        Shape:
            labels (r, n), ends (n, 2) int64.

        Example:
            >>> known = PairLabels(
            ...     samples=torch.tensor([[7, 1, 1], [8, 1, 1], [9, 2, 1]]),  # a query, its positive, another query
            ...     lengths=torch.tensor([1, 1, 1]),
            ...     pairs=torch.tensor([[7, 8]]),
            ...     labels=torch.tensor([0.9]),
            ... )
            >>> known.compose(None, torch.tensor([[0, 0], [1, 0], [2, 0]]), StructureLossConfig()).labels
            tensor([[1.0000, 0.9000, 0.0000],
                    [0.9000, 1.0000, 0.0000],
                    [0.0000, 0.0000, 1.0000]])
        """
        rows = slice(0, len(ends)) if rows is None else rows
        classes, of_sample = torch.unique(self.samples[:, 0], return_inverse=True)
        count = len(classes)
        group = of_sample[ends[:, 0]]  # (n,) class of each end
        is_last = ends[:, 1] == self.lengths[ends[:, 0]] - 1
        one, other, value = self._edges(classes)
        own, place = torch.unique(group[rows], return_inverse=True)  # classes of the rows
        number = torch.full((count,), -1, device=own.device)
        number[own] = torch.arange(len(own), device=own.device)

        here = number[one] >= 0
        table = torch.full((len(own) * count,), -torch.inf, device=own.device)
        table.scatter_reduce_(0, number[one[here]] * count + other[here], value[here], "amax")
        known = table.view(len(own), count)[place][:, group]  # (r, n)
        known = known.masked_fill(~(is_last[rows, None] & is_last), -torch.inf)
        is_known = ~known.isneginf()
        same = group[rows, None] == group
        alike = same & (ends[rows, 1, None] == ends[:, 1])
        if labels is None:
            composed = same.to(known.dtype)
        else:
            of_one = same if config.same_sample == "one" else alike
            composed = labels.masked_fill(of_one, 1)
        composed = torch.where(is_known, known.to(composed.dtype), composed)

        positive = value > POSITIVE
        left_out = None
        if labels is None or config.objective == "infonce":
            related = self._related(own, of_sample, one[positive], other[positive], count)
            left_out = related[place][:, group] & ~is_known & ~same
        present = torch.zeros(count, dtype=torch.bool, device=own.device)
        present[group[is_last]] = True
        partnered = torch.zeros_like(present)
        partnered[one[positive][present[other[positive]]]] = True
        anchors = (torch.bincount(group, minlength=count) > 1)[group] | (is_last & partnered[group])
        return Composition(composed, group, (known > POSITIVE), left_out, int(anchors.sum()))

    def _edges(self, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the classes of both sides and the label of each known pair in the batch, in both directions."""
        if not len(classes):
            return self.pairs[:0, 0], self.pairs[:0, 1], self.labels[:0]
        found = torch.searchsorted(classes, self.pairs.contiguous()).clamp(max=len(classes) - 1)  # (R, 2)
        there = (classes[found] == self.pairs).all(1) & (found[:, 0] != found[:, 1])
        one, other = found[there].unbind(1)
        return torch.cat([one, other]), torch.cat([other, one]), self.labels[there].repeat(2)

    def _related(self, own: Tensor, of_sample: Tensor, one: Tensor, other: Tensor, count: int) -> Tensor:
        """Tell which classes share a row or a positive: (own, classes) bool."""
        in_pairs = self.samples[:, 2].bool()
        row_numbers = torch.unique(self.samples[:, 1], return_inverse=True)[1]
        members = torch.cat([of_sample[in_pairs], one]).cpu().numpy()
        groups = torch.cat([row_numbers[in_pairs] + count, other]).cpu().numpy()
        size = (count, count + len(self.samples))
        belongs = csr_matrix((np.ones(len(members), np.float32), (members, groups)), size)
        shared = (belongs[own.cpu().numpy()] @ belongs.T).tocoo()
        related = torch.zeros(len(own), count, dtype=torch.bool)
        related[shared.row, shared.col] = True
        return related.to(own.device)


@dataclass
class Composition:
    """The label matrix of a batch with what is known of pairs, for [`structure_loss`].

    Attributes:
        labels: The labels.
        groups: A number for each end; ends of equal samples have the same one.
        positives: Which entries are known to be positives.
        left_out: Which entries are left out of the loss; None for none.
        anchors: Number of all n ends that have a positive.

    Shape:
        labels (r, n), groups (n,), positives (r, n) bool, left_out (r, n) bool.
    """

    labels: Tensor
    groups: Tensor
    positives: Tensor
    left_out: Tensor | None
    anchors: int
