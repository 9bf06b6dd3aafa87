"""Sugar: a vision-language backbone that generates as before, and a head that turns slices into embeddings."""

import copy
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.core_model_loading import WeightRenaming
from transformers.dynamic_module_utils import custom_object_save
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import cached_file

from .backbone_sugar import (
    BackboneError,
    captured_states,
    check_config,
    head_logits,
    lm_head,
    probe,
    same_logits,
)
from .checkpoint_sugar import (
    HEAD_FIELDS,
    HEAD_PREFIX,
    OLD_HEAD_NAMES,
    VLM_PREFIX,
    Adapter,
    Source,
    base_config,
    is_sugar,
    plain_backbone,
    require_complete,
    save_backbone,
    save_code,
    staged,
    unlanded,
    upload_files,
    write_settings,
)
from .configuration_sugar import TEXT_POOLING, SugarConfig

# What transformers calls the cache of keys and values, in outputs and as an input: `cache` from 5.24 on.
CACHE_NAME = next(field.name for field in fields(CausalLMOutputWithPast) if field.name in ("cache", "past_key_values"))
ADAPTER_FILE = "adapter_model.safetensors"
# What a quantised backbone has, and trainers, adapters and saving ask the whole model for.
QUANTISED = ("hf_quantizer", "quantization_method", "is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit")
IGNORED = -100


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
            "modules.json and sentence_bert_config.json again."
        )


class RetrievalHead(nn.Module):
    """The map r = MLP(d) from pooled hidden states to embeddings (section 3 of the paper)."""

    #: Some weights as they were drawn, to tell a head that nothing has changed; `None` for one that was loaded.
    drawn: Tensor | None = None

    def __init__(self, config: SugarConfig) -> None:
        super().__init__()
        width = config.get_text_config().hidden_size
        hidden = config.retrieval_hidden_size or width
        # names that no rule of transformers for converting checkpoints matches: such rules reach into every module
        self.pooled_to_hidden = nn.Linear(width, hidden)
        self.activation = nn.GELU()
        self.hidden_to_embedding = nn.Linear(hidden, config.retrieval_dim)

    @property
    def is_fresh(self) -> bool:
        """Whether it is as `from_backbone` has drawn it: neither loaded nor trained."""
        weights = self.pooled_to_hidden.weight[0]
        return self.drawn is not None and torch.equal(weights.detach().cpu(), self.drawn.to(weights.dtype))

    def forward(self, pooled: Tensor) -> Tensor:
        """Map pooled states to unit vectors.

        Args:
            pooled: (..., hidden) of any dtype, on any device; moved to the head's own.

        Returns:
            (..., retrieval_dim) float32 unit vectors on the head's device.
        """
        weight = self.pooled_to_hidden.weight
        hidden = self.activation(self.pooled_to_hidden(pooled.to(device=weight.device, dtype=weight.dtype)))
        return nn.functional.normalize(self.hidden_to_embedding(hidden).float(), dim=-1)


def _head_renamings() -> list[WeightRenaming]:
    """Rules that load the head of an adapter of any version, and no others."""
    return [WeightRenaming(rf"{HEAD_PREFIX}{old}", f"{HEAD_PREFIX}{new}") for old, new in OLD_HEAD_NAMES.items()]


