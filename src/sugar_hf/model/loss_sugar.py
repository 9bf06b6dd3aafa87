"""The language-model loss from label positions alone, without the logits of the whole batch."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

IGNORED = -100


def chunked_cross_entropy(
    hidden: Tensor,
    labels: Tensor,
    head: Callable[[Tensor], Tensor],
    vocab_size: int,
    num_items_in_batch: Tensor | int | None = None,
    max_logits: int | None = 2**25,
) -> Tensor:
    """Next-token cross entropy, equal in value and gradient to that of all logits, at a fraction of their memory.

    Only positions with a label go through the head, in chunks whose logits are dropped and computed again in the
    backward pass. A batch whose logits fit into one chunk pays for no second computation.

    Args:
        hidden: (B, L, H) states before the head.
        labels: (B, L) int64 ids, -100 where there is nothing to learn; position t is predicted from t - 1.
        head: Maps (n, H) states to (n, vocab_size) logits.
        vocab_size: Number of logits of a position.
        num_items_in_batch: What the sum is divided by; the number of labels when `None`.
        max_logits: The most logits in memory at once; `None` for no limit.

    Returns:
        () float32 loss; 0 if nothing has a label.
    """
    targets = labels[:, 1:].to(hidden.device)
    is_label = targets != IGNORED
    states = hidden[:, :-1][is_label]  # (n, H)
    targets = targets[is_label]  # (n,)
    rows = len(targets) if max_logits is None else max_logits // vocab_size
    chunks = list(zip(states.split(max(1, rows)), targets.split(max(1, rows)), strict=True))
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    for chunk in chunks:  # one at least, empty if need be: a sharded head waits for all processes
        if len(chunks) > 1 and torch.is_grad_enabled():
            total = total + checkpoint(_summed, head, *chunk, use_reentrant=False)
        else:
            total = total + _summed(head, *chunk)
    count = len(targets) if num_items_in_batch is None else num_items_in_batch
    return total / torch.as_tensor(count, device=total.device).clamp(min=1)


def _summed(head: Callable[[Tensor], Tensor], states: Tensor, targets: Tensor) -> Tensor:
    logits = head(states)  # on whichever device the head lies
    return cross_entropy(logits.float(), targets.to(logits.device), reduction="sum").to(states.device)
