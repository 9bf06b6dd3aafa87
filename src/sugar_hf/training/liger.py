"""Liger's kernels for the backbone: `Trainer` asks for those of a model of type `sugar`, which there are none of."""

from __future__ import annotations

import warnings
from typing import Any

from transformers.integrations.liger import apply_liger_kernel

from sugar_hf.model import SugarForConditionalGeneration


def liger_for_backbone(model: SugarForConditionalGeneration, kernel_config: dict[str, Any] | None) -> None:
    """Patches the backbone with Liger's kernels, as `Trainer` does with a model of its own type.

    Args:
        model: The Sugar model.
        kernel_config: `liger_kernel_config` of the training arguments.

    Warns:
        UserWarning: Liger has no kernels for the backbone's type; it would only log so.
    """
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    model_type = model.vlm.config.model_type
    if model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        warnings.warn(
            f"use_liger_kernel=True changes nothing: Liger has no kernels for a backbone of type {model_type}.",
            stacklevel=3,
        )
        return
    apply_liger_kernel(model.vlm, kernel_config)
