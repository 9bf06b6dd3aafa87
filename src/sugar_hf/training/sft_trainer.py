"""The structure loss on TRL's supervised fine-tuning trainer. Importing this module needs TRL."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..model import SugarOutput
from .arguments import StructureArguments
from .trainer import SugarTrainer

try:
    from trl import SFTConfig, SFTTrainer
except ImportError as error:
    raise ImportError("SugarSFTTrainer and SugarSFTConfig need TRL: pip install 'sugar-hf[trl]'") from error


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
        self._choose_direction()
        super().__post_init__()
        self._check()
        values: Any = self
        # rows without a column of images, such as pairs, would be tokenised beforehand
        values.dataset_kwargs = {"skip_prepare_dataset": True, **(values.dataset_kwargs or {})}
        for name, only in (("loss_type", "nll"), ("packing", False), ("padding_free", False)):
            if vars(self)[name] != only:
                raise ValueError(
                    f"{name}={vars(self)[name]!r} is not supported with the structure loss: use {only!r}."
                )


class SugarSFTTrainer(SugarTrainer, SFTTrainer):
    """[`trl.SFTTrainer`] with the structure loss: see [`SugarTrainer`] for its arguments.

    Takes `peft_config` and the other arguments of `SFTTrainer` by name. Labels are those of [`SugarCollator`]: the
    assistant's text, or all text of a document without turns. The model's own forward pass is used, which gives the
    embeddings, instead of TRL's fused LM head.
    """

    _name = "Sugar"
    _tag_names = ["trl", "sft", "sugar"]  # noqa: RUF012  (as the base has it)
    _paper = {  # noqa: RUF012
        "title": "Unified Generative and Discriminative Training for Multi-modal Large Language Models",
        "id": "2411.00304",
    }
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
        """Compute the loss of [`SugarTrainer`], with TRL's `mean_token_accuracy` in the log."""
        outputs: Any
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        labels = inputs["labels"][:, 1:]
        counted = labels != -100
        right = (outputs.logits[:, :-1].argmax(dim=-1) == labels) & counted
        log = self.guard.log if model.training else self._eval_means.add
        log({"mean_token_accuracy": right.sum() / counted.sum().clamp(min=1)})
        return (loss, outputs) if return_outputs else loss
