"""Fine-tune a vision-language model so that it retrieves as well as it generates.

Takes any image-text-to-text model (or a Sugar checkpoint, to train it on) and any of the data formats of
`sugar_hf.data`: LLaVA's JSON, MMC4, OBELICS, image-caption pairs, chat messages, queries with what answers them, alone
or mixed. The teachers'
embeddings of all slices are computed once and kept with the data set. The model and its processor are saved to
`--output_dir`.

A recipe is a YAML file of the options below; options on the command line win over it. The paper's recipe (LoRA on q
and v, r 128, alpha 256) on LLaVA-1.5, and on a GPU with less memory:

    sugar-hf train examples/recipes/llava15_7b.yaml
    sugar-hf train examples/recipes/llava15_7b.yaml --load_in_4bit --per_device_train_batch_size 4

The same without a recipe, on LLaVA's instruction data alone:

    sugar-hf train \
        --model llava-hf/llava-1.5-7b-hf --dtype bfloat16 --lora \
        --dataset llava_v1_5_mix665k.json --format llava --image_root images \
        --output_dir sugar-llava --bf16 --per_device_train_batch_size 16 --num_train_epochs 1 \
        --learning_rate 1e-4 --lr_scheduler_type cosine --warmup_steps 0.03 --max_length 2048 --truncation slice

With no download, all weights of the mini model that ships with the package, on the picturebook:

    sugar-hf train --dataset picturebook --output_dir sugar --use_cpu \
        --max_steps 300 --per_device_train_batch_size 24 --train_sampling_strategy sequential \
        --learning_rate 1.5e-4 --head_learning_rate 3e-3

Further options are those of `SugarTrainingArguments`; `--help` lists all. `--load_in_4bit` needs
pip install "sugar-hf[bnb]". Several GPUs: `torchrun --nproc_per_node 8 -m sugar_cli train ...`, and
examples/accelerate/README.md.
"""

import dataclasses
import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
import yaml
from datasets import Dataset, concatenate_datasets, interleave_datasets
from peft import get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import AutoConfig, BitsAndBytesConfig, HfArgumentParser, PreTrainedConfig, set_seed

from sugar_hf import picturebook
from sugar_hf.data import load_dataset_file, to_samples
from sugar_hf.data.containers import hub_hint
from sugar_hf.model import SugarConfig, SugarForConditionalGeneration, SugarProcessor, merge_adapter, push_to_hub
from sugar_hf.structure import EncoderTeacher, TripleTeacher
from sugar_hf.training import SugarTrainer, SugarTrainingArguments, sugar_lora_config
from sugar_hf.training.training_record import training_record

PICTUREBOOK = "picturebook"


