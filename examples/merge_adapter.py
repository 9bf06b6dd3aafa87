"""Merge an adapter into the model that it was trained on, and save the whole as one Sugar model.

    python examples/merge_adapter.py llava-hf/llava-1.5-7b-hf runs/llava15_7b/adapter --output sugar

For adapters that the training script could not merge itself, because the model was spread over several GPUs.
"""

import argparse

from peft import PeftModel
from transformers import AutoConfig

from sugar_hf.model import SugarConfig, SugarForConditionalGeneration, SugarProcessor, merge_adapter
from sugar_hf.model.configuration_sugar import TEXT_POOLING


def main(command: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the model that was trained: a vision-language model or a Sugar checkpoint")
    parser.add_argument("adapter", help="folder of the adapter, with the processor beside it")
    parser.add_argument("--output", required=True, help="folder for the merged model")
    parser.add_argument("--dtype", default="bfloat16", help="data type of the merged weights")
    parser.add_argument("--retrieval_dim", type=int, default=256, help="as in training; of no use for a checkpoint")
    parser.add_argument("--image_pooling", default="mean", help="as in training; of no use for a checkpoint")
    parser.add_argument("--text_pooling", default=TEXT_POOLING, help="as in training; of no use for a checkpoint")
    options = parser.parse_args(command)

    if isinstance(AutoConfig.from_pretrained(options.model), SugarConfig):
        model = SugarForConditionalGeneration.from_pretrained(options.model, dtype=options.dtype)
    else:  # the fresh head is replaced by the adapter's
        model = SugarForConditionalGeneration.from_backbone(
            options.model,
            dtype=options.dtype,
            retrieval_dim=options.retrieval_dim,
            image_pooling=options.image_pooling,
            text_pooling=options.text_pooling,
        )
    merge_adapter(PeftModel.from_pretrained(model, options.adapter)).save_pretrained(options.output)
    SugarProcessor.from_pretrained(options.adapter).save_pretrained(options.output)
    print(f"saved to {options.output}")


if __name__ == "__main__":
    main()
