"""What a Sugar model returns."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast

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
        """Not there any more: settings for sentence-transformers of earlier versions ask for it.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "this Sugar model was saved for sentence-transformers by an earlier version, whose settings give no Sugar "
            "embeddings any more. Load model and processor and save them once more with save_pretrained, which writes "
            "modules.json and sentence_bert_config.json anew."
        )