@dataclass
class ScriptArguments:
    """What is trained, on what, and with which teachers."""

    dataset: str | None = field(
        default=None,
        metadata={
            "help": "Data file or folder, or name on the Hub; picturebook for the data set in the package; or a list "
            "(YAML or JSON) of data sets to mix, each with path and, if needed, format, split (on the Hub), "
            "image_root, on_error, drop_columns, validate_images, allow_outside_root, drop_broken_images, "
            "section_length, page_pixels, and size (rows taken at random) or weight (share of the mix)."
        },
    )
    model: str | None = field(
        default=None,
        metadata={"help": "Vision-language model or Sugar checkpoint; on the picturebook the mini VLM."},
    )
    dtype: str = field(default="float32", metadata={"help": "Data type of the weights, such as bfloat16."})
    attn_implementation: str | None = field(default=None, metadata={"help": "Such as sdpa or flash_attention_2."})
    load_in_4bit: bool = field(
        default=False, metadata={"help": "Keep the language model in 4 bit (NF4) under the adapters; needs --lora."}
    )
    retrieval_dim: int = field(default=256, metadata={"help": "Width of the embeddings of a fresh retrieval head."})
    system: str | None = field(
        default=None, metadata={"help": "System message of chats that have none, in training and ever after."}
    )
    chat_template: str | None = field(default=None, metadata={"help": "Jinja text in the place of the model's own."})
    image_processor: str | None = field(
        default=None, metadata={"help": "Settings of the image processor (YAML or JSON), such as {size: {...}}."}
    )
    format: str = field(
        default="auto", metadata={"help": "llava, mmc4, obelics, pairs, chat, documents, retrieval, or auto."}
    )
    image_root: str | None = field(default=None, metadata={"help": "Folder that image names are relative to."})
    on_error: str = field(default="raise", metadata={"help": "What a broken row does.", "choices": ["raise", "skip"]})
    drop_columns: list[str] | None = field(
        default=None, metadata={"help": "Columns of rows that are left alone, such as films that nothing uses."}
    )
    train_size: int | None = field(default=None, metadata={"help": "Train on this many rows only."})
    eval_dataset: str | None = field(default=None, metadata={"help": "Data to evaluate on, given as the dataset is."})
    eval_size: int = field(default=0, metadata={"help": "Without eval_dataset: hold out this many rows."})
    lora: bool = field(default=False, metadata={"help": "Train LoRA adapters and the head instead of all weights."})
    lora_r: int = field(default=128, metadata={"help": "Rank of the adapters."})
    lora_alpha: int = field(default=256, metadata={"help": "Scale of the adapters."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout in front of the adapters."})
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["q_proj", "v_proj"],
        metadata={"help": "Linear layers of the language model that get adapters."},
    )
    clip: str | None = field(default=None, metadata={"help": "CLIP teacher. The paper's, or a mini one."})
    dino: str | None = field(default=None, metadata={"help": "DINOv2 teacher. The paper's, or a mini one."})
    text: str | None = field(default=None, metadata={"help": "Sentence encoder. The paper's, or a mini one."})
    teacher_encoder: str | None = field(
        default=None,
        metadata={
            "help": "One model of sentence-transformers, or a Sugar checkpoint, as the teacher of all slices in the "
            "place of clip, dino and text; with --text it compares all but two texts."
        },
    )
    no_teacher: bool = field(
        default=False, metadata={"help": "Train on what pairs say alone, without labels of teachers."}
    )
    teacher_device: str = field(default="cuda" if torch.cuda.is_available() else "cpu")
    teacher_batch_size: int = field(default=64, metadata={"help": "Slices that a teacher embeds at once."})
    teacher_cache: str | None = field(
        default=None,
        metadata={"help": "Folder where the teachers' vectors are kept; one in output_dir when none is given."},
    )
    push_to: str | None = field(default=None, metadata={"help": "Repository on the Hub that the model is pushed to."})


@dataclass
class Source:
    """One data set of a mix; the options of reading are those of `load_dataset_file`."""

    path: str
    format: str = "auto"
    image_root: str | None = None
    on_error: str = "raise"
    validate_images: bool = True
    allow_outside_root: bool = False
    drop_broken_images: bool = False
    section_length: int = 4000
    page_pixels: int = 1_000_000
    size: int | None = None
    weight: float | None = None
    split: str = "train"
    drop_columns: list[str] | None = None

    def load(self, seed: int) -> Dataset:
        options = dataclasses.asdict(self)
        path, size = options.pop("path"), options.pop("size")
        del options["weight"]
        split, format = options.pop("split"), options.pop("format")
        if not Path(path).exists() and hub_hint(Path(path)):
            rows = load_from_hub(path, split, format, options)
        else:
            rows = load_dataset_file(path, format, **options)
        if size is None:
            return rows
        if size > len(rows):
            raise SystemExit(
                f"dataset {path}: size is {size}, but there are {len(rows)} rows. Leave size out for all."
            )
        return rows.shuffle(seed=seed).select(range(size))


def load_from_hub(name: str, split: str, format: Any, options: dict[str, Any]) -> Dataset:
    """A data set of the Hub in the sample schema; its rows may have any form that files have."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "data")
        datasets.load_dataset(name, split=split).save_to_disk(folder)
        rows = load_dataset_file(folder, format, **options)
    # a name that does not change from run to run, by which the teachers' vectors are found again
    named = [source.replace(str(folder), f"{name}/{split}") for source in rows["source"][:]]
    columns = rows.column_names
    return rows.remove_columns("source").add_column("source", named).select_columns(columns)


# ---- Options ----


def parse(command: list[str], program: str | None = None) -> tuple[ScriptArguments, SugarTrainingArguments]:
    """The options of a recipe, if the command starts with one, and of the command line, which win."""
    classes = (ScriptArguments, SugarTrainingArguments)
    description = (__doc__ or "").split("\n")[0]
    parser = HfArgumentParser(classes, prog=program, usage="%(prog)s [RECIPE.yaml] [options]", description=description)
    options: list[str] = []
    if command and not command[0].startswith("-"):
        recipe, *command = command
        options = recipe_options(recipe)
    script, arguments = parser.parse_args_into_dataclasses([*options, *command], look_for_args_file=False)
    if script.dataset is None:
        parser.error("--dataset is missing: name a data file, or picturebook")
    if script.teacher_encoder is not None and (script.clip is not None or script.dino is not None):
        parser.error("--teacher_encoder takes the place of --clip and --dino: leave these out")
    if script.load_in_4bit and not script.lora:
        parser.error("--load_in_4bit without --lora: weights in 4 bit cannot be trained, adapters on them can")
    return script, arguments


def recipe_options(file: str) -> list[str]:
    """A recipe as it would be written on the command line, so that the same checks apply."""
    recipe = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    if not isinstance(recipe, dict):
        raise SystemExit(f"{file}: a recipe has lines of the form `option: value`")
    known = {f.name: f for cls in (ScriptArguments, SugarTrainingArguments) for f in dataclasses.fields(cls) if f.init}
    if unknown := [str(key) for key in recipe if key not in known]:
        raise SystemExit(f"{file}: no such option: {', '.join(unknown)}. --help lists all")
    options: list[str] = []
    for key, value in recipe.items():
        if value is None:
            if known[key].default is not None:
                raise SystemExit(f"{file}: {key} has no value")
        elif isinstance(value, list) and not any(isinstance(item, dict | list) for item in value):
            options += [f"--{key}", *map(str, value)]
        elif isinstance(value, dict | list):
            options.append(f"--{key}={json.dumps(value)}")
        else:
            options.append(f"--{key}={str(value).lower() if isinstance(value, bool) else value}")
    return options


# ---- Data ----


def sources(value: str, script: ScriptArguments) -> list[Source]:
    """The data sets that a dataset option names; what they leave open is taken from the script's other options."""
    items: Any = value
    if value.lstrip().startswith("["):
        items = yaml.safe_load(value)
    names = ("format", "image_root", "on_error", "drop_columns")
    defaults = {name: vars(script)[name] for name in names}
    if isinstance(items, str):
        return [Source(path=items, **defaults)]
    known = [f.name for f in dataclasses.fields(Source)]
    found = []
    for number, item in enumerate(items, start=1):
        if not isinstance(item, dict) or "path" not in item:
            raise SystemExit(f"dataset {number}: give `path: ...`, a data file or folder")
        name = f"dataset {number} ({item['path']})"
        if unknown := [str(key) for key in item if key not in known]:
            raise SystemExit(f"{name}: no such key: {', '.join(unknown)}. There are {', '.join(known)}")
        source = Source(**{**defaults, **item})
        if source.size is not None and source.size < 1:
            raise SystemExit(f"{name}: size is a number of rows, 1 or more, not {source.size}")
        if source.weight is not None and not source.weight > 0:
            raise SystemExit(f"{name}: weight is a positive number, not {source.weight}")
        found.append(source)
    if not found:
        raise SystemExit("dataset: the list is empty")
    if 0 < sum(source.weight is not None for source in found) < len(found):
        raise SystemExit("dataset: either all data sets of a mix have a weight, or none has")
    return found


def mix(parts: list[Source], seed: int) -> Dataset:
    """All rows of all data sets; with weights, as many as keep the shares until the first of them is used up."""
    loaded = [part.load(seed) for part in parts]
    weights = [part.weight for part in parts if part.weight is not None]
    if len(parts) == 1 or not weights:
        return concatenate_datasets(loaded)
    shares = [weight / sum(weights) for weight in weights]
    return interleave_datasets(loaded, probabilities=shares, seed=seed, stopping_strategy="first_exhausted")


def load_data(script: ScriptArguments, seed: int) -> tuple[Dataset, Dataset | None]:
    """Rows to train on, and rows to evaluate on or None."""
    if script.dataset == PICTUREBOOK:
        train = picturebook.load("train", size=script.train_size)
        return train, picturebook.load("validation", size=script.eval_size) if script.eval_size else None
    train, evaluation = mix(sources(script.dataset or "", script), seed), None
    if script.eval_dataset is not None:
        evaluation = mix(sources(script.eval_dataset, script), seed)
    elif script.eval_size:
        parts = train.train_test_split(test_size=script.eval_size, seed=seed)
        train, evaluation = parts["train"], parts["test"]
    if script.train_size is not None:
        train = train.select(range(min(script.train_size, len(train))))
    return train, evaluation


def load_teacher(script: ScriptArguments) -> TripleTeacher | EncoderTeacher:
    """The named teachers; the others are the paper's, or the mini ones of the package on the picturebook."""
    if script.teacher_encoder is not None:
        return EncoderTeacher.from_pretrained(
            script.teacher_encoder,
            text=script.text,
            device=script.teacher_device,
            batch_size=script.teacher_batch_size,
        )
    names = {"clip": script.clip, "dino": script.dino, "text": script.text}
    if script.dataset == PICTUREBOOK:
        names = {role: names[role] or mini for role, mini in picturebook.mini_teachers().items()}
    named: dict[str, Any] = {role: name for role, name in names.items() if name is not None}
    return TripleTeacher.from_pretrained(**named, device=script.teacher_device, batch_size=script.teacher_batch_size)


def load_rows(
    script: ScriptArguments, arguments: SugarTrainingArguments, processor: SugarProcessor
) -> tuple[Dataset, Dataset | None]:
    """The data with the teachers' vectors, which are taken from the cache if they are there."""
    train, evaluation = load_data(script, arguments.seed)
    if not arguments.alpha or script.no_teacher:
        return train, evaluation
    teacher, split_sentences = load_teacher(script), arguments.split_sentences

    def slices(row: dict[str, Any]) -> list[Any]:
        return [part for sample in to_samples(row) for part in processor.slices(sample, split_sentences)]

    # A run that was killed while the teachers were at work resumes.
    folder = script.teacher_cache or Path(arguments.output_dir, "_teacher_cache")
    train = teacher.cache(train, slices, cache_dir=folder)
    return train, teacher.cache(evaluation, slices, cache_dir=folder) if evaluation is not None else None


# ---- Model ----


def four_bit(vlm_config: PreTrainedConfig, dtype: str) -> BitsAndBytesConfig:
    """NF4 for the linear layers of the language model; all else, the vision tower among it, keeps its precision."""
    with torch.device("meta"):
        model = SugarForConditionalGeneration(SugarConfig(vlm_config=vlm_config))
    decoder = model.get_decoder()

    def beside(name: str, module: nn.Module) -> list[str]:
        if module is decoder:
            return []
        if not any(part is decoder for part in module.modules()):
            return [name]
        return [found for child, part in module.named_children() for found in beside(f"{name}.{child}", part)]

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=[found for child, part in model.named_children() for found in beside(child, part)],
    )


