"""From a model that only generates to one that also retrieves, in a few minutes on a laptop and without a download.

Takes the mini VLM that ships with the package, fine-tunes it with `SugarTrainer` on the picturebook, measures it
before and after on held-out scenes, saves it, loads it again with the Auto classes, runs both pipelines and leaves a
gallery. The same start trained as long with InfoNCE stands beside it.

    python examples/demo.py
    python examples/demo.py holiday.jpg cat.png                  # with photographs of your own
    python examples/demo.py --objective mse --beside none --output runs/mse --report runs/mse-report

Needs: pip install "sugar-hf[demo]"
"""

import argparse
import copy
import json
import time
from collections.abc import Sequence
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
from sugar_hf.data import Document, to_sample
from sugar_hf.evaluation import Example, GenerationEvaluator, Ranking, RankingEvaluator, Record, exact_match
from sugar_hf.picturebook.retrieval_tasks import RetrievalTask, retrieval_tasks

OBJECTIVES = ("kl", "mse", "infonce")
BATCH = 32  # documents or questions at once
MAX_ANSWER = 32  # tokens
SHOWN = (" recall@1", " recall@5", " accuracy")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="*", type=Path, help="pictures of your own to search and ask about")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=24)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--head-learning-rate", type=float, default=3e-3)
    parser.add_argument("--objective", choices=OBJECTIVES, default="kl")
    parser.add_argument("--alpha", type=float, help="weight of the structure loss; the objective's own if not given")
    parser.add_argument("--temperature", type=float, help="of kl and infonce")
    parser.add_argument(
        "--beside",
        choices=(*OBJECTIVES, "none"),
        default="infonce",
        help="objective trained from the same start to compare",
    )
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


def load_questions() -> list[Example]:
    """Questions about held-out pictures, each on its own: an answer may give away the next one."""
    questions = []
    for row in picturebook.load("test", kind="question", size=400):
        turns = to_sample(row)
        shown = turns[0]["content"][0]
        for question, answer, kind in zip(turns[::2], turns[1::2], row["question_kinds"], strict=True):
            chat = [{"role": "user", "content": [shown, question["content"][-1]]}]
            reference = {"answer": answer["content"][0]["text"], "kind": kind}
            questions.append(Example(Document(str(len(questions)), chat), reference))
    return questions


def score_answers(records: Sequence[Record]) -> dict[str, float]:
    """Accuracy by exact match, of all questions and of each kind, in percent."""
    hits: dict[str, list[bool]] = {"answers accuracy": []}
    for record in records:
        hit = exact_match(record.text, record.reference["answer"])
        for name in ("answers accuracy", f"answers accuracy, {record.reference['kind']}"):
            hits.setdefault(name, []).append(hit)
    return {name: 100.0 * sum(of) / len(of) for name, of in hits.items()}


def build_evaluators(tasks: Sequence[RetrievalTask], questions: Sequence[Example]) -> list[Any]:
    """Evaluators of the four retrieval tasks and of the answers, all on held-out combinations."""
    evaluators: list[Any] = []
    for task in tasks:
        sets = {
            name: [Document(str(i), sample) for i, sample in enumerate(samples)]
            for name, samples in (("queries", task.queries), ("candidates", task.candidates))
        }
        ranking = Ranking(task.name, *sets, targets=[[target] for target in task.targets])
        evaluators.append(RankingEvaluator(task.name, sets, [ranking], primary_metric=f"{task.name} recall@1"))
    answers = GenerationEvaluator(
        "answers", questions, score_answers, primary_metric="answers accuracy", max_new_tokens=MAX_ANSWER
    )
    return [*evaluators, answers]


def measure(
    evaluators: Sequence[Any], model: SugarForConditionalGeneration, processor: SugarProcessor
) -> dict[str, float]:
    model.eval()
    results = [evaluator(model, processor, batch_size=BATCH) for evaluator in evaluators]
    return {name: value for result in results for name, value in result.items() if name.split(",")[0].endswith(SHOWN)}


def print_table(columns: dict[str, dict[str, float]]) -> list[list[str]]:
    """Print what was measured, with a column for each model."""
    rows = [["held-out test split, %", *columns]]
    rows += [[name, *(f"{of[name]:.1f}" for of in columns.values())] for name in next(iter(columns.values()))]
    for label, *figures in rows:
        print(f"  {label:<34}" + "".join(f"{figure:>9}" for figure in figures))
    return rows


def train(
    args: argparse.Namespace,
    objective: str,
    model: SugarForConditionalGeneration,
    processor: SugarProcessor,
    rows: Any,
) -> float:
    """Fine-tune a model with both losses, and return the seconds that it took."""
    own = objective == args.objective  # the other one keeps its own settings
    arguments = SugarTrainingArguments(
        output_dir=str(args.report / "trainer"),
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        head_learning_rate=args.head_learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=20,
        objective=objective,
        label_kernel=args.label_kernel,
        alpha=args.alpha if own else None,
        temperature=args.temperature if own else None,
        matryoshka_dims=args.matryoshka_dims,
        logging_steps=25,
        train_sampling_strategy="sequential",  # keeps what tells and what shows the same scene in one batch
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=False,
        seed=args.seed,
    )
    trainer = SugarTrainer(model=model, args=arguments, train_dataset=rows, processing_class=processor)
    start = time.perf_counter()
    trainer.train()
    return time.perf_counter() - start


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
    tasks, questions = retrieval_tasks(size=args.pool), load_questions()
    evaluators = build_evaluators(tasks, questions)
    columns = {"before": measure(evaluators, model, processor)}

    print("4. Fine-tuned with the LM loss and the structure loss together")
    other = copy.deepcopy(model) if args.beside != "none" else None
    training_seconds = train(args, args.objective, model, processor, rows)
    if other is not None:
        print(f"   and the same start as long with {args.beside} in its place")
        train(args, args.beside, other, processor, rows)
        columns[args.beside] = measure(evaluators, other, processor)

    print("5. Measured after")
    columns["after"] = measure(evaluators, model, processor)
    table = print_table(columns)

    print(f"6. Saved to {args.output} and loaded again with the Auto classes")
    model.save_pretrained(args.output)
    processor.save_pretrained(args.output)
    folder = str(args.output)
    loaded, loaded_processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    retrieve = pipeline("sugar-retrieval", model=folder)
    generate = pipeline("sugar-generation", model=loaded, processor=loaded_processor)
    probe = {"query": [tasks[0].candidates[0][0], "what is this?"]}
    saved = retrieve(probe, return_embeddings=True)["embedding"]
    kept = pipeline("sugar-retrieval", model=model, processor=processor)(probe, return_embeddings=True)["embedding"]
    print(f"   the embeddings are the same to {np.abs(saved - kept).max():.0e}")

    print("7. The gallery")
    page = write_demo_gallery(args.report, table, tasks, questions, retrieve, generate, load_teacher(), args.photos)
    seconds = time.perf_counter() - start
    print(f"   open {page}")
    print(f"training took {training_seconds:.0f} s, everything {seconds:.0f} s")
    if args.json:
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
        settings["photos"] = [str(photo) for photo in args.photos]
        figures = {"settings": settings, **columns, "training_seconds": training_seconds}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
