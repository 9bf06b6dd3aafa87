"""Fine-tune a vision-language model so that it retrieves as well as it generates.

Takes any image-text-to-text model (or a Sugar checkpoint, to train it on) and any of the data formats of
`sugar_hf.data`: LLaVA's JSON, MMC4, OBELICS, image-caption pairs, chat messages. The teachers' embeddings of all
slices are computed once and kept with the data set. The model and its processor are saved to `--output_dir`.

The paper's recipe (LoRA on q and v, r 128, alpha 256) on LLaVA's instruction data:

    python examples/train_sugar.py \
        --model llava-hf/llava-1.5-7b-hf --dtype bfloat16 --lora \
        --dataset llava_v1_5_mix665k.json --format llava --image_root images \
        --output_dir sugar-llava --bf16 --per_device_train_batch_size 16 --num_train_epochs 1 \
        --learning_rate 1e-4 --lr_scheduler_type cosine --warmup_steps 0.03 --max_length 2048 --truncation slice

With no download, all weights of the mini model that ships with the package, on the picturebook:

    python examples/train_sugar.py --dataset picturebook --output_dir sugar --use_cpu \
        --max_steps 300 --per_device_train_batch_size 24 --train_sampling_strategy sequential \
        --alpha 10 --learning_rate 1.5e-4 --head_learning_rate 3e-3

Further options are those of `SugarTrainingArguments`; `--help` lists all. Needs: pip install sugar-hf
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import AutoConfig, HfArgumentParser, set_seed

from sugar_hf import picturebook
from sugar_hf.data import load_dataset_file, to_sample
from sugar_hf.model import SugarConfig, SugarForConditionalGeneration, SugarProcessor, push_to_hub
from sugar_hf.structure import TripleTeacher
from sugar_hf.training import SugarTrainer, SugarTrainingArguments, sugar_lora_config

PICTUREBOOK = "picturebook"


@dataclass
class ScriptArguments:
    """What is trained, on what, and with which teachers."""

    dataset: str = field(metadata={"help": "Data file or folder, or picturebook for the data set in the package."})
    model: str | None = field(
        default=None,
        metadata={"help": "Vision-language model or Sugar checkpoint; on the picturebook the mini VLM."},
    )
    dtype: str = field(default="float32", metadata={"help": "Data type of the weights, such as bfloat16."})
    retrieval_dim: int = field(default=256, metadata={"help": "Width of the embeddings of a fresh retrieval head."})
    format: str = field(default="auto", metadata={"help": "llava, mmc4, obelics, pairs, chat, or auto."})
    image_root: str | None = field(default=None, metadata={"help": "Folder that image names are relative to."})
    on_error: str = field(default="raise", metadata={"help": "What a broken row does.", "choices": ["raise", "skip"]})
    train_size: int | None = field(default=None, metadata={"help": "Train on this many rows only."})
    eval_dataset: str | None = field(default=None, metadata={"help": "Data to evaluate on, in the same format."})
    eval_size: int = field(default=0, metadata={"help": "Without eval_dataset: hold out this many rows."})
    lora: bool = field(default=False, metadata={"help": "Train LoRA adapters and the head instead of all weights."})
    lora_r: int = field(default=128, metadata={"help": "Rank of the adapters."})
    lora_alpha: int = field(default=256, metadata={"help": "Scale of the adapters."})
    clip: str | None = field(default=None, metadata={"help": "CLIP teacher. The paper's, or a mini one."})
    dino: str | None = field(default=None, metadata={"help": "DINOv2 teacher. The paper's, or a mini one."})
    text: str | None = field(default=None, metadata={"help": "Sentence encoder. The paper's, or a mini one."})
    teacher_device: str = field(default="cuda" if torch.cuda.is_available() else "cpu")
    teacher_batch_size: int = field(default=64, metadata={"help": "Slices that a teacher embeds at once."})
    push_to: str | None = field(default=None, metadata={"help": "Repository on the Hub that the model is pushed to."})


def load_model(script: ScriptArguments) -> tuple[SugarForConditionalGeneration, SugarProcessor]:
    """The Sugar model of a checkpoint, or a fresh retrieval head on a vision-language model."""
    name = script.model
    if name is None:
        if script.dataset != PICTUREBOOK:
            raise SystemExit("--model is missing: name a vision-language model, such as llava-hf/llava-1.5-7b-hf")
        name = picturebook.checkpoint("mini-vlm")
    if isinstance(AutoConfig.from_pretrained(name), SugarConfig):
        model = SugarForConditionalGeneration.from_pretrained(name, dtype=script.dtype)
    else:
        model = SugarForConditionalGeneration.from_backbone(
            name, dtype=script.dtype, retrieval_dim=script.retrieval_dim
        )
    return model, SugarProcessor.from_pretrained(name)


def load_data(script: ScriptArguments, seed: int) -> tuple[Dataset, Dataset | None]:
    """Rows to train on, and rows to evaluate on or None."""
    if script.dataset == PICTUREBOOK:
        train = picturebook.load("train", size=script.train_size)
        return train, picturebook.load("validation", size=script.eval_size) if script.eval_size else None
    options: dict[str, Any] = {"image_root": script.image_root, "on_error": script.on_error}
    train, evaluation = load_dataset_file(script.dataset, script.format, **options), None
    if script.eval_dataset is not None:
        evaluation = load_dataset_file(script.eval_dataset, script.format, **options)
    elif script.eval_size:
        parts = train.train_test_split(test_size=script.eval_size, seed=seed)
        train, evaluation = parts["train"], parts["test"]
    if script.train_size is not None:
        train = train.select(range(min(script.train_size, len(train))))
    return train, evaluation


def load_teacher(script: ScriptArguments) -> TripleTeacher:
    """The named teachers; the others are the paper's, or the mini ones of the package on the picturebook."""
    names = {"clip": script.clip, "dino": script.dino, "text": script.text}
    if script.dataset == PICTUREBOOK:
        minis = {"clip": "mini-clip", "dino": "mini-dino", "text": "mini-bert"}
        names = {role: name or picturebook.checkpoint(minis[role]) for role, name in names.items()}
    named = {role: name for role, name in names.items() if name is not None}
    return TripleTeacher.from_pretrained(**named, device=script.teacher_device, batch_size=script.teacher_batch_size)


