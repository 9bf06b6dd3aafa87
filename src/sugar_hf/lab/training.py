"""What the lab trains: the model that all rows start from, and the rows.

python -m sugar_hf.lab.training --work runs/lab --steps 2000     # the former alone
"""

import argparse
from pathlib import Path

from transformers import LlavaForConditionalGeneration, LlavaProcessor

from ..picturebook import checkpoint
from ..picturebook.exercises import all_exercises
from ..picturebook.recipe.loop import Draw, train
from ..picturebook.recipe.vlm import collator, draw_board, draw_chat, draw_document
from .budget import FULL
from .pieces import by_length, draw_signs
from .whole import claim, is_whole, mark_whole

BASE_BATCH_SIZE = 48
BASE_LEARNING_RATE = 6e-4
GROUPS = 4


def base_kinds() -> list[Draw]:
    """What batches of the base's training hold, in turn: all exercises twice, then what the shipped one has learnt."""
    groups: list[Draw] = [*by_length(all_exercises(), GROUPS)]
    return [*groups, draw_signs, draw_chat, *groups, draw_board, draw_document]


def train_base(steps: int, work: Path) -> Path:
    """The vision-language model that all rows start from: it generates, and knows nothing of retrieval.

    The shipped mini VLM, trained further on the exercises and documents of the training split with the language-model
    loss alone. A run that was stopped goes on from its last checkpoint; a finished one is not run again.

    Args:
        steps: steps of training; with 0 the shipped model is taken.
        work: the lab's folder; the run's checkpoints lie in `base-run`, the model in `base`.

    Returns:
        The model's folder.
    """
    shipped, folder = Path(checkpoint("mini-vlm")), work / "base"
    if not steps:
        return shipped
    facts = {"steps": steps, "exercises": sorted(all_exercises())}
    if is_whole(folder, facts):
        return folder
    claim(work / "base-run", facts)
    processor = LlavaProcessor.from_pretrained(shipped)
    model = LlavaForConditionalGeneration.from_pretrained(shipped)
    train(
        model,
        base_kinds(),
        collator(processor),
        work / "base-run",
        steps=steps,
        batch_size=BASE_BATCH_SIZE,
        learning_rate=BASE_LEARNING_RATE,
    )
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    mark_whole(folder, facts)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/lab"), help="the lab's folder")
    parser.add_argument("--steps", type=int, default=FULL.base_steps)
    arguments = parser.parse_args()
    print(train_base(arguments.steps, arguments.work))


if __name__ == "__main__":
    main()
