"""Train the mini checkpoints from nothing, or go on where a run was stopped.

python -m sugar_lab.recipe --work runs/mini                  # all, in order
python -m sugar_lab.recipe --work runs/mini --only bert dino
"""

import argparse
from pathlib import Path

from sugar_hf.picturebook import CHECKPOINTS

from .gist import train_gist
from .lessons import train_lessons, train_practice
from .teacher_recipes import train_bert, train_clip, train_dino
from .vlm_recipe import train_vlm

# name: (training function, steps)
RECIPES = {
    "clip": (train_clip, 1200),
    "vlm": (train_vlm, 3000),
    "lessons": (train_lessons, 4600),  # this and the next two train the mini VLM further
    "practice": (train_practice, 6000),
    "gist": (train_gist, 2800),
    "dino": (train_dino, 800),
    "bert": (train_bert, 500),
}


def main() -> None:
    """Train the checkpoints from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/mini"), help="folder of the runs' own checkpoints")
    parser.add_argument("--out", type=Path, default=CHECKPOINTS, help="folder of the finished checkpoints")
    parser.add_argument("--only", nargs="+", choices=tuple(RECIPES), default=list(RECIPES))
    parser.add_argument("--steps", type=int, help="instead of each recipe's own number of steps")
    arguments = parser.parse_args()
    for name in arguments.only:
        recipe, steps = RECIPES[name]
        recipe(arguments.work, arguments.out, arguments.steps or steps)


if __name__ == "__main__":
    main()
