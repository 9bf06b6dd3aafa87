"""Settings of the structure loss."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LABEL_KERNELS = ("calibrated", "aligned", "gak", "mean")
OBJECTIVES = ("mse", "infonce", "kl")
REDUCTIONS = ("mean", "paper")
LIFTED = ("all", "pairs")
TEACHERS = ("triple", "clip")
BLOCKS = ("image-image", "text-text", "image-text")
#: Temperatures of objectives that have one, unless told otherwise.
TEMPERATURES = {"infonce": 0.07, "kl": 0.15}


@dataclass(frozen=True)
class StructureLossConfig:
    """What the labels of two prefixes are and how the model's similarities are pulled towards them.

    The defaults depart from the paper: see :meth:`paper` for its own setting.

    Args:
        label_kernel: label of two prefixes. ``"calibrated"``: the equivalent cosine of their alignment kernel;
            ``"aligned"``: the mean cosine along the soft alignment; ``"gak"``: the paper's kernel, normalised;
            ``"mean"``: the mean cosine over all slice pairs (the paper's "w/o GAK").
        delta: bandwidth. ``gak`` and ``aligned`` use ``sigma² = delta² (m + n) / 2`` (appendix D.2); ``calibrated``
            uses ``sigma = delta`` at all lengths, so that a label depends on lengths through the content alone.
            The default makes its ``sigma²`` 0.1.
        single_slice: ``"cosine"``: the label of two single slices is their plain cosine (the paper's special case);
            ``"kernel"``: what the label kernel gives. The two differ for ``gak`` only.
        same_sample: ``"one"``: two prefixes of one sample get label 1 (the paper's override); ``"kernel"``: what the
            label kernel gives. A prefix with itself has label 1 in any case.
        teachers: ``"triple"``: DINOv2 for image pairs, BGE for text pairs, CLIP across (eq. 4); ``"clip"``: CLIP for
            all pairs (the paper's "w/o TK").
        centring: whether cosines are centred by modality block, ``(s - mu) / (1 - mu)``; takes ``block_means``.
        block_means: mean cosine of unrelated slices for each of "image-image", "text-text" and "image-text", as
            :func:`sugar_hf.structure.block_means` measures it on the training set.
        objective: ``"kl"`` (rows of the label matrix are soft targets), ``"mse"`` (the paper's, eq. 5), or for
            comparison ``"infonce"`` (prefixes of one sample are positives).
        reduction: of ``mse``. ``"mean"`` over all pairs; ``"paper"``: sum over pairs / n, which grows with the batch.
        temperature: of ``infonce`` and ``kl``. None: 0.07 for ``infonce``, 0.15 for ``kl``.
        target_temperature: of ``kl``: the temperature of the labels' softmax. None: the same as ``temperature``.
        mse_weight: of ``kl``: the loss is ``kl + mse_weight * mse``, with ``mse`` as ``reduction`` has it.
        positive_share: of ``kl``: the share of a row's target that is spread evenly over its positives. The rest is
            the labels' softmax. A row without a positive keeps its target. The share of a known positive comes on top
            of what its label of 1 has in the softmax.
        lifted_positives: what ``positive_share`` counts as positives. ``"all"``: those of ``infonce``, the other ends
            of one sample and the known positives of pairs; ``"pairs"``: the known positives of pairs alone.
        learn_temperature: of ``infonce`` and ``kl``: whether ``temperature`` is where a learnt one begins, as in CLIP.
            ``kl`` then needs ``target_temperature``, or targets would follow the model.
        matryoshka_dims: sizes k, for embeddings that may be cut: the loss is the mean over the sizes of the loss of
            the first k numbers of each embedding, normalised again (Kusupati et al. 2022). None: of all numbers alone.
        matryoshka_weights: weights of the sizes in this mean; equal ones when None.

    Raises:
        ValueError: for an unknown choice or a number out of range, naming the field.
    """

    label_kernel: str = "calibrated"
    delta: float = math.sqrt(0.1)
    single_slice: str = "cosine"
    same_sample: str = "kernel"
    teachers: str = "triple"
    centring: bool = False
    block_means: dict[str, float] | None = None
    objective: str = "kl"
    reduction: str = "mean"
    temperature: float | None = None
    target_temperature: float | None = None
    mse_weight: float = 0.0
    positive_share: float = 0.0
    lifted_positives: str = "all"
    learn_temperature: bool = False
    matryoshka_dims: Sequence[int] | None = None
    matryoshka_weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        choices = {
            "label_kernel": LABEL_KERNELS,
            "single_slice": ("cosine", "kernel"),
            "same_sample": ("one", "kernel"),
            "teachers": TEACHERS,
            "objective": OBJECTIVES,
            "reduction": REDUCTIONS,
            "lifted_positives": LIFTED,
        }
        values = dataclasses.asdict(self)
        for field, allowed in choices.items():
            if values[field] not in allowed:
                raise ValueError(f"{field} must be one of {', '.join(map(repr, allowed))}; got {values[field]!r}.")
        for field in ("delta", "temperature", "target_temperature"):
            if values[field] is None and field != "delta":
                continue
            if not (math.isfinite(values[field]) and values[field] > 0):
                raise ValueError(f"{field} must be a positive number; got {values[field]!r}.")
        self._check_composition()
        if self.block_means is not None:
            check_block_means(self.block_means)
        _check_sizes(self.matryoshka_dims, self.matryoshka_weights)

    def _check_composition(self) -> None:
        """Raise a ValueError for a number out of range, and for a setting that the objective does not use."""
        if not (math.isfinite(self.mse_weight) and self.mse_weight >= 0):
            raise ValueError(f"mse_weight must be 0 or more; got {self.mse_weight!r}.")
        if not 0 <= self.positive_share <= 1:
            raise ValueError(f"positive_share must be a share, 0 to 1; got {self.positive_share!r}.")
        of_kl = {"target_temperature": None, "mse_weight": 0, "positive_share": 0}
        used = [field for field, unused in of_kl.items() if vars(self)[field] != unused]
        if used and self.objective != "kl":
            raise ValueError(f"{used[0]} belongs to objective='kl'; the objective is {self.objective!r}.")
        if self.lifted_positives != "all" and not self.positive_share:
            raise ValueError("lifted_positives does nothing without a positive_share above 0.")
        if self.learn_temperature and self.objective == "mse":
            raise ValueError("learn_temperature belongs to objective='kl' and 'infonce'; 'mse' has no temperature.")
        if self.learn_temperature and self.objective == "kl" and self.target_temperature is None:
            raise ValueError("learn_temperature with objective='kl' needs target_temperature, which stays as it is.")

    @classmethod
    def paper(cls, **changes: Any) -> StructureLossConfig:
        """The paper's own setting: GAK labels, both special cases, loss summed over pairs and divided by n.

        The paper does not give delta; 0.7 was the least bad in our studies. ``changes`` override single fields.
        """
        setting: dict[str, Any] = {
            "label_kernel": "gak",
            "delta": 0.7,
            "single_slice": "cosine",
            "same_sample": "one",
            "objective": "mse",
            "reduction": "paper",
        }
        return cls(**{**setting, **changes})

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, fit for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StructureLossConfig:
        """The reverse of :meth:`to_dict`; a key that is no field is an error."""
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"Unknown StructureLossConfig field(s): {', '.join(unknown)}.")
        return cls(**values)


def check_block_means(block_means: Mapping[str, float]) -> None:
    """Raise a ValueError unless there is one mean cosine below 1 for every modality block."""
    if set(block_means) != set(BLOCKS):
        raise ValueError(f"block_means must have exactly the keys {', '.join(BLOCKS)}; got {sorted(block_means)}.")
    for block, mean in block_means.items():
        if not -1 <= mean < 1:
            raise ValueError(f"block_means[{block!r}] must be a mean cosine, -1 <= mean < 1; got {mean!r}.")


def _check_sizes(dims: Sequence[int] | None, weights: Sequence[float] | None) -> None:
    """Raise a ValueError unless there are different sizes of 1 or more, with a weight above 0 for each."""
    if dims is not None and (
        not dims or len(set(dims)) < len(dims) or not all(isinstance(dim, int) and dim >= 1 for dim in dims)
    ):
        raise ValueError(f"matryoshka_dims must be different whole numbers of 1 or more; got {list(dims)}.")
    if weights is None:
        return
    if dims is None or len(weights) != len(dims):
        raise ValueError(
            f"matryoshka_weights must have a weight for each of matryoshka_dims, {dims and list(dims)}; got "
            f"{list(weights)}."
        )
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise ValueError(f"matryoshka_weights must be positive numbers; got {list(weights)}.")
