"""What a Sugar model returns."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast

UNIT_TOLERANCE = 1e-3

# What transformers calls the cache of keys and values, in outputs and as an input: `cache` from 5.24 on.
CACHE_NAME = next(field.name for field in fields(CausalLMOutputWithPast) if field.name in ("cache", "past_key_values"))


def find_cache(output: Mapping[str, Any]) -> Any | None:
    """Return the cache in a model's output, whichever name it has there, or `None` if there is none."""
    return next((output[name] for name in ("cache", "past_key_values") if name in output.keys()), None)  # noqa: SIM118


@dataclass
class SugarOutput(CausalLMOutputWithPast):
    """Output of [`SugarForConditionalGeneration`]. B samples of L tokens, at most S slices each.

    The cache of keys and values, if it was asked for, has the name that transformers gives it: `cache` from version
    5.24 on, `past_key_values` before.

    Args:
        loss: () next-token loss L_g of the backbone, if `labels` were given.
        logits: (B, L, vocabulary) scores of the next token; `None` with `skip_logits`.
        hidden_states: The backbone's hidden states, if they were asked for.
        attentions: The backbone's attentions, if they were asked for.
        retrieval_embeds: (B, S, retrieval_dim) float32 unit vectors r, zeros where a sample has no such slice; only if
            a `slice_map` was given.
        retrieval_mask: (B, S) bool, true where a sample has the slice.
        last_hidden_state: (B, L, hidden) states after the final norm; only with a `slice_map` or `skip_logits`.
    """

    retrieval_embeds: Tensor | None = None
    retrieval_mask: Tensor | None = None
    last_hidden_state: Tensor | None = None

    @property
    def last_embeds(self) -> Tensor:
        """(B, retrieval_dim) float32 unit vectors, each sample's at its last slice; sentence-transformers takes it.

        Raises:
            ValueError: If there are no embeddings, or one is no unit vector.
        """
        if self.retrieval_embeds is None or self.retrieval_mask is None:
            raise ValueError("there are no embeddings without a slice_map: pass all that SugarProcessor returned.")
        rows = torch.arange(len(self.retrieval_embeds), device=self.retrieval_embeds.device)
        embeds = self.retrieval_embeds[rows, self.retrieval_mask.sum(dim=1) - 1]
        if not bool(((embeds.norm(dim=-1) - 1).abs() <= UNIT_TOLERANCE).all()):  # NaN is not within anything
            raise ValueError(
                "the model gives no unit vectors for some of this batch. Check its weights and its dtype; float16 may "
                "overflow where bfloat16 does not."
            )
        return embeds