def load_model(script: ScriptArguments) -> tuple[SugarForConditionalGeneration, SugarProcessor]:
    """The Sugar model of a checkpoint, or a fresh retrieval head on a vision-language model."""
    name = script.model
    if name is None:
        if script.dataset != PICTUREBOOK:
            raise SystemExit("--model is missing: name a vision-language model, such as llava-hf/llava-1.5-7b-hf")
        name = picturebook.checkpoint("mini-vlm")
    config = AutoConfig.from_pretrained(name)
    is_sugar = isinstance(config, SugarConfig)
    options: dict[str, Any] = {"dtype": script.dtype}
    if script.attn_implementation is not None:
        options["attn_implementation"] = script.attn_implementation
    if script.load_in_4bit:
        options["quantization_config"] = four_bit(config.vlm_config if is_sugar else config, script.dtype)
    if is_sugar:
        model = SugarForConditionalGeneration.from_pretrained(name, **options)
    else:
        model = SugarForConditionalGeneration.from_backbone(name, retrieval_dim=script.retrieval_dim, **options)
    return model, load_processor(script, name)


def load_processor(script: ScriptArguments, name: str) -> SugarProcessor:
    """The model's processor with the template, system message and image settings of the script; they are saved."""
    processor = SugarProcessor.from_pretrained(name)
    if script.chat_template is not None:
        processor.chat_template = script.chat_template
    if script.system is not None:
        if processor.chat_template is None:
            raise SystemExit(f"{name} has no chat template to put the system message into: give --chat_template too")
        processor.chat_template = with_system(processor.chat_template, script.system)
    if script.image_processor is not None:
        settings, before = yaml.safe_load(script.image_processor), processor.image_processor.to_dict()
        if not isinstance(settings, dict) or not set(settings) <= set(before):
            raise SystemExit(f"image_processor: {settings} are no settings of this one, which has {', '.join(before)}")
        image_processor = type(processor.image_processor).from_dict({**before, **settings})
        processor.backbone_processor.image_processor = image_processor
    return processor


