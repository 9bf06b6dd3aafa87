"""A run that was cut off goes on as if it had not been."""

import pytest
import torch
from training_tools import logged, make_trainer


@pytest.mark.parametrize(("workers", "steps"), [(0, 1), (1, 2)])
def test_resumed_run_has_the_losses_of_the_uninterrupted_one(tmp_path, workers, steps):
    """Bit-equal, with random slice ends, shuffling, an epoch's border in between, a head warm-up and a schedule."""
    options = {
        "max_steps": 8,
        "save_strategy": "steps",
        "save_steps": 3,
        "per_device_train_batch_size": 2 // steps,
        "gradient_accumulation_steps": steps,
        "positions_per_sample": 2,
        "head_learning_rate": 5e-3,
        "head_warmup_steps": 4,
        "alpha_warmup_ratio": 0.7,
        "dataloader_num_workers": workers,
        "label_statistics_steps": 2,
    }
    whole = make_trainer(tmp_path, **options)
    whole.train()
    # another seed of the model: its weights must come from the checkpoint
    rest = make_trainer(tmp_path, seed=1, **options)
    rest.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for name in ("loss", "loss_lm", "loss_structure", "grad_norm", "label_spearman"):
        assert len(logged(whole, name)) >= 4
        assert logged(rest, name) == logged(whole, name)
    for ours, theirs in zip(rest.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
