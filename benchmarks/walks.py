"""Count the files of the library that one call walks through, in the order of its calls and returns.

    python benchmarks/walks.py training     # one step of SugarTrainer with its start-up check, on four samples

Printed are the files, the moves between them (changes of file, calls and returns), and the returns among these, which
lead into a file that was left before. Models and data are loaded outside of what is measured.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

import sugar_hf

LIBRARY = Path(sugar_hf.__file__).parent


class Walk:
    """Records the files of a package that a block enters; a context manager.

    Args:
        root: Folder of the package.
    """

    def __init__(self, root: Path = LIBRARY) -> None:
        self.root, self.visits, self.functions = f"{root}/", [], set()

    def _hook(self, frame: FrameType, event: str, _: Any) -> None:
        if frame.f_code.co_filename.startswith(self.root):
            inside: FrameType | None = frame if event == "call" else frame.f_back if event == "return" else None
            while inside is not None and not inside.f_code.co_filename.startswith(self.root):
                inside = inside.f_back
            if inside is not None:
                self.functions.add(inside.f_code)
                if not self.visits or self.visits[-1] != inside.f_code.co_filename:
                    self.visits.append(inside.f_code.co_filename)

    def __enter__(self) -> "Walk":
        sys.setprofile(self._hook)
        return self

    def __exit__(self, *_: Any) -> None:
        sys.setprofile(None)

    @property
    def files(self) -> dict[str, int]:
        """Visits of each file, in the order of the first."""
        found: dict[str, int] = {}
        for visit in self.visits:
            name = visit.removeprefix(self.root)
            found[name] = found.get(name, 0) + 1
        return found

    def __str__(self) -> str:
        files, moves = self.files, max(0, len(self.visits) - 1)
        returns = max(0, len(self.visits) - len(files))
        counts = f"{len(files)} files, {moves} moves, {returns} of them returns, {len(self.functions)} functions"
        return "\n".join([counts, *(f"  {visits:4}  {name}" for name, visits in files.items())])


def walk_training() -> Walk:
    """Walk through one step of SugarTrainer with its start-up check: four samples of the picturebook."""
    from sugar_hf import (
        SugarForConditionalGeneration,
        SugarProcessor,
        SugarTrainer,
        SugarTrainingArguments,
        TripleTeacher,
        picturebook,
    )

    mini = picturebook.checkpoint("mini-sugar")
    model, processor = SugarForConditionalGeneration.from_pretrained(mini), SugarProcessor.from_pretrained(mini)
    teacher = TripleTeacher.from_pretrained(**picturebook.mini_teachers(), device="cpu")
    from sugar_hf.data import to_sample

    rows = teacher.cache(picturebook.load("train", size=4), lambda row: processor.slices(to_sample(row)))
    with tempfile.TemporaryDirectory() as folder:
        arguments = SugarTrainingArguments(
            folder, per_device_train_batch_size=4, max_steps=1, use_cpu=True, report_to="none", save_strategy="no"
        )
        trainer = SugarTrainer(model, arguments, train_dataset=rows, processing_class=processor)
        with Walk() as walk:
            trainer.train()
    return walk


WALKS = {"training": walk_training}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("walk", choices=WALKS)
    print(WALKS[parser.parse_args().walk]())
