"""A retrieval head that starts from the backbone's states, whitened, in the place of one drawn at random."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .embedding_sugar import embed_list
from .modeling_sugar import RetrievalHead, SugarForConditionalGeneration
from .processing_sugar import SugarProcessor
from .samples_sugar import Sample

#: Added to the variance of each direction, as a share of the median variance of those that are kept.
REGULARIZATION = 0.3
#: Directions of a smaller share of the largest variance are rounding.
SMALLEST = 1e-12


class StateMoments:
    """Count, sum and products of pooled states, which is all that whitening asks of them.

    Args:
        width: H, the size of a state.

    Attributes:
        count: () float64, how many states were added.
        total: (H,) float64, their sum.
        products: (H, H) float64, the sum of their outer products.
    """

    def __init__(self, width: int) -> None:
        self.count = torch.zeros((), dtype=torch.float64)
        self.total = torch.zeros(width, dtype=torch.float64)
        self.products = torch.zeros(width, width, dtype=torch.float64)

    def add(self, states: Tensor) -> None:
        """Add states (n, H) of any dtype, on any device.

        Raises:
            ValueError: One is not finite.
        """
        known = states.detach().to("cpu", torch.float64)
        if not bool(known.isfinite().all()):
            raise ValueError("A hidden state is NaN or infinite. Check the weights and the dtype of the model.")
        self.count += len(known)
        self.total += known.sum(dim=0)
        self.products += known.T @ known

    def whitening(self, directions: int, regularization: float = REGULARIZATION) -> tuple[Tensor, Tensor]:
        """Return the map onto the main directions of the states, along each of which they vary alike.

        Args:
            directions: k, how many directions are kept, those of the largest variance.
            regularization: Added to the variance of each direction before it is divided by, as a share of the median
                variance of all k: directions of little variance stay small.

        Returns:
            Weight (k, H) and bias (k,), both float64: a state x becomes `weight @ x + bias`.

        Raises:
            ValueError: The states do not vary along so many directions.

        Example:
            >>> moments = StateMoments(2)
            >>> moments.add(torch.tensor([[5.0, 1.0], [7.0, -1.0], [5.0, -1.0], [7.0, 1.0]]))
            >>> weight, bias = moments.whitening(2, regularization=0.0)
            >>> (torch.tensor([[7.0, 1.0]], dtype=torch.float64) @ weight.T + bias).abs()
            tensor([[1., 1.]], dtype=torch.float64)
        """
        mean = self.total / self.count
        covariance = self.products / self.count - torch.outer(mean, mean)
        variances, basis = torch.linalg.eigh(covariance.nan_to_num())  # ascending
        variances, basis = variances.flip(0)[:directions], basis.flip(1)[:, :directions]
        found = int((variances > SMALLEST * variances[0].clamp(min=SMALLEST)).sum())
        if found < directions:
            raise ValueError(
                f"the states of {int(self.count)} slices vary along {found} directions, and {directions} are needed. "
                "Give more samples, and different ones."
            )
        largest = basis.gather(0, basis.abs().argmax(dim=0, keepdim=True))  # eigenvectors are told up to their sign
        scales = (variances + regularization * variances.median()).rsqrt() * largest.sign().squeeze(0)
        weight = (basis * scales).T
        return weight, -(weight @ mean)


@contextmanager
def gathered_states(model: SugarForConditionalGeneration) -> Iterator[StateMoments]:
    """Gather the moments of all pooled states that reach a model's retrieval head within the block."""
    moments = StateMoments(model.config.get_text_config().hidden_size)
    # PEFT has the head in a module of its own, which takes what the head takes
    handle = model.retrieval_head.register_forward_pre_hook(lambda head, given: moments.add(given[0]))
    try:
        yield moments
    finally:
        handle.remove()


@torch.no_grad()
def set_whitened(head: RetrievalHead, moments: StateMoments, regularization: float = REGULARIZATION) -> None:
    """Make a head give whitened states, exactly, as long as it is not trained.

    As GELU(x) - GELU(-x) = x, two units of the hidden layer pass one direction on. With `hidden` units there are
    `hidden // 2` directions at the most. The other units keep their weights, and are not heard at first.

    Args:
        head: The head.
        moments: Of the states that it will get.
        regularization: See [`StateMoments.whitening`].

    Raises:
        ValueError: The states do not vary along so many directions.
    """
    first, last = head.pooled_to_hidden, head.hidden_to_embedding
    count = min(last.out_features, first.out_features // 2, first.in_features)
    weight, bias = (each.to(first.weight) for each in moments.whitening(count, regularization))
    first.weight[: 2 * count] = torch.cat([weight, -weight])
    first.bias[: 2 * count] = torch.cat([bias, -bias])
    identity = torch.eye(last.out_features, count).to(last.weight)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    last.weight[:, : 2 * count] = torch.cat([identity, -identity], dim=1)


def whiten_head(
    model: SugarForConditionalGeneration,
    processor: SugarProcessor,
    samples: Sequence[Sample],
    *,
    batch_size: int = 8,
    regularization: float = REGULARIZATION,
    show_progress: bool = True,
    **options: Any,
) -> None:
    """Set the retrieval head of a model, which may be untrained, by the states of some samples. Nothing is trained.

    The head's embeddings are then the pooled states of slices, projected onto their main directions and whitened (Su
    et al. 2021, "Whitening Sentence Representations"). That is a far better start of training than a random head, and
    finds documents before any training. What the head has learnt before is lost.

    Args:
        model: The model, changed in place.
        processor: Its processor.
        samples: Samples like those to be embedded, whole ones. 500 do. Their slices have to outnumber the dimensions
            of the embeddings.
        batch_size: Samples in one forward pass.
        regularization: See [`StateMoments.whitening`].
        show_progress: Whether to show a bar.
        **options: Of the processor, such as `max_length` and `truncation`.

    Raises:
        ValueError: A sample cannot be read or is too long, or the samples are too few.

    Example:
        >>> model = SugarForConditionalGeneration.from_backbone("llava-hf/llava-1.5-7b-hf")  # doctest: +SKIP
        >>> whiten_head(model, processor, [["A cat on a mat.", image], ...])  # doctest: +SKIP
    """
    names = [f"sample {number}" for number in range(len(samples))]
    with gathered_states(model) as moments, tqdm(total=len(samples), desc="States", disable=not show_progress) as bar:
        embed_list(model, processor, samples, names, bar.update, batch_size=batch_size, **options)
    set_whitened(active_head(model), moments, regularization)


def active_head(model: SugarForConditionalGeneration) -> RetrievalHead:
    """Return the retrieval head that is in use, that of an adapter if one has it."""
    head = model.retrieval_head
    if isinstance(head, RetrievalHead):
        return head
    return next(
        (head.modules_to_save[name] for name in head.active_adapters if name in head.modules_to_save),
        head.original_module,
    )