def with_system(template: str, system: str) -> str:
    """The chat template, with a system message in front of chats that have none."""
    text = json.dumps(system)
    parts = f"[{{'type': 'text', 'text': {text}}}]"
    return (
        "{%- if messages[0]['role'] != 'system' -%}{%- set messages = [{'role': 'system', 'content': "
        f"{text} if messages[0]['content'] is string else {parts}"
        "}] + messages -%}{%- endif -%}" + template
    )


def main(command: list[str] | None = None, program: str | None = None) -> None:
    """Train.

    Args:
        command: What stands on the command line; this process's when `None`.
        program: What to call the program in its help.
    """
    script, arguments = parse(sys.argv[1:] if command is None else command, program)
    set_seed(arguments.seed)

    # Load
    model, processor = load_model(script)
    with arguments.main_process_first(local=False, desc="data and teachers"):
        train, evaluation = load_rows(script, arguments, processor)

    # Build
    trained = model
    if script.load_in_4bit:  # gradient checkpointing is switched on by the trainer
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if script.lora:
        lora = sugar_lora_config(
            model,
            r=script.lora_r,
            lora_alpha=script.lora_alpha,
            lora_dropout=script.lora_dropout,
            target_modules=script.lora_target_modules,
        )
        trained = get_peft_model(model, lora)
        trained.print_trainable_parameters()
    trainer = SugarTrainer(
        trained, arguments, train_dataset=train, eval_dataset=evaluation, processing_class=processor
    )

    # Train
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    if evaluation is not None:
        trainer.log_metrics("eval", trainer.evaluate())

    # Save, with adapters merged in: the folder loads with AutoModel.from_pretrained and the pipelines
    folder = Path(arguments.output_dir)
    adapter = folder / "adapter"
    if script.lora:
        trainer.save_model(str(adapter), _internal_call=True)  # what is pushed is the merged model, below
    plugin = trainer.accelerator.state.deepspeed_plugin
    if trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3):  # no process has the whole model
        if script.lora:
            print(f"saved the adapter to {adapter}; examples/merge_adapter.py merges it into the model")
        else:
            trainer.save_model(str(folder))
        return
    if not trainer.is_world_process_zero():
        return
    record = training_record(trainer)
    if script.lora:
        model = merge_adapter(trained)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    print(f"saved to {folder}")
    for repository in filter(None, {script.push_to, trainer.hub_model_id}):
        access = {"token": arguments.hub_token, "private": arguments.hub_private_repo}
        push_to_hub(model, processor, repository, training=record, **access)
