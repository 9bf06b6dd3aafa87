"""One of several processes that shard tiny models with FSDP2 as `accelerate launch` has set it up in the environment.

Prints, in the first process, for each family: its name, the loss in one process and sharded, the largest difference of
a gradient, and the names of the modules that are groups of their own.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import distributed

sys.path.insert(0, str(Path(__file__).parents[1]))
from builders import BUILDERS, picture

from sugar_hf.model import SugarForConditionalGeneration, SugarProcessor

SAMPLES = [["A cat on a mat.", picture(1), "It sleeps."], [picture(2), "Two dogs."]]


def main() -> None:
    distributed.init_process_group("gloo")
    first = distributed.get_rank() == 0
    for family, build in BUILDERS.items():
        vlm, processor = build()
        torch.manual_seed(0)
        model = SugarForConditionalGeneration.from_backbone(vlm, retrieval_dim=16)
        inputs = SugarProcessor(processor)(SAMPLES, return_labels=True)

        def loss_of(model, inputs=inputs):
            output = model(**inputs)
            return output.loss + (output.retrieval_embeds * torch.arange(16)).sum()

        alone = loss_of(model)
        alone.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()

        # Accelerate itself does not take FSDP onto a CPU; the function that shards does.
        plugin = FullyShardedDataParallelPlugin()
        accelerator = SimpleNamespace(
            state=SimpleNamespace(fsdp_plugin=plugin),
            mixed_precision="no",
            is_main_process=first,
            device=torch.device("cpu"),
            parallelism_config=None,
        )
        model = fsdp2_prepare_model(accelerator, model)
        sharded = loss_of(model)
        sharded.backward()
        difference = max(
            (p.grad.full_tensor() - gradients[name]).abs().max().item()
            for name, p in model.named_parameters()
            if name in gradients
        )
        groups = [name for name, module in model.named_modules() if type(module).__name__.startswith("FSDP")]
        if first:
            result = {"alone": alone.item(), "sharded": sharded.item(), "difference": difference, "groups": groups}
            print(json.dumps({"family": family, "version": plugin.fsdp_version, **result}), flush=True)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
