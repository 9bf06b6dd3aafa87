"""A tiny data set, a tiny Sugar model and teacher vectors made by hand, for the tests of training."""

import io

import numpy as np
import torch
from builders import build_tiny_llava, picture
from datasets import Dataset, Features

from sugar_hf.data import DOCUMENT_ROLE, FEATURES, PAIR_FEATURES, image_part, text_part, to_samples
from sugar_hf.model import SugarForConditionalGeneration, SugarProcessor
from sugar_hf.training import SugarTrainer, SugarTrainingArguments

WORDS = ["cat", "dog", "mat", "ball", "apple", "house", "sun", "mountain", "bird", "lake"]


def png(seed: int) -> dict:
    buffer = io.BytesIO()
    picture(seed).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def sentence(seed: int) -> str:
    return "A {} and a {}.".format(*np.random.default_rng(seed).choice(WORDS, 2))


def document(number: int, parts: str) -> dict:
    """A document row; `parts` has a `t` for each text and an `i` for each image."""
    content = [text_part(sentence(10 * number + k)) if p == "t" else image_part() for k, p in enumerate(parts)]
    return {
        "id": f"document-{number}",
        "source": "tests",
        "messages": [{"role": DOCUMENT_ROLE, "content": content}],
        "images": [png(10 * number + k) for k, p in enumerate(parts) if p == "i"],
    }


def chat(number: int, answer: str = "Two green apples.") -> dict:
    return {
        "id": f"chat-{number}",
        "source": "tests",
        "messages": [
            {"role": "system", "content": [text_part("Be brief.")]},
            {"role": "user", "content": [image_part(), text_part("What is in the picture?")]},
            {"role": "assistant", "content": [text_part(answer)]},
        ],
        "images": [png(number)],
    }


def sample(number: int, parts: str) -> dict:
    """A sample of a pair: messages and images."""
    row = document(number, parts)
    return {"messages": row["messages"], "images": row["images"]}


def pair(number: int, positives: tuple[str, ...] = ("t",), negatives: tuple[str, ...] = (), **more) -> dict:
    """A pair whose query is a picture and a text; each positive and negative has a `t` or `i` for each part."""
    first = 20 * number
    return {
        "id": f"pair-{number}",
        "source": "tests",
        "query": sample(first, "it"),
        "positives": [sample(first + 1 + i, parts) for i, parts in enumerate(positives)],
        "negatives": [sample(first + 10 + i, parts) for i, parts in enumerate(negatives)],
        "scores": None,
        "instruction": None,
        **more,
    }


def make_pairs() -> list[dict]:
    """Six pairs of different sizes, two of which have a positive in common."""
    shared = pair(1)["positives"]
    return [
        pair(0, ("t",), ("i", "tt")),
        pair(1),
        pair(2, ("it", "t"), ("t",), scores=[0.9, 0.7, 0.1]),
        pair(3, instruction="Find the caption."),
        pair(4, positives=(), negatives=("ti",)) | {"positives": shared},
        pair(5, ("titit",), ("t",)),
    ]


def make_rows() -> list[dict]:
    return [
        document(0, "titi"),
        chat(1),
        document(2, "it"),
        document(3, "ttiit"),
        chat(4, "A house."),
        document(5, "t"),
        document(6, "iti"),
        document(7, "tititi"),
    ]


def make_sugar(seed: int = 0) -> tuple[SugarForConditionalGeneration, SugarProcessor]:
    backbone, processor = build_tiny_llava(seed)
    torch.manual_seed(seed)
    return SugarForConditionalGeneration.from_backbone(backbone, retrieval_dim=16), SugarProcessor(processor)


def teacher_columns(row: dict, processor: SugarProcessor, dim: int = 8) -> dict:
    """Columns as `TripleTeacher.cache` makes them, the vectors random but fixed by the slice's content."""

    def unit(content: bytes, space: int) -> np.ndarray:
        vector = np.random.default_rng([space, *content[:200]]).normal(size=dim)
        return vector / np.linalg.norm(vector)

    slices = [each for sample in to_samples(row) for each in processor.slices(sample)]
    contents = [s.encode() if isinstance(s, str) else np.asarray(s).tobytes() for s in slices]
    images = [not isinstance(s, str) for s in slices]
    zeros = np.zeros(dim)
    parts = list(zip(contents, images, strict=True))
    return {
        "teacher_clip": np.stack([unit(c, 0) for c in contents]).astype(np.float16),
        "teacher_dino": np.stack([unit(c, 1) if i else zeros for c, i in parts]).astype(np.float16),
        "teacher_text": np.stack([zeros if i else unit(c, 2) for c, i in parts]).astype(np.float16),
        "teacher_is_image": images,
        "teacher_fingerprint": "by-hand",
    }


def make_dataset(processor: SugarProcessor, rows: list[dict] | None = None, cached: bool = True) -> Dataset:
    rows = make_rows() if rows is None else rows
    known = {**FEATURES, **PAIR_FEATURES}
    features = Features({name: known[name] for name in known if any(name in row for row in rows)})
    filled = [{name: row.get(name) for name in features} for row in rows]
    dataset = Dataset.from_list(filled, features=features)
    if not cached:
        return dataset
    columns = [teacher_columns(row, processor) for row in rows]
    for name in columns[0]:
        values = [column[name] for column in columns]
        values = [v.tolist() if isinstance(v, np.ndarray) else v for v in values]
        dataset = dataset.add_column(name, values)
    return dataset


def make_arguments(folder, **kwargs) -> SugarTrainingArguments:
    settings = {
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
        "head_whitening_samples": 0,
    }
    return SugarTrainingArguments(str(folder), **{**settings, **kwargs})


def make_trainer(folder, seed: int = 0, rows: list[dict] | None = None, **kwargs) -> SugarTrainer:
    """A trainer of a tiny Sugar model; arguments of SugarTrainer by name, all others go to its arguments."""
    own = ("eval_dataset", "compute_metrics", "callbacks", "teacher", "data_collator", "eval_retrieval")
    options = {name: kwargs.pop(name) for name in own if name in kwargs}
    model, processor = make_sugar(seed)
    dataset = kwargs.pop("train_dataset", None) or make_dataset(processor, rows)
    return SugarTrainer(
        kwargs.pop("model", model),
        make_arguments(folder, **kwargs),
        train_dataset=dataset,
        processing_class=processor,
        **options,
    )


def first_step(folder, **kwargs) -> tuple[dict, SugarTrainer]:
    """Gradients of the first optimizer step, unclipped, and the trainer that made it alone."""
    trainer = make_trainer(folder, **{"max_steps": 1, "max_grad_norm": 0.0, **kwargs})
    gradients = {}

    def keep(*_):
        gradients.update({n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None})

    trainer.create_optimizer().register_step_pre_hook(keep)
    trainer.train()
    return gradients, trainer


def logged(trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]
