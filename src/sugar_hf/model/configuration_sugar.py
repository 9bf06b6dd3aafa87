"""Configuration of a Sugar model: any vision-language backbone and a retrieval head."""

import copy
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

POOLINGS = ("mean", "last")
# What `from_backbone` gives new models. Not what a configuration without the field means: that is always "last".
TEXT_POOLING = "last"


class SugarConfig(PreTrainedConfig):
    """Configuration of [`SugarForConditionalGeneration`].

    Args:
        vlm_config: The backbone's own configuration, as an object or as the dict of its `config.json`. Required.
        retrieval_dim: Width of the retrieval embeddings r.
        retrieval_hidden_size: Width of the head's hidden layer; the hidden size of the language model when `None`.
        image_pooling: How the tokens of an image slice become one vector: `"mean"` over all of its image tokens, or
            its `"last"` image token (the ablation without average pooling).
        text_pooling: How the tokens of a text slice become one vector: the `"last"` of them, or their `"mean"`. The
            tokens are the text's own, without those of the chat template and of the slices before it.

    Raises:
        ValueError: If `vlm_config` is missing or a field has a value that it cannot have.
    """

    model_type = "sugar"
    sub_configs: ClassVar[dict[str, Any]] = {"vlm_config": AutoConfig}
    has_no_defaults_at_init: ClassVar[bool] = True

    vlm_config: Any = None  # a PreTrainedConfig once the object is made
    retrieval_dim: int = 256
    retrieval_hidden_size: int | None = None
    image_pooling: str = "mean"
    text_pooling: str = "last"  # not TEXT_POOLING: older configurations have no such field

    def __post_init__(self, **kwargs: Any) -> None:
        if self.vlm_config is None:
            raise ValueError(
                "SugarConfig has no `vlm_config`. If this checkpoint is a plain vision-language model, wrap it with "
                "`SugarForConditionalGeneration.from_backbone(name_or_path)`."
            )
        if isinstance(self.vlm_config, dict):
            settings = dict(self.vlm_config)
            self.vlm_config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        else:
            self.vlm_config = copy.deepcopy(self.vlm_config)  # below, the kind of attention is set for all parts of it
        for name, value in (("image_pooling", self.image_pooling), ("text_pooling", self.text_pooling)):
            if value not in POOLINGS:
                raise ValueError(f"{name}={value!r}: give one of {', '.join(POOLINGS)}.")
        if self.retrieval_dim < 1:
            raise ValueError(f"retrieval_dim={self.retrieval_dim}: give a positive number of dimensions.")
        super().__post_init__(**kwargs)

    @property
    def image_token_id(self) -> int | None:
        """Id of the token that stands for one image feature in the backbone's input; `None` if none is named."""
        return getattr(self.vlm_config, "image_token_id", None)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """Return the configuration of the backbone's language model."""
        return self.vlm_config.get_text_config(decoder=decoder, encoder=encoder)
