"""The structure loss on TRL's supervised fine-tuning trainer. Importing this module needs TRL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sugar_hf.model import SugarOutput

from .arguments import StructureArguments, settle_direction
from .trainer import StructureLossMixin

try:
    from trl import SFTConfig, SFTTrainer
except ImportError as error:
    raise ImportError("SugarSFTTrainer and SugarSFTConfig need TRL: pip install 'sugar-hf[trl]'") from error

TAGS = ["trl", "sft", "sugar"]
PAPER = {
    "title": "Unified Generative and Discriminative Training for Multi-modal Large Language Models",
    "id": "2411.00304",
}


@dataclass
class SugarSFTConfig(StructureArguments, SFTConfig):
    """[`trl.SFTConfig`] with the fields of [`StructureArguments`].

    > [!NOTE]
    > These parameters have default values different from [`~trl.SFTConfig`]:
    > - `max_length`: Defaults to `None` instead of `1024`, since cutting at a token breaks images.
    > - `remove_unused_columns`: Defaults to `False` instead of `True`, since the collator reads raw samples.
    > - `logging_nan_inf_filter`: Defaults to `False` instead of `True`, since `nonfinite_loss` handles such losses.
    """

    def __post_init__(self) -> None:
        settle_direction(self)
        super().__post_init__()
        self._check_structure_arguments()
        for name, only in (("loss_type", "nll"), ("packing", False), ("padding_free", False)):
            if getattr(self, name) != only:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is not supported with the structure loss: use {only!r}."
                )
        if self.label_smoothing_factor:
            raise ValueError(
                "label_smoothing_factor is not supported: the loss is the backbone's own, without smoothing."
            )


class SugarSFTTrainer(StructureLossMixin, SFTTrainer):
    """[`trl.SFTTrainer`] with the structure loss: see [`StructureLossMixin`] for its arguments.

    Takes `peft_config` and the other arguments of `SFTTrainer` by name. Labels are those of [`SugarCollator`]: the
    assistant's text, or all text of a document without turns. The model's own forward pass is used, which gives the
    embeddings, instead of TRL's fused LM head.
    """

    _name = "Sugar"
    _tag_names = TAGS
    _paper = PAPER
    keeps_logits = True  # for `mean_token_accuracy`

    def __init__(self, model: Any = None, args: SugarSFTConfig | None = None, *rest: Any, **kwargs: Any):
        super().__init__(model, SugarSFTConfig() if args is None else args, *rest, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, SugarOutput]:
        """The loss of [`StructureLossMixin`], with TRL's `mean_token_accuracy` in the log."""
        outputs: Any
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        labels = inputs["labels"][:, 1:]
        counted = labels != -100
        right = (outputs.logits[:, :-1].argmax(dim=-1) == labels) & counted
        accuracy = right.sum() / counted.sum().clamp(min=1)
        if model.training:
            self._train_means.add({"mean_token_accuracy": accuracy})
        else:
            self._eval_means.add({"mean_token_accuracy": accuracy})
        return (loss, outputs) if return_outputs else loss
