"""A vision tower in the place of timm's, which needs torchvision: convolution of patches, in the layouts asked for."""

from typing import Any

from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.gemma3n.configuration_gemma3n import Gemma3nVisionConfig
from transformers.models.timm_wrapper.configuration_timm_wrapper import TimmWrapperConfig

WIDTH, PATCH = 64, 8


class StandInTower(PreTrainedModel):
    """Takes timm's place within this process; `model_args["tokens"]` gives (B, 1 + N, C) instead of (B, C, H, W)."""

    config_class = TimmWrapperConfig
    main_input_name = "pixel_values"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.mixing = nn.Conv2d(WIDTH, WIDTH, 1)
        self.post_init()

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutput:
        """Map pictures (B, 3, H, W) to features."""
        features = self.mixing(nn.functional.gelu(self.patches(pixel_values)))
        if (self.config.model_args or {}).get("tokens"):
            tokens = features.flatten(2).transpose(1, 2)
            features = nn.functional.pad(tokens, (0, 0, 1, 0))
        return BaseModelOutput(last_hidden_state=features)


class StandInGemma3nTower(StandInTower):
    """The same for Gemma 3n, whose configuration of timm's is its own."""

    config_class = Gemma3nVisionConfig


def stand_in() -> None:
    """Let transformers build the stand-ins wherever it would build timm's towers."""
    AutoModel.register(TimmWrapperConfig, StandInTower, exist_ok=True)
    AutoModel.register(Gemma3nVisionConfig, StandInGemma3nTower, exist_ok=True)