def pool_slices(
    hidden: Tensor, slice_map: Tensor, image_pooling: str = "mean", text_pooling: str = "last"
) -> tuple[Tensor, Tensor]:
    """Pool the hidden states of every slice into one vector, for all samples at once.

    Args:
        hidden: (B, L, H) hidden states.
        slice_map: (B, L) int64, 0 = no slice, k on each token of slice k if it is an image, -k if it is a text. An
            image of one token has -k, too: one token is the mean and the last of itself.
        image_pooling: `"mean"` over the tokens of an image, or the `"last"` of them.
        text_pooling: `"mean"` over the tokens of a text, or the `"last"` of them.

    Returns:
        Pooled states (B, S, H) float32, zeros where a sample has no slice k, and the mask (B, S) bool. S is the
        highest number in `slice_map`.

    Raises:
        ValueError: If texts are to be pooled by their mean, and k stands on a single token. It does so in a map of an
            earlier version, which has a text's last token alone.

    Shape:
        A batch without any slice gives S = 0.
    """
    batch, length, width = hidden.shape
    numbers, is_image = slice_map.abs(), slice_map > 0
    slots = int(numbers.max()) + 1 if numbers.numel() else 1  # slot 0 collects what belongs to no slice

    def counted(tokens: Tensor) -> Tensor:
        zeros = torch.zeros(batch, slots, dtype=torch.float32, device=hidden.device)
        return zeros.scatter_add(1, numbers, tokens.to(torch.float32))[:, 1:]

    if text_pooling == "mean" and bool((counted(is_image) == 1).any()):
        raise ValueError(
            "slice_map marks a slice on one token as an image of several: it was made by an earlier version, which "
            'marks a text on its last token alone, and text_pooling="mean" needs all of them. Process the samples '
            "once more, with the SugarProcessor of this version."
        )
    # not int64, of which some devices find no maximum
    positions = torch.arange(length, dtype=torch.int32, device=hidden.device).expand(batch, length)
    last = torch.zeros(batch, slots, dtype=torch.int32, device=hidden.device)
    last = last.scatter_reduce(1, numbers, positions, "amax", include_self=False)
    pooled_by_mean = (is_image & (image_pooling == "mean")) | (~is_image & (text_pooling == "mean"))
    is_pooled = (numbers > 0) & (pooled_by_mean | (positions == last.gather(1, numbers)))
    counts = counted(is_pooled)  # (B, S)
    row, column = is_pooled.nonzero(as_tuple=True)
    sums = torch.zeros(batch * slots, width, dtype=torch.float32, device=hidden.device)
    # float32 throughout: a bfloat16 sum over hundreds of image tokens loses most of its digits
    sums = sums.index_add(0, row * slots + numbers[row, column], hidden[row, column].float())
    pooled = sums.view(batch, slots, width)[:, 1:] / counts.clamp(min=1).unsqueeze(-1)
    return pooled, counts > 0


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


class SugarForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Any image-text-to-text model, whole and unchanged, with a retrieval head on its last hidden states.

    `forward` takes what the backbone takes plus `slice_map` and `skip_logits`; `generate` is the backbone's own.
    """

    #: `sugar_hf.model.hub.push_to_hub`, which the package hands over; `None` where this file came from the Hub.
    upload: ClassVar[Callable[..., str] | None] = None
    # The most logits that a loss without logits holds at once, 128 MiB in float32; None for no limit.
    max_logits: int | None = 2**25
    # Whether the backbone's logits are its head's output and nothing more; unknown before the first loss.
    _head_is_plain: bool | None = None
    _has_warned: bool = False

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
        text_pooling: str = TEXT_POOLING,
        **kwargs: Any,
    ) -> "SugarForConditionalGeneration":
        """Put a fresh retrieval head on a vision-language model. The only way to get a model with an untrained head.

        Args:
            backbone: Hub name or folder of an image-text-to-text model, or such a model, which is used, not copied.
            retrieval_dim: See [`SugarConfig`].
            retrieval_hidden_size: See [`SugarConfig`].
            image_pooling: See [`SugarConfig`].
            text_pooling: See [`SugarConfig`].
            **kwargs: Passed to `from_pretrained` (`dtype`, `device_map`, `attn_implementation`, `revision`, ...);
                none are allowed with a model.

        Raises:
            BackboneError: If Sugar cannot stand on it: an encoder-decoder, or no hidden state for each token.
            ValueError: If the backbone is a Sugar model already, or any weight of it is missing or unexpected.
        """
        fields = {
            "retrieval_dim": retrieval_dim,
            "retrieval_hidden_size": retrieval_hidden_size,
            "image_pooling": image_pooling,
            "text_pooling": text_pooling,
        }
        if not isinstance(backbone, str | os.PathLike) and kwargs:
            raise ValueError(f"{', '.join(kwargs)}: loading options have no effect on a model that is loaded.")
        vlm = plain_backbone(backbone, **kwargs)
        model = cls._around(vlm, SugarConfig(vlm_config=vlm.config, **fields))
        model._head_is_plain = probe(vlm)
        return model

    @classmethod
    def _around(
        cls, vlm: PreTrainedModel, config: SugarConfig, head: RetrievalHead | None = None
    ) -> "SugarForConditionalGeneration":
        """Put a head, a fresh one if none is given, on a backbone, which is used and not copied."""
        config.vlm_config = check_config(vlm.config)
        config.dtype = vlm.dtype
        config.name_or_path = config.name_or_path or vlm.config.name_or_path  # by which an adapter names its base
        with torch.device("meta"):  # the second copy of the backbone takes no memory
            model = cls(copy.deepcopy(config))  # which sets the kind of attention of all parts of its configuration
        model.config = config
        config._attn_implementation_internal = vlm.config._attn_implementation  # of this one; parts may have others
        model.vlm = vlm
        if head is None:
            head = RetrievalHead(config)
            head.apply(model._init_weights)
            head.drawn = head.pooled_to_hidden.weight[0].detach().clone().cpu()
        # beside the LM head, which takes the same states
        beside = lm_head(vlm) or vlm
        device = next((weight.device for weight in beside.parameters() if not weight.is_meta), vlm.device)
        loaded = vars(vlm)
        if "hf_device_map" in loaded and device.type == "meta":
            device = torch.device("cpu")  # all weights are on the disk, and are loaded to the CPU one by one
        # in bfloat16 most of an optimizer's steps would be lost in rounding
        model.retrieval_head = head.to(device=device, dtype=torch.float32)
        for name in QUANTISED:
            if name in loaded:
                setattr(model, name, loaded[name])
        if "hf_device_map" in loaded:
            places = {f"vlm.{name}".rstrip("."): place for name, place in loaded["hf_device_map"].items()}
            model.hf_device_map = {**places, "retrieval_head": device}
        return model.train(vlm.training)

    def train(self, mode: bool = True) -> "SugarForConditionalGeneration":
        """Set training mode, as `nn.Module.train` does, except of frozen layers with running statistics.

        These would move with every batch though nothing of them is trained, and an adapter does not save them.
        """
        super().train(mode)
        if mode:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats:
                    weights = list(module.parameters())
                    module.training = not weights or any(weight.requires_grad for weight in weights)
        return self

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *model_args: Any,
        config: PreTrainedConfig | str | os.PathLike | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a Sugar checkpoint, or an adapter with what it was trained on.

        The backbone is loaded as the model of its own class, by all rules that transformers has for that class.

        Args:
            pretrained_model_name_or_path: Hub name or folder of a Sugar model or of an adapter. `None` with
                `config` and `state_dict`.
            *model_args: None are known.
            config: The configuration, if it is not the checkpoint's own.
            **kwargs: See `PreTrainedModel.from_pretrained` for the options; they hold for the backbone. The head
                stays in float32.

        Raises:
            ValueError: If any weight of the backbone, the head or the adapter is missing, unexpected or of another
                shape: the library would fill it with random numbers and only log a warning.
        """
        if model_args:
            raise TypeError(
                f"from_pretrained takes a name or folder and keyword arguments, not {model_args!r} as well."
            )
        return_info = kwargs.pop("output_loading_info", False)
        adapter = Adapter.find(pretrained_model_name_or_path, kwargs)
        if adapter is None:
            model, info = cls._whole(Source.read(pretrained_model_name_or_path, config, kwargs))
        else:
            model, info = cls._with_adapter(adapter, config, kwargs)
        return (model, info) if return_info else model

    @classmethod
    def _whole(cls, source: Source) -> tuple["SugarForConditionalGeneration", dict[str, Any]]:
        check_config(source.config.vlm_config)
        head = RetrievalHead(source.config)
        expected, weights = head.state_dict(), source.head()
        vlm, info = source.backbone()
        for key in ("missing_keys", "unexpected_keys"):
            info[key] = {VLM_PREFIX + name for name in info[key] if not name.startswith(HEAD_PREFIX)}
        info["missing_keys"] |= {HEAD_PREFIX + name for name in expected.keys() - weights.keys()}
        info["unexpected_keys"] |= {HEAD_PREFIX + name for name in weights.keys() - expected.keys()}
        info["mismatched_keys"] = {(VLM_PREFIX + name, *shapes) for name, *shapes in info["mismatched_keys"]} | {
            (HEAD_PREFIX + name, value.shape, expected[name].shape)
            for name, value in weights.items()
            if name in expected and value.shape != expected[name].shape
        }
        require_complete(info, source.name)
        head.load_state_dict(weights)
        return cls._around(vlm, source.config, head).eval(), info

    @classmethod
    def _with_adapter(
        cls, adapter: Adapter, config: Any, kwargs: dict[str, Any]
    ) -> tuple["SugarForConditionalGeneration", dict[str, Any]]:
        """Load what an adapter was trained on, a Sugar model or a plain backbone, and the adapter onto it."""
        own = config if is_sugar(config) else adapter.config(kwargs)
        base = base_config(adapter, kwargs)
        options = {key: value for key, value in kwargs.items() if key not in ("revision", "subfolder", "_from_auto")}
        options |= {"revision": adapter.revision} if adapter.revision else {}
        if is_sugar(base):
            model, info = cls.from_pretrained(adapter.base, output_loading_info=True, **options)
        elif own is None:
            raise ValueError(
                f"The adapter in {adapter.path} was trained on the plain model {adapter.base}, and no config.json "
                "beside it tells the width and pooling of its head. Make the model that was trained: "
                f"SugarForConditionalGeneration.from_backbone({adapter.base!r}, image_pooling=..., text_pooling=...), "
                "save its configuration with model.config.save_pretrained(folder of the adapter), and load again."
            )
        else:
            fields = {name: vars(own)[name] for name in HEAD_FIELDS}
            model, info = cls.from_backbone(adapter.base, **{**options, **fields}), {}
        if own is not None:
            model.config.image_pooling, model.config.text_pooling = own.image_pooling, own.text_pooling
        model.load_adapter(adapter.path, adapter_kwargs=adapter.options)
        if not is_sugar(base) and isinstance(model.retrieval_head, RetrievalHead):
            raise ValueError(
                f"The adapter in {adapter.path} holds no retrieval head, and the plain model {adapter.base} has none: "
                'the head was random in training. Train again with modules_to_save=["retrieval_head"], which '
                "sugar_lora_config sets."
            )
        return model.eval(), info

    def load_adapter(self, peft_model_id: str | None = None, adapter_name: str | None = None, **kwargs: Any) -> Any:
        """Load an adapter onto the model; see `PreTrainedModel.load_adapter` for the options.

        Raises:
            ValueError: If any of its weights has no place in the model: the library would only log it.
        """
        from peft import get_peft_model_state_dict  # peft is not imported where there are no adapters
        from peft.functional import delete_adapter
        from peft.utils import load_peft_weights

        name = adapter_name or "default"
        saved = kwargs.get("adapter_state_dict")
        if saved is None:
            where = {key: value for key, value in (kwargs.get("adapter_kwargs") or {}).items() if value is not None}
            if (
                cached_file(str(peft_model_id), ADAPTER_FILE, _raise_exceptions_for_missing_entries=False, **where)
                is None
            ):
                raise OSError(
                    f"{peft_model_id} has no {ADAPTER_FILE}. Pickled weights (.bin) are not read: save the adapter "
                    "once more with a current version of peft."
                )
            saved = load_peft_weights(str(peft_model_id), device="cpu", **where)
        wrong: list[str] = []
        # Adapters have the names of the model in memory. Rules for the files of old backbones would change these, but
        # may be what a backbone needs whose modules have new names: they are tried last.
        for rules in (_head_renamings(), None):
            options = kwargs if rules is None else {**kwargs, "load_config": LoadStateDictConfig(weight_mapping=rules)}
            try:
                info = super().load_adapter(peft_model_id, name, **options)
                wrong = unlanded(saved, get_peft_model_state_dict(self, adapter_name=name))
            except (KeyError, RuntimeError, ValueError) as error:
                wrong = [f"({error})"]
            if not wrong:
                return info
            if name in vars(self).get("peft_config", {}):
                # not self.delete_adapter, which asks for a version of peft that need not be there
                kind = self.peft_config.pop(name).peft_type.value.lower()
                delete_adapter(self, adapter_name=name, prefix=f"{kind}_")
                if not self.peft_config:
                    del self.peft_config
                    self._hf_peft_config_loaded = False
        raise ValueError(
            f"The adapter {peft_model_id or name} does not fit the {type(self.vlm).__name__} it is loaded onto: "
            f"{len(wrong)} of its {len(saved)} weights have no place there: {', '.join(wrong[:5])}. Load it onto the "
            "model that it was trained on."
        )

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
            slice_map: (B, L) int64 from [`SugarProcessor`]: 0 = none, k or -k = slice k.
            skip_logits: Return no logits. The loss comes from the positions that have a label, chunk by chunk, equal
                in value and gradient; without labels no logit is computed at all.
            **kwargs: Further inputs of the backbone (`image_grid_thw`, `num_items_in_batch`, ...).

        Returns:
            A [`SugarOutput`].
        """
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "pixel_values": pixel_values, **kwargs}
        # only what was given: to a backbone that calls its pictures otherwise, pixel_values=None says there are none
        inputs = {name: value for name, value in given.items() if value is not None}
        inputs["return_dict"] = True
        if not skip_logits:
            output, hidden = self._run_backbone({**inputs, "labels": labels})
            loss, logits = output.get("loss"), output.logits
        else:
            output, hidden, loss = self._without_logits(inputs, labels)
            logits = None
        if input_ids is not None:
            self._check_states(hidden, input_ids, "input_ids")
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
        with captured_states(self.vlm) as states:
            output = self.vlm(**inputs)
        return output, states[-1]

    def _without_logits(self, inputs: dict[str, Any], labels: Tensor | None) -> tuple[Any, Tensor, Tensor | None]:
        """The backbone's output, hidden states (B, L, H) and loss, without the logits of the whole batch."""
        if labels is not None and self._head_is_plain is None:
            self._head_is_plain = probe(self.vlm)
        output: Any
        if labels is not None and not self._head_is_plain:
            output, hidden = self._run_backbone({**inputs, "labels": labels})
            self._judge_head(hidden, output.get("logits"))
            return output, hidden, output.loss
        count = inputs.pop("num_items_in_batch", None)
        if self.base_model is not self.vlm:
            output = self.base_model(**inputs)
            hidden = output.last_hidden_state
        else:
            # what else is asked for comes at the end; sharded modules wait for it, too
            whole = any(inputs.get(key) for key in ("use_cache", "output_hidden_states", "output_attentions"))
            output = {}
            with captured_states(self.vlm, stop=not (whole or torch.distributed.is_initialized())) as states:
                output = self.vlm(**inputs)
            hidden = states[-1]
        if labels is None:
            return output, hidden, None
        self._check_states(hidden, labels, "labels")
        head, vocab_size = self.get_output_embeddings(), self.config.get_text_config().vocab_size
        loss = chunked_cross_entropy(hidden, labels, partial(head_logits, head), vocab_size, count, self.max_logits)
        return output, hidden, loss

    def _judge_head(self, hidden: Tensor, logits: Tensor | None) -> None:
        """Learn from a whole forward pass whether the logits are the LM head's output, and say so if they are not."""
        if self._head_is_plain is None:
            self._head_is_plain = same_logits(self.get_output_embeddings(), hidden, logits)
        if self._head_is_plain is False and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"{type(self.vlm).__name__} changes its logits after its LM head: the loss is computed by itself "
                "from the logits of the whole batch, which takes their memory.",
                stacklevel=5,
            )

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

    def _check_states(self, hidden: Tensor, beside: Tensor, name: str) -> None:
        """Refuse states that are not one for each token: places in the ids would point at others."""
        if hidden.shape[:2] == beside.shape:
            return
        given, found = tuple(beside.shape), tuple(hidden.shape[:2])
        raise BackboneError(
            self.vlm.config,
            f"for {name} of shape {given} it gives hidden states of shape {found}, which are not one for each token",
            f"If {name} does not come from the same call of SugarProcessor as input_ids, pass what belongs together.",
        )

    def _embed(self, hidden: Tensor, slice_map: Tensor) -> tuple[Tensor, Tensor]:
        self._check_states(hidden, slice_map, "slice_map")
        slice_map, config = slice_map.to(hidden.device), self.config
        pooled, mask = pool_slices(hidden, slice_map, config.image_pooling, config.text_pooling)
        embeds = pooled.new_zeros(*mask.shape, self.config.retrieval_dim)
        embeds[mask] = self.retrieval_head(pooled[mask]).to(
            embeds.device
        )  # the head would make a unit vector of an absent slice too
        return embeds, mask

    def generate(self, *args: Any, slice_map: Tensor | None = None, **kwargs: Any) -> Any:
        """Generate with the backbone, which knows best how. A `slice_map` is accepted and not needed."""
        return self.vlm.generate(*args, **kwargs)

    def save_pretrained(
        self, save_directory: str | os.PathLike, state_dict: dict[str, Tensor] | None = None, **kwargs: Any
    ) -> None:
        """Save the model, and the settings of sentence-transformers; see `PreTrainedModel.save_pretrained`.

        The files appear in the folder when all of them are written, so that a folder never holds half a model, or the
        configuration of one beside the weights of another. A model with adapters saves these and its configuration.
        """
        if self._auto_class is None:  # a checkpoint from the Hub may name its code, which is not saved with this class
            for key in {"auto_map", "custom_pipelines"} & vars(self.config).keys():
                delattr(self.config, key)
        if kwargs.get("distributed_checkpoint"):  # every process writes its part
            super().save_pretrained(save_directory, state_dict=state_dict, **kwargs)
            return
        if not kwargs.pop("is_main_process", True):
            return
        upload = kwargs.pop("push_to_hub", False)
        with staged(save_directory) as folder:
            if self._hf_peft_config_loaded:
                super().save_pretrained(folder, state_dict=state_dict, **kwargs)
            else:
                states = self.state_dict() if state_dict is None else state_dict
                head = {key: value for key, value in states.items() if key.startswith(HEAD_PREFIX)}
                own = {key.removeprefix(VLM_PREFIX): value for key, value in states.items() if key not in head}
                given = {} if state_dict is None else {"state_dict": own}
                save_backbone(self.vlm, folder, VLM_PREFIX, head, {**kwargs, **given})
            if self._auto_class is not None:
                custom_object_save(self, folder, config=self.config)
                save_code(folder, self.config)
            self.config.dtype = self.dtype
            self.config.architectures = [type(self).__name__]
            self.config.save_pretrained(folder)
            write_settings(folder)
            if upload:
                upload_files(folder, kwargs.get("repo_id", Path(save_directory).name), kwargs)

    def push_to_hub(self, repo_id: str, processor: ProcessorMixin | None = None, **kwargs: Any) -> str:
        """Upload model, processor, code and model card; see `sugar_hf.model.hub.push_to_hub` for the options.

        A model whose code comes from the Hub, where `sugar_hf` is not installed, writes no model card of ours. It then
        takes the options of `PreTrainedModel.push_to_hub`.

        Raises:
            ValueError: If the processor is missing, without which the model is of no use.
        """
        if processor is None:
            raise ValueError("processor is missing: model.push_to_hub(repo_id, processor=processor).")
        if self.upload is not None:
            return self.upload(processor, repo_id, **kwargs)
        super().push_to_hub(repo_id, **kwargs)
        return str(processor.push_to_hub(repo_id, **kwargs))

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

    def get_output_embeddings(self) -> Any:
        """Return the backbone's LM head."""
        return lm_head(self.vlm)

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the backbone's LM head."""
        self.vlm.set_output_embeddings(value)

    def get_decoder(self) -> nn.Module:
        """Return the backbone's language model."""
        return self.vlm.get_decoder()
