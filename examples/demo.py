"""From a model that only generates to one that also retrieves, in a few minutes on a laptop and without a download.

Takes the mini VLM that ships with the package, fine-tunes it with `SugarTrainer` on the picturebook, measures it
before and after on held-out scenes, saves it, loads it again with the Auto classes, runs both pipelines and leaves a
gallery.

    python examples/demo.py
    python examples/demo.py holiday.jpg cat.png                  # with photographs of your own
    python examples/demo.py --objective infonce --output runs/infonce --report runs/infonce-report

Needs: pip install "sugar-hf[demo]"
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from demo_gallery import write_demo_gallery
from transformers import AutoModel, AutoProcessor, pipeline, set_seed

from sugar_hf import (
    SugarForConditionalGeneration,
    SugarProcessor,
    SugarTrainer,
    SugarTrainingArguments,
    TripleTeacher,
    picturebook,
)
from sugar_hf.data import to_sample
from sugar_hf.evaluation import AnswerEvaluator, RetrievalEvaluator
from sugar_hf.picturebook.retrieval_tasks import retrieval_tasks

# alpha by objective: each one's loss has a scale of its own
ALPHA = {"mse": 10.0, "infonce": 0.3, "kl": 0.3}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="*", type=Path, help="pictures of your own to search and ask about")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=24)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--head-learning-rate", type=float, default=3e-3)
    parser.add_argument("--objective", choices=tuple(ALPHA), default="mse")
    parser.add_argument("--alpha", type=float, help="weight of the structure loss")
    parser.add_argument("--label-kernel", choices=("calibrated", "aligned", "gak", "mean"), default="calibrated")
    parser.add_argument("--matryoshka-dims", type=int, nargs="+", metavar="SIZE", help="sizes to cut embeddings to")
    parser.add_argument("--train-size", type=int, default=3600, help="rows of the picturebook to train on")
    parser.add_argument("--pool", type=int, default=200, help="candidates of each retrieval task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("sugar"), help="where the model goes")
    parser.add_argument("--report", type=Path, default=Path("demo_output"), help="where the gallery goes")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser.parse_args()


def load_teacher() -> TripleTeacher:
    names = {"clip": "mini-clip", "dino": "mini-dino", "text": "mini-bert"}
    return TripleTeacher.from_pretrained(**{role: picturebook.checkpoint(name) for role, name in names.items()})


def freeze_vision(model: SugarForConditionalGeneration) -> None:
    """Train the language model and the head only: what the eyes have learnt serves answers and retrieval alike."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("language_model" in name or "retrieval_head" in name)


def build_evaluators(pool: int) -> list[Any]:
    """Evaluators of the four retrieval tasks and of the answers, all on held-out combinations."""
    evaluators: list[Any] = [
        RetrievalEvaluator(task.queries, task.candidates, task.targets, task.name, ks=(1, 5))
        for task in retrieval_tasks(size=pool)
    ]
    conversations, answers, kinds = [], [], []
    for row in picturebook.load("test", kind="question", size=400):
        turns = to_sample(row)
        shown = turns[0]["content"][0]
        # each question on its own: an answer may give away the next one
        for question, answer, kind in zip(turns[::2], turns[1::2], row["question_kinds"], strict=True):
            conversations.append([{"role": "user", "content": [shown, question["content"][-1]]}])
            answers.append(answer["content"][0]["text"])
            kinds.append(kind)
    return [*evaluators, AnswerEvaluator(conversations, answers, kinds)]


def measure(
    evaluators: list[Any], model: SugarForConditionalGeneration, processor: SugarProcessor
) -> dict[str, float]:
    model.eval()
    return {name: value for evaluator in evaluators for name, value in evaluator(model, processor).items()}


def print_table(before: dict[str, float], after: dict[str, float]) -> list[list[str]]:
    rows = [["held-out test split, %", "before", "after"]]
    for name, value in after.items():
        if "recall" in name or "accuracy" in name:
            rows.append([name, f"{before[name]:.1f}", f"{value:.1f}"])
    for label, first, second in rows:
        print(f"  {label:<34}{first:>8}{second:>8}")
    return rows


def main() -> None:
    args = parse_arguments()
    for photo in args.photos:
        if not photo.is_file():
            raise SystemExit(f"no such picture: {photo}")
    start = time.perf_counter()
    set_seed(args.seed)

    print("1. The mini VLM, which only generates, gets a fresh retrieval head")
    backbone = picturebook.checkpoint("mini-vlm")
    processor = SugarProcessor.from_pretrained(backbone)
    model = SugarForConditionalGeneration.from_backbone(backbone, retrieval_dim=128)
    freeze_vision(model)

    print("2. The picturebook, with the teachers' embeddings of every slice computed once")
    rows = picturebook.load("train", size=args.train_size)
    rows = load_teacher().cache(rows, slices=lambda row: processor.slices(to_sample(row)))

    print("3. Measured before")
    evaluators = build_evaluators(args.pool)
    before = measure(evaluators, model, processor)

    print("4. Fine-tuned with the LM loss and the structure loss together")
    alpha = ALPHA[args.objective] if args.alpha is None else args.alpha
    arguments = SugarTrainingArguments(
        output_dir=str(args.report / "trainer"),
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        head_learning_rate=args.head_learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=20,
        objective=args.objective,
        label_kernel=args.label_kernel,
        alpha=alpha,
        matryoshka_dims=args.matryoshka_dims,
        logging_steps=25,
        train_sampling_strategy="sequential",  # keeps what tells and what shows the same scene in one batch
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=False,
        seed=args.seed,
    )
    trainer = SugarTrainer(model=model, args=arguments, train_dataset=rows, processing_class=processor)
    training_start = time.perf_counter()
    trainer.train()
    training_seconds = time.perf_counter() - training_start

    print("5. Measured after")
    after = measure(evaluators, model, processor)
    table = print_table(before, after)

    print(f"6. Saved to {args.output} and loaded again with the Auto classes")
    model.save_pretrained(args.output)
    processor.save_pretrained(args.output)
    folder = str(args.output)
    loaded, loaded_processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    retrieve = pipeline("sugar-retrieval", model=folder)
    generate = pipeline("sugar-generation", model=loaded, processor=loaded_processor)
    probe = {"query": [evaluators[0].candidates[0][0], "what is this?"]}
    saved = retrieve(probe, return_embeddings=True)["embedding"]
    kept = pipeline("sugar-retrieval", model=model, processor=processor)(probe, return_embeddings=True)["embedding"]
    print(f"   the embeddings are the same to {np.abs(saved - kept).max():.0e}")

    print("7. The gallery")
    page = write_demo_gallery(args.report, table, evaluators, retrieve, generate, load_teacher(), args.photos)
    seconds = time.perf_counter() - start
    print(f"   open {page}")
    print(f"training took {training_seconds:.0f} s, everything {seconds:.0f} s")
    if args.json:
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
        settings["photos"] = [str(photo) for photo in args.photos]
        figures = {"settings": settings, "before": before, "after": after, "training_seconds": training_seconds}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
