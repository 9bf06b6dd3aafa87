"""What every recipe shares: endless drawn samples behind an index, and a resumable `Trainer` run."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import CLIPImageProcessorPil, PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from sugar_hf.picturebook.scenes import SCENE_PIXELS

MEAN = STD = 0.5


Draw = Callable[[random.Random], Any]


class Drawn(Dataset):
    """Sample i is drawn from a generator seeded with i: endless data, the same in every run and after a resume.

    The kinds of samples take turns batch by batch, so that short ones are not padded to the length of long ones.
    """

    def __init__(self, kinds: Sequence[Draw], batches: int, batch_size: int, seed: int) -> None:
        self.kinds, self.batches, self.batch_size, self.seed = kinds, batches, batch_size, seed

    def __len__(self) -> int:
        return self.batches * self.batch_size

    def __getitem__(self, index: int) -> Any:
        draw = self.kinds[index // self.batch_size % len(self.kinds)]
        return draw(random.Random(f"{self.seed}/{index}"))


def image_processor() -> CLIPImageProcessorPil:
    """The processor of the mini models' pictures; `pixel_values` does the same to ready-made arrays, faster."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": SCENE_PIXELS},
        crop_size={"height": SCENE_PIXELS, "width": SCENE_PIXELS},
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
    )


def pixel_values(arrays: list[np.ndarray]) -> torch.Tensor:
    """uint8 pictures (96, 96, 3) to the model's float32 input, shape (images, 3, 96, 96)."""
    pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float()
    return (pixels / 255 - MEAN) / STD


def train(
    model: nn.Module,
    kinds: Sequence[Draw],
    collate: Callable[[list[Any]], dict[str, Any]],
    folder: Path,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    optimizer: Callable[[], torch.optim.Optimizer] | None = None,
    seed: int = 0,
) -> None:
    """Train with `transformers.Trainer`, going on from the newest checkpoint in `folder` if there is one.

    The optimizer is AdamW if none is given; one that is given has its own learning rates, which follow the schedule.
    """
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(200, steps // 10),
        weight_decay=0.02,
        adam_beta2=0.98,
        max_grad_norm=1.0,
        logging_steps=50,
        save_steps=250,
        train_sampling_strategy="sequential",
        save_total_limit=1,
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        dataloader_num_workers=1,  # draws the next batch meanwhile
        seed=seed,
    )
    samples = Drawn(kinds, steps, batch_size, seed)
    checkpoint = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    if checkpoint and isinstance(model, PreTrainedModel):
        # Trainer reads the file by the module's names, but LLaVA's weights are saved under others: it would warn and
        # go on from random ones
        model.load_state_dict(type(model).from_pretrained(checkpoint).state_dict())
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=samples,
        data_collator=collate,
        optimizers=(optimizer() if optimizer else None, None),
    )
    trainer.train(resume_from_checkpoint=checkpoint)


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon (`torch.optim.Muon`) for the matrices of a language model's layers, AdamW for all else that is trained.

    The learning rates of the two are on one scale (`match_rms_adamw`).
    """

    def __init__(self, model: nn.Module, learning_rate: float, other_learning_rate: float) -> None:
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        matrices = [w for name, w in trained.items() if w.ndim == 2 and "embed" not in name and "lm_head" not in name]
        chosen = {id(weight) for weight in matrices}
        others = [weight for weight in trained.values() if id(weight) not in chosen]
        self.both = (
            torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=other_learning_rate, betas=(0.9, 0.98), weight_decay=0.02),
        )
        super().__init__([group for each in self.both for group in each.param_groups], {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for each in self.both:
            each.step()

    def state_dict(self) -> dict[str, Any]:
        return {"both": [each.state_dict() for each in self.both]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for each, state in zip(self.both, state_dict["both"], strict=True):
            each.load_state_dict(state)
        self.param_groups = [group for each in self.both for group in each.param_groups]


def save_half(model: PreTrainedModel, folder: Path) -> None:
    """Save the weights in float16, half the size, and leave float32 in the config: loading computes in float32."""
    model.eval().half().save_pretrained(folder)
    model.float()
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"float16"', '"float32"'))
