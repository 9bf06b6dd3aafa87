"""The retrieval head alone, trained on frozen states: many settings at once on the same batches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from sugar_hf.data.relevance import RetrievalSet
from sugar_hf.model import SugarConfig
from sugar_hf.model.modeling_sugar import RetrievalHead
from sugar_hf.model.whitening import StateMoments, set_whitened
from sugar_hf.structure import SliceFeatures, StructureLossConfig, label_matrix, softmax_temperature, structure_loss
from sugar_hf.training.structure_term import draw_slice_ends

from .frozen_states import POOLINGS, FrozenStates, TeacherVectors
from .real_tasks import item_ranks

SLICES = 32  # of a training sample that are looked at
KS = (1, 5)


@dataclass(frozen=True)
class HeadRow:
    """A way to train the head.

    Args:
        name: What the row is called.
        loss: The structure loss. When `None` the head stays random, and with 0 steps there is none.
        pooling: Of texts, `"last"` or `"mean"`.
        data: Which training samples, by the name of their set.
        steps: Optimizer steps.
        batch_size: Samples in a step.
        ends: Slice ends of a sample.
        learning_rate: The highest; it rises over the first steps and falls to 0 by a cosine.
        weight_decay: Of AdamW.
        retrieval_dim: Width of the embeddings.
        hidden: Width of the head's hidden layer; that of the states when `None`.
        positions: Where candidates are embedded: at the `"last"` slice, or at `"all"`, of which the best counts. With
            `"late"`, late interaction, queries are embedded at all slices too: each finds the best of a candidate.
        head: The row whose head it takes, instead of a head of its own.
        whitened: Whether the head begins as the whitened states of the training slices, rather than at random.
    """

    name: str
    loss: StructureLossConfig | None
    pooling: str = "last"
    data: str = "sections"
    steps: int = 400
    batch_size: int = 32
    ends: int = 4
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    retrieval_dim: int = 256
    hidden: int | None = None
    positions: str = "last"
    head: str | None = None
    whitened: bool = False

    def facts(self) -> dict[str, Any]:
        """Return all settings in a form for JSON."""
        return asdict(self)


@dataclass
class _Run:
    """A head in training."""

    row: HeadRow
    head: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    logit_scale: nn.Parameter | None = None
    losses: list[float] = field(default_factory=list)


class RawStates(nn.Module):
    """No head: states as they are, at length 1."""

    def forward(self, pooled: Tensor) -> Tensor:
        """Return unit vectors (n, hidden) of states."""
        return nn.functional.normalize(pooled, dim=-1)


def new_head(config: SugarConfig, row: HeadRow, seed: int) -> nn.Module:
    """Return a fresh head, as the library makes one for a backbone."""
    if not row.steps:
        return RawStates()
    torch.manual_seed(seed)
    mine = SugarConfig(vlm_config=config.vlm_config, retrieval_dim=row.retrieval_dim, retrieval_hidden_size=row.hidden)
    head = RetrievalHead(mine)
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return head


def train_heads(
    config: SugarConfig,
    states: FrozenStates,
    vectors: TeacherVectors,
    training: Mapping[str, Sequence[int]],
    numbers: np.ndarray,
    rows: Sequence[HeadRow],
    seed: int,
    show_progress: bool = True,
) -> dict[str, nn.Module]:
    """Train a head for each row. Rows of equal data and batches see the same batches, and share their labels.

    Args:
        config: Of the model whose states these are.
        states: The states.
        vectors: The teacher's vectors of all training samples.
        training: Places of samples among all training samples, by the name of their set.
        numbers: Numbers in `states` of all training samples.
        rows: What is trained.
        seed: Of heads and batches.
        show_progress: Whether to show a bar.
    """
    heads: dict[str, nn.Module] = {}
    groups: dict[tuple[Any, ...], list[HeadRow]] = defaultdict(list)
    moments: dict[tuple[str, str], StateMoments] = {}

    def begun(row: HeadRow) -> nn.Module:
        head, key = new_head(config, row, seed), (row.data, row.pooling)
        if row.whitened and isinstance(head, RetrievalHead):
            if key not in moments:
                moments[key] = moments_of(states, numbers[np.asarray(training[row.data])], row.pooling)
            set_whitened(head, moments[key])
        return head

    for row in (row for row in rows if row.head is None):
        if row.loss is None:
            heads[row.name] = begun(row)
        else:
            groups[row.data, row.batch_size, row.ends].append(row)
    for (data, batch_size, ends), members in groups.items():
        runs = [_run(row, begun(row)) for row in members]
        steps = max(row.steps for row in members)
        places = np.asarray(training[data])
        order = _batches(len(places), batch_size, steps, seed)
        title = f"{data}, {batch_size} samples, {len(members)} rows, seed {seed}"
        for step, batch in enumerate(tqdm(order, total=steps, desc=title, disable=not show_progress)):
            chosen = places[batch]
            lengths = np.minimum(states.lengths(numbers[chosen]), SLICES)
            drawn = draw_slice_ends(lengths.tolist(), chosen.tolist(), ends, seed, step)  # (n, 2)
            features = vectors.features(chosen.tolist(), SLICES)
            owners = numbers[chosen][drawn[:, 0]]
            pooled = {name: states.at(owners, drawn[:, 1].numpy(), name) for name in POOLINGS}
            _step([run for run in runs if step < run.row.steps], features, drawn, pooled)
        heads |= {run.row.name: run.head.eval() for run in runs}
    return heads | {row.name: heads[row.head] for row in rows if row.head is not None}


def moments_of(states: FrozenStates, numbers: np.ndarray, pooling: str) -> StateMoments:
    """Return the moments of the states of all slices of some samples."""
    moments = StateMoments(states.states[pooling].shape[1])
    for number in numbers:
        part = states.states[pooling][states.offsets[number] : states.offsets[number + 1]]
        moments.add(torch.from_numpy(part.astype(np.float32)))
    return moments


def _run(row: HeadRow, head: nn.Module) -> _Run:
    groups: list[dict[str, Any]] = [{"params": list(head.parameters()), "weight_decay": row.weight_decay}]
    logit_scale = None
    if row.loss is not None and row.loss.learn_temperature:
        logit_scale = nn.Parameter(torch.tensor(-float(np.log(softmax_temperature(row.loss)))))
        groups.append({"params": [logit_scale], "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, lr=row.learning_rate)
    warmup = min(20, row.steps // 10)

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + float(np.cos(np.pi * (step - warmup) / max(1, row.steps - warmup))))

    return _Run(row, head, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate), logit_scale)


def _batches(count: int, size: int, steps: int, seed: int) -> Iterable[np.ndarray]:
    """Yield batches of numbers below `count`, each number once before any comes again."""
    generator = np.random.default_rng(seed)
    left = np.zeros(0, np.int64)
    for _ in range(steps):
        while len(left) < size:
            left = np.concatenate([left, generator.permutation(count)])
        yield left[:size]
        left = left[size:]


def _step(runs: Sequence[_Run], features: SliceFeatures, ends: Tensor, pooled: Mapping[str, Tensor]) -> None:
    labels: dict[tuple[Any, ...], Tensor] = {}
    for run in runs:
        loss = run.row.loss
        assert loss is not None
        key = (loss.label_kernel, loss.delta, loss.single_slice, loss.same_sample, loss.teachers, loss.centring)
        if key not in labels:
            labels[key] = label_matrix(features, ends, loss)
        run.optimizer.zero_grad()
        embeddings = run.head(pooled[run.row.pooling])
        value = structure_loss(embeddings, labels[key], loss, sample_ids=ends[:, 0], logit_scale=run.logit_scale)
        value.backward()
        run.optimizer.step()
        run.schedule.step()
        run.losses.append(float(value.detach()))


# ---- measuring


@torch.inference_mode()
def embed(states: FrozenStates, numbers: np.ndarray, row: HeadRow, head: nn.Module) -> np.ndarray:
    """Return unit vectors (n, d) of samples at their last slices."""
    return head(states.last(numbers, row.pooling)).numpy()


@torch.inference_mode()
def scores_of(
    states: FrozenStates, task: RetrievalSet, row: HeadRow, head: nn.Module, cache: dict[int, np.ndarray]
) -> np.ndarray:
    """Return how well each candidate of a task fits each query. (queries, candidates).

    Args:
        states: The states.
        task: The task.
        row: Says where candidates are embedded.
        head: The row's.
        cache: Vectors at all slice ends of all samples under the key 0, once they are needed.
    """
    queries, corpus = states.numbers(task.queries), states.numbers(task.corpus)
    if row.positions == "last":
        return embed(states, queries, row, head) @ embed(states, corpus, row, head).T
    if not cache:
        cache[0] = head(torch.from_numpy(states.states[row.pooling].astype(np.float32))).numpy()
    slices, starts = slices_of_samples(states, corpus)
    if row.positions == "all":
        return np.maximum.reduceat(embed(states, queries, row, head) @ cache[0][slices].T, starts, axis=1)
    asked, begins = slices_of_samples(states, queries)
    best = np.maximum.reduceat(cache[0][asked] @ cache[0][slices].T, starts, axis=1)  # (slices, candidates)
    return np.add.reduceat(best, begins, axis=0) / states.lengths(queries)[:, None]


def slices_of_samples(states: FrozenStates, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of all slices of some samples, and where each sample's begin among them."""
    lengths = states.lengths(numbers)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return np.repeat(states.offsets[numbers] - starts, lengths) + np.arange(lengths.sum()), starts


def measure(
    states: FrozenStates, tasks: Mapping[str, RetrievalSet], row: HeadRow, head: nn.Module
) -> dict[str, dict[str, int]]:
    """Return the ranks of each task's queries."""
    cache: dict[int, np.ndarray] = {}
    return {name: item_ranks(task, scores_of(states, task, row, head, cache)) for name, task in tasks.items()}


def figures(ranks: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, float]]:
    """Return R@1, R@5 in percent and the mean reciprocal rank of each task, and their means over tasks."""
    found = {}
    for task, items in ranks.items():
        values = np.array(list(items.values()))
        found[task] = {f"R@{k}": 100 * float((values <= k).mean()) for k in KS}
        found[task]["MRR"] = float((1 / values).mean())
    names = list(next(iter(found.values())))
    found["mean"] = {name: float(np.mean([each[name] for each in found.values()])) for name in names}
    return found
