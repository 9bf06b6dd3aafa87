"""What Sugar needs of a backbone, checked once when it is wrapped: one hidden state a token, before one LM head."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, PreTrainedConfig, PreTrainedModel

# Where this thread's forward pass puts the hidden states that the modules below hand on; each thread has its own.
_CAPTURE: ContextVar[Capture | None] = ContextVar("sugar_capture", default=None)
_REGISTERING = threading.Lock()
_SWITCHING = threading.Lock()
#: For each module that blocks hold in evaluation mode, how many do; the last one puts back training mode.
_HELD: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


class BackboneError(ValueError):
    """A model that Sugar cannot wrap; the message names its type, the reason and what to do."""

    def __init__(self, config: PreTrainedConfig, reason: str, mend: str = "") -> None:
        mend = mend or "Choose a decoder-only image-text-to-text model: docs/backbones.md lists every type."
        super().__init__(f"{config.model_type} cannot be a backbone of Sugar: {reason}. {mend}")


def check_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Refuse what no model of this configuration can give, before any weight is loaded.

    Raises:
        BackboneError: If it is an encoder-decoder, no image-text-to-text model, or has no width of hidden states.
    """
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and "auto_map" not in vars(config):
        raise BackboneError(config, "transformers has no image-text-to-text model of this type")
    text_config = config.get_text_config()
    if config.is_encoder_decoder or text_config.is_encoder_decoder:
        raise BackboneError(
            config, "it is an encoder-decoder, whose decoder's states belong to other tokens than its inputs"
        )
    try:
        _ = text_config.hidden_size, text_config.vocab_size
    except AttributeError as error:
        raise BackboneError(config, f"its configuration has no language model of known size ({error})") from None
    return config


def lm_head(vlm: PreTrainedModel) -> nn.Module | None:
    """Return the module that makes logits of hidden states, which may lie inside the language model."""
    head = vlm.get_output_embeddings()
    if head is None:
        decoder = vlm.get_decoder()
        head = decoder.get_output_embeddings() if isinstance(decoder, PreTrainedModel) and decoder is not vlm else None
    return head


def has_body(vlm: PreTrainedModel) -> bool:
    """Whether the backbone without its LM head is a module of its own, so that no logit need be computed."""
    return vlm.base_model is not vlm


class StatesReached(Exception):  # noqa: N818
    """Ends a forward pass at the LM head, as its logits are not wanted."""


class Capture:
    """The hidden states that the forward passes of one block have reached, and whether they go on from there."""

    def __init__(self, stop: bool) -> None:
        self.states: list[Tensor] = []
        self.stop = stop

    def keep(self, states: Tensor) -> None:
        self.states.append(states)
        if self.stop:
            raise StatesReached


@contextmanager
def captured_states(vlm: PreTrainedModel, stop: bool = False) -> Iterator[list[Tensor]]:
    """Collect the hidden states (B, L, H) before the LM head in this thread's forward passes of the block.

    Args:
        vlm: The backbone.
        stop: End the block where the states are there. Only for a backbone whose forward pass holds the LM head.
    """
    _watch(vlm)
    capture = Capture(stop)
    token = _CAPTURE.set(capture)
    try:
        yield capture.states
    except StatesReached:
        pass
    finally:
        _CAPTURE.reset(token)


def _watch(vlm: PreTrainedModel) -> None:
    """Register the hook that keeps states, once and for good: hooks that come and go would be other threads' too."""
    if has_body(vlm):
        module: nn.Module | None = vlm.base_model
    else:
        module = lm_head(vlm)
    if module is None:
        raise BackboneError(vlm.config, "it has no LM head")
    with _REGISTERING:
        if _keep_output not in module._forward_hooks.values() and has_body(vlm):
            module.register_forward_hook(_keep_output)
        elif _keep_input not in module._forward_pre_hooks.values() and not has_body(vlm):
            module.register_forward_pre_hook(_keep_input)


def _keep_output(module: nn.Module, args: Any, output: Any) -> None:
    capture = _CAPTURE.get()
    if capture is not None:
        capture.keep(output[0])