def main(command: list[str] | None = None) -> None:
    parser = HfArgumentParser((ScriptArguments, SugarTrainingArguments), description=__doc__.split("\n")[0])
    script, arguments = parser.parse_args_into_dataclasses(command)
    set_seed(arguments.seed)

    # Load
    model, processor = load_model(script)
    train, evaluation = load_data(script, arguments.seed)
    if arguments.alpha:
        teacher, split_sentences = load_teacher(script), arguments.split_sentences

        def slices(row: dict[str, Any]) -> list[Any]:
            return processor.slices(to_sample(row), split_sentences)

        # A run that was killed while the teachers were at work goes on where it was.
        folder = Path(arguments.output_dir, "_teacher_cache")
        train = teacher.cache(train, slices, cache_dir=folder)
        evaluation = teacher.cache(evaluation, slices, cache_dir=folder) if evaluation is not None else None
        del teacher  # its memory is free for training

    # Build
    trained = model
    if script.lora:
        trained = get_peft_model(model, sugar_lora_config(model, r=script.lora_r, lora_alpha=script.lora_alpha))
        trained.print_trainable_parameters()
    trainer = SugarTrainer(
        trained, arguments, train_dataset=train, eval_dataset=evaluation, processing_class=processor
    )

    # Train
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    if evaluation is not None:
        trainer.log_metrics("eval", trainer.evaluate())

    # Save, with adapters merged in: the folder loads with AutoModel.from_pretrained and the pipelines
    if script.lora:
        trainer.save_model(f"{arguments.output_dir}/adapter")
        model = trained.merge_and_unload()
    model.save_pretrained(arguments.output_dir)
    processor.save_pretrained(arguments.output_dir)
    print(f"saved to {arguments.output_dir}")
    if script.push_to is not None:
        push_to_hub(model, processor, script.push_to)


if __name__ == "__main__":
    main()
