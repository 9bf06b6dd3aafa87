"""Sugar: a vision-language backbone that generates as before, and a head that turns slices into embeddings."""

import os
import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
    ProcessorMixin,
)

from .configuration_sugar import SugarConfig
from .loading_sugar import plain_config, require_complete, split_adapter
from .loss_sugar import chunked_cross_entropy
from .output_sugar import CACHE_NAME, SugarOutput, find_cache
from .sentence_transformers_sugar import write_settings


class RetrievalHead(nn.Module):
    """The map r = MLP(d) from pooled hidden states to embeddings (section 3 of the paper)."""

    def __init__(self, config: SugarConfig) -> None:
        super().__init__()
        width = config.get_text_config().hidden_size
        hidden = config.retrieval_hidden_size or width
        self.up_proj = nn.Linear(width, hidden)
        self.activation = nn.GELU()
        self.down_proj = nn.Linear(hidden, config.retrieval_dim)

    def forward(self, pooled: Tensor) -> Tensor:
        """Map pooled states to unit vectors.

        Args:
            pooled: (..., hidden) of any dtype; cast to the head's own.

        Returns:
            (..., retrieval_dim) float32 unit vectors.
        """
        projected = self.down_proj(self.activation(self.up_proj(pooled.to(self.up_proj.weight.dtype))))
        return nn.functional.normalize(projected.float(), dim=-1)


def pool_slices(hidden: Tensor, slice_map: Tensor, image_pooling: str = "mean") -> tuple[Tensor, Tensor]:
    """Pool the hidden states of every slice into one vector, for all samples at once.

    Args:
        hidden: (B, L, H) hidden states.
        slice_map: (B, L) int64, 0 = no slice, k = slice k of the sample.
        image_pooling: `"mean"` over the tokens that carry k, or the `"last"` of them. A text slice is marked on its
            last token alone, so that both give this token's state.

    Returns:
        Pooled states (B, S, H) float32, zeros where a sample has no slice k, and the mask (B, S) bool. S is the
        highest number in `slice_map`.

    Shape:
        A batch without any slice gives S = 0.
    """
    batch, length, width = hidden.shape
    slots = int(slice_map.max()) + 1 if slice_map.numel() else 1  # slot 0 collects what belongs to no slice
    counts = torch.zeros(batch, slots, dtype=torch.float32, device=hidden.device)
    counts = counts.scatter_add(1, slice_map, torch.ones_like(slice_map, dtype=torch.float32))
    mask = counts[:, 1:] > 0  # (B, S)
    if image_pooling == "last":
        positions = torch.arange(length, device=hidden.device).expand(batch, length)
        last = torch.zeros(batch, slots, dtype=torch.int64, device=hidden.device)
        last = last.scatter_reduce(1, slice_map, positions, "amax", include_self=False)[:, 1:]
        rows = torch.arange(batch, device=hidden.device).unsqueeze(1)
        return hidden[rows, last].float() * mask.unsqueeze(-1), mask
    row, column = slice_map.nonzero(as_tuple=True)
    sums = torch.zeros(batch * slots, width, dtype=torch.float32, device=hidden.device)
    # float32 throughout: a bfloat16 sum over hundreds of image tokens loses most of its digits
    sums = sums.index_add(0, row * slots + slice_map[row, column], hidden[row, column].float())
    pooled = sums.view(batch, slots, width)[:, 1:] / counts[:, 1:].clamp(min=1).unsqueeze(-1)
    return pooled, mask


class SugarForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Any image-text-to-text model, whole and unchanged, with a retrieval head on its last hidden states.

    `forward` takes what the backbone takes plus `slice_map` and `skip_logits`; `generate` is the backbone's own.
    """

    # The most logits that a loss without logits holds at once, 128 MiB in float32; None for no limit.
    max_logits: int | None = 2**25
    # Whether the backbone's logits are its head's output and nothing more; unknown before the first loss.
    _head_is_plain: bool | None = None

    config_class = SugarConfig
    config: SugarConfig
    base_model_prefix = "vlm"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # Quantisers leave these alone, whichever modules they are told to skip: the head may be untrained as yet, and
    # random weights do not survive rounding. In bfloat16 it stays bfloat16.
    _keep_in_fp32_modules: ClassVar[list[str]] = ["retrieval_head"]

    def __init__(self, config: SugarConfig) -> None:
        super().__init__(config)
        self.vlm = AutoModelForImageTextToText.from_config(config.vlm_config)
        self.retrieval_head = RetrievalHead(config)
        self.post_init()
        # Collected from the classes of the backbone's parts; FSDP fails on one that has no module in this model.
        self._no_split_modules &= {type(module).__name__ for module in self.modules()}

    @classmethod
    def from_backbone(
        cls,
        backbone: str | os.PathLike | PreTrainedModel,
        *,
        retrieval_dim: int = 256,
        retrieval_hidden_size: int | None = None,
        image_pooling: str = "mean",
        **kwargs: Any,
    ) -> "SugarForConditionalGeneration":
        """Put a fresh retrieval head on a vision-language model. The only way to get a model with an untrained head.

        Args:
            backbone: Hub name or folder of an image-text-to-text model, or such a model, which is used, not copied.
            retrieval_dim: See [`SugarConfig`].
            retrieval_hidden_size: See [`SugarConfig`].
            image_pooling: See [`SugarConfig`].
            **kwargs: Passed to `from_pretrained` (`dtype`, `device_map`, `attn_implementation`, `revision`, ...);
                none are allowed with a model.

        Raises:
            ValueError: If the backbone is a Sugar model already, or any weight of it is missing or unexpected.
        """
        fields = {
            "retrieval_dim": retrieval_dim,
            "retrieval_hidden_size": retrieval_hidden_size,
            "image_pooling": image_pooling,
        }
        if isinstance(backbone, PreTrainedModel):
            if kwargs:
                raise ValueError(f"{', '.join(kwargs)}: loading options have no effect on a model that is loaded.")
            return cls._around(backbone, fields)
        config_options = {
            key: kwargs[key]
            for key in ("revision", "token", "cache_dir", "subfolder", "local_files_only", "trust_remote_code")
            if key in kwargs
        }
        vlm_config = plain_config(AutoConfig.from_pretrained(backbone, **config_options))
        # dtype too: without it the weights would keep the dtype of the file, whatever the backbone's config says
        config = SugarConfig(vlm_config=vlm_config, dtype=vlm_config.dtype, **fields)
        model, info = super().from_pretrained(backbone, config=config, output_loading_info=True, **kwargs)
        require_complete(info, backbone, head_may_lack=True)
        return model

    @classmethod
    def _around(cls, backbone: PreTrainedModel, fields: dict[str, Any]) -> "SugarForConditionalGeneration":
        config = SugarConfig(vlm_config=plain_config(backbone.config), **fields)
        with torch.device("meta"):  # the second copy of the backbone takes no memory
            model = cls(config)
        model.vlm = backbone
        head = RetrievalHead(config)
        head.apply(model._init_weights)
        model.retrieval_head = head.to(device=backbone.device, dtype=backbone.dtype)
        return model.train(backbone.training)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """Load a Sugar checkpoint; see `PreTrainedModel.from_pretrained` for the options.

        Raises:
            ValueError: If any weight of the backbone or the head is missing, unexpected or of another shape: the
                library would fill it with random numbers and only log a warning.
        """
        return_info = kwargs.pop("output_loading_info", False)
        if pretrained_model_name_or_path is None:  # a state dict is given
            model, info = super().from_pretrained(None, *model_args, output_loading_info=True, **kwargs)
            require_complete(info, "the given state dict")
            return (model, info) if return_info else model
        path, adapter, adapter_options = split_adapter(pretrained_model_name_or_path, kwargs)
        # the adapter is loaded on its own: together, the report of what the base lacks would be lost
        model, info = super().from_pretrained(path, *model_args, output_loading_info=True, **kwargs)
        require_complete(info, path)
        if adapter is not None:
            model.load_adapter(adapter, adapter_kwargs=adapter_options)
        return (model, info) if return_info else model

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        slice_map: Tensor | None = None,
        skip_logits: bool = False,
        **kwargs: Any,
    ) -> SugarOutput:
        """Run the backbone once and, if a slice map is given, embed every slice from the same pass.

        Args:
            input_ids: (B, L) token ids.
            attention_mask: (B, L) 1 at real tokens.
            pixel_values: Whatever the backbone's image processor makes.
            labels: (B, L) ids to predict, -100 where there is nothing to learn.
            slice_map: (B, L) int64 from [`SugarProcessor`]: 0 = none, k = slice k.
            skip_logits: Return no logits. The loss comes from the positions that have a label, chunk by chunk, equal
                in value and gradient; without labels no logit is computed at all.
            **kwargs: Further inputs of the backbone (`image_grid_thw`, `num_items_in_batch`, ...).

        Returns:
            A [`SugarOutput`].
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "pixel_values": pixel_values, **kwargs}
        inputs["return_dict"] = True
        if not skip_logits:
            output, hidden = self._run_backbone({**inputs, "labels": labels})
            loss, logits = output.get("loss"), output.logits
        else:
            output, hidden, loss = self._without_logits(inputs, labels)
            logits = None
        embeds = mask = None
        if slice_map is not None:
            embeds, mask = self._embed(hidden, slice_map)
        return SugarOutput(
            loss=loss,
            logits=logits,
            retrieval_embeds=embeds,
            retrieval_mask=mask,
            last_hidden_state=hidden if slice_map is not None or skip_logits else None,
            **{CACHE_NAME: find_cache(output)},
            hidden_states=output.get("hidden_states"),
            attentions=output.get("attentions"),
        )

    def _run_backbone(self, inputs: dict[str, Any]) -> tuple[Any, Tensor]:
        """The whole backbone's output, and the hidden states (B, L, H) before its LM head."""
        captured: list[Tensor] = []
        hook = self.vlm.base_model.register_forward_hook(lambda module, args, output: captured.append(output[0]))
        try:
            output = self.vlm(**inputs)
        finally:
            hook.remove()
        return output, captured[-1]

    def _without_logits(self, inputs: dict[str, Any], labels: Tensor | None) -> tuple[Any, Tensor, Tensor | None]:
        """The backbone's output, hidden states (B, L, H) and loss, without the logits of the whole batch."""
        count = inputs.pop("num_items_in_batch", None)
        if labels is None or self._head_is_plain:
            output = self.vlm.base_model(**inputs)
            hidden = output.last_hidden_state
        elif self._head_is_plain is None:
            # The first loss: some backbones scale or cap what their head gives, which one position shows.
            output, hidden = self._run_backbone({**inputs, "logits_to_keep": 1})
            with torch.no_grad():
                plain = self.get_output_embeddings()(hidden[:, -1:])
            if bool(plain.isfinite().all()):  # else it tells nothing yet
                self._head_is_plain = torch.equal(plain, output.logits)
            if self._head_is_plain is False:
                warnings.warn(
                    f"{type(self.vlm).__name__} changes its logits after its LM head: the loss is computed by itself "
                    "from the logits of the whole batch, which takes their memory.",
                    stacklevel=4,
                )
        if labels is None:
            return output, hidden, None
        if self._head_is_plain is False:
            output, hidden = self._run_backbone({**inputs, "labels": labels, "num_items_in_batch": count})
            return output, hidden, output.loss
        head, vocab_size = self.get_output_embeddings(), self.config.get_text_config().vocab_size
        loss = chunked_cross_entropy(hidden, labels, head, vocab_size, count, self.max_logits)
        return output, hidden, loss

    def get_retrieval_embeddings(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        slice_map: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Embed every slice without computing logits.

        Args:
            input_ids: (B, L) token ids.
            attention_mask: (B, L) 1 at real tokens.
            pixel_values: Whatever the backbone's image processor makes.
            slice_map: (B, L) int64 from [`SugarProcessor`].
            **kwargs: Further inputs of the backbone.

        Returns:
            Embeddings (B, S, retrieval_dim) float32 unit vectors (zeros where there is no slice), mask (B, S) bool.

        Raises:
            ValueError: If no slice map is given.
        """
        if slice_map is None:
            raise ValueError("slice_map is missing: pass everything that SugarProcessor returned.")
        kwargs = {**kwargs, "labels": None, "use_cache": False, "skip_logits": True}
        output: Any = self.forward(input_ids, attention_mask, pixel_values, slice_map=slice_map, **kwargs)
        return output.retrieval_embeds, output.retrieval_mask

    def _embed(self, hidden: Tensor, slice_map: Tensor) -> tuple[Tensor, Tensor]:
        pooled, mask = pool_slices(hidden, slice_map.to(hidden.device), self.config.image_pooling)
        embeds = pooled.new_zeros(*mask.shape, self.config.retrieval_dim)
        embeds[mask] = self.retrieval_head(pooled[mask])  # the head would make a unit vector of an absent slice too
        return embeds, mask

    def generate(self, *args: Any, slice_map: Tensor | None = None, **kwargs: Any) -> Any:
        """Generate with the backbone, which knows best how. A `slice_map` is accepted and not needed."""
        return self.vlm.generate(*args, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save the model, and the settings of sentence-transformers; see `PreTrainedModel.save_pretrained`."""
        if self._auto_class is None:  # a checkpoint from the Hub may name its code, which is not saved with this class
            for key in {"auto_map", "custom_pipelines"} & vars(self.config).keys():
                delattr(self.config, key)
        super().save_pretrained(save_directory, **kwargs)
        if kwargs.get("is_main_process", True):
            write_settings(save_directory)

    def push_to_hub(self, repo_id: str, processor: ProcessorMixin | None = None, **kwargs: Any) -> str:
        """Upload model, processor, code and model card; see `sugar_hf.model.hub.push_to_hub` for the options.

        Raises:
            ValueError: If the processor is missing, without which the model is of no use.
        """
        if processor is None:
            raise ValueError("processor is missing: model.push_to_hub(repo_id, processor=processor).")
        from .hub import push_to_hub  # which imports this module

        return push_to_hub(self, processor, repo_id, **kwargs)

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Forwarded to the backbone: families override it."""
        return self.vlm.prepare_inputs_for_generation(*args, **kwargs)

    @property
    def generation_config(self) -> GenerationConfig:
        """The backbone's generation config, so that there is only one."""
        return self.vlm.generation_config

    @generation_config.setter
    def generation_config(self, value: GenerationConfig) -> None:
        vlm = self._modules.get("vlm")
        if vlm is not None:  # the library sets a default before the backbone is built
            vlm.generation_config = value

    @property
    def base_model(self) -> nn.Module:
        """The backbone without its LM head."""
        return self.vlm.base_model

    def get_input_embeddings(self) -> nn.Module:
        """Return the backbone's token embeddings."""
        return self.vlm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the backbone's token embeddings."""
        self.vlm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Return the backbone's LM head."""
        return self.vlm.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the backbone's LM head."""
        self.vlm.set_output_embeddings(value)

    def get_decoder(self) -> nn.Module:
        """Return the backbone's language model."""
        return self.vlm.get_decoder()