def _keep_input(module: nn.Module, args: tuple[Any, ...]) -> None:
    capture = _CAPTURE.get()
    if capture is not None:
        capture.keep(args[0])


@torch.no_grad()
def probe(vlm: PreTrainedModel) -> bool | None:
    """Run two tokens through the backbone and see whether Sugar can stand on what comes out.

    The model stays as it is: no weight, mode or random state changes.

    Returns:
        Whether the logits are the LM head's output and nothing more (some backbones scale or cap them); `None` if two
        tokens of text cannot tell: the weights are not here, or the backbone reads no text without a picture.

    Raises:
        BackboneError: If the backbone gives no hidden state of the language model's width for each token.
    """
    if any(parameter.is_meta or parameter.numel() == 0 for parameter in vlm.parameters()):
        return None  # offloaded, or sharded over processes
    if "hf_quantizer" in vars(vlm):
        return None  # some quantised layers change the layout of their weights in their first forward pass
    embeddings = vlm.get_input_embeddings()
    ids = _plain_ids(vlm.config).to(embeddings.weight.device)
    devices = [ids.device] if ids.device.type == "cuda" else []
    with torch.random.fork_rng(devices), evaluation_mode(vlm), captured_states(vlm) as states:
        try:
            logits = vlm(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, return_dict=True).logits
        except Exception as error:
            # a backbone may fail on two words in its own way; what matters is whether it can be wrapped at all
            if has_body(vlm):
                return None
            raise BackboneError(
                vlm.config, f"its forward pass fails on two words of text alone ({type(error).__name__}: {error})"
            ) from error
    found = tuple(states[-1].shape) if states and isinstance(states[-1], Tensor) else None
    width = vlm.config.get_text_config().hidden_size
    if found != (1, 2, width):
        raise BackboneError(
            vlm.config,
            f"for 2 tokens it gives hidden states of shape {found} where Sugar needs {(1, 2, width)}, one for each",
        )
    head = lm_head(vlm)
    if head is None:
        raise BackboneError(vlm.config, "it has no LM head")
    return same_logits(head, states[-1], logits)


def head_logits(head: nn.Module, hidden: Tensor) -> Tensor:
    """What the LM head makes of hidden states; one that is kept in float32 gets them so."""
    weight = next(head.parameters(), hidden)
    return head(hidden.float() if weight.dtype == torch.float32 else hidden)


@torch.no_grad()
def same_logits(head: nn.Module, hidden: Tensor, logits: Tensor | None) -> bool | None:
    """Whether the logits (B, L, V) are, bit by bit, what the head makes of the hidden states (B, L, H).

    Returns:
        `None` if they are not finite, which tells nothing.
    """
    if logits is None:
        return False
    plain = head_logits(head, hidden)  # of all states: for some of them, sums are rounded otherwise
    if not bool(plain.isfinite().all()):
        return None
    return plain.shape == logits.shape and torch.equal(plain, logits.to(plain.device))


def _plain_ids(config: PreTrainedConfig) -> Tensor:
    """(1, 2) ids of two tokens that mean nothing to the configuration, such as the place of an image."""
    special: set[int] = set()

    def collect(settings: dict[Any, Any]) -> None:
        for key, value in settings.items():
            if isinstance(value, dict):
                collect(value)
            elif isinstance(key, str) and ("token" in key or key.endswith("_id")):
                values = value if isinstance(value, list) else [value]
                special.update(entry for entry in values if type(entry) is int)

    collect(config.to_dict())
    ordinary = [i for i in range(min(config.get_text_config().vocab_size, 1000)) if i not in special] or [0]
    return torch.tensor([[ordinary[len(ordinary) // 2], ordinary[-1]]])


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode, and every module back into the mode it had.

    A model that is in evaluation mode is not touched. Blocks of several threads may overlap: training mode comes back
    when the last of them ends.
    """
    with _SWITCHING:
        held = [module for module in model.modules() if module.training or module in _HELD]
        for module in held:
            _HELD[module] = _HELD.get(module, 0) + 1
            module.training = False
    try:
        yield
    finally:
        with _SWITCHING:
            for module in held:
                _HELD[module] -= 1
                if not _HELD[module]:
                    del _HELD[module]
                    module.training = True
