"""Follow one datum through the library: which files it enters, and how often it moves from one to another.

    python benchmarks/walks.py             # all walks
    python benchmarks/walks.py --files     # and the files of each, by visits

A move is a change of the file that runs, among the files of the library, by calls and returns. Imports and the loading
of models are not counted. The numbers show how much of the library a reader has to know to follow one thought.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import sugar_hf

ROOT = str(Path(sugar_hf.__file__).parent)


class Walk:
    """Records the files of the library in the order in which they are entered.

    ```python
    with Walk() as walk:
        index.search("a red cat")
    walk.moves, len(walk.visits)
    ```
    """

    def __init__(self) -> None:
        self._files: list[str] = []
        self.opened: Counter[str] = Counter()
        self._is_on = False

    def _hook(self, frame: FrameType, event: str, _: Any) -> None:
        if not frame.f_code.co_filename.startswith(ROOT):
            return
        if frame.f_back is not None and frame.f_back.f_code.co_filename.startswith("<frozen importlib"):
            return  # a finder of ours, asked for a module of others
        there: FrameType | None = frame if event == "call" else frame.f_back if event == "return" else None
        while there is not None and not there.f_code.co_filename.startswith(ROOT):
            there = there.f_back
        if there is not None and (not self._files or self._files[-1] != there.f_code.co_filename):
            self._files.append(there.f_code.co_filename)

    def __enter__(self) -> "Walk":
        sys.addaudithook(self._audit)  # for good: there is no way to take one off
        self._is_on = True
        sys.setprofile(self._hook)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        self._is_on = False

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._is_on and event == "open" and isinstance(arguments[0], str | Path):
            self.opened[str(arguments[0])] += 1

    @property
    def visits(self) -> Counter[str]:
        """How often each file was entered."""
        return Counter(str(Path(file).relative_to(ROOT)) for file in self._files)

    @property
    def moves(self) -> int:
        """How often another file was entered."""
        return len(self._files)

    def __str__(self) -> str:
        return f"{len(self.visits)} files, {self.moves} moves"


def row_to_answer() -> dict[str, Walk]:
    """A JSONL row with one image becomes a document, is indexed, found, and answered from."""
    from PIL import Image

    from sugar_hf import Document, SugarEmbedder, SugarIndex, SugarRag, picturebook, read_documents

    embedder = SugarEmbedder.from_pretrained(picturebook.checkpoint("mini-sugar"), device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder, "cat.png")
        Image.linear_gradient("L").convert("RGB").save(picture)
        row = {"id": "1", "image": picture.name, "text": "a cat on a mat"}
        file = Path(folder, "rows.jsonl")
        file.write_text(json.dumps(row) + "\n")

        def read() -> list[Document]:
            return list(read_documents(file))

        def build(name: str, documents: list[Document]) -> SugarIndex:
            return SugarIndex.build(Path(folder, name), documents, embedder, show_progress=False)

        def answer(index: SugarIndex) -> None:
            rag = SugarRag(embedder.model, embedder.processor, index)
            rag.answer("what is on the mat?", max_new_tokens=4)

        answer(build("first", read()))  # the first time modules are imported
        with Walk() as whole:
            index = build("whole", read())
            index.search("a cat", top_k=1)
            answer(index)
        legs = {name: Walk() for name in ("read", "build", "search", "answer")}
        with legs["read"]:
            documents = read()
        with legs["build"]:
            index = build("again", documents)
        with legs["search"]:
            index.search("a cat", top_k=1)
        with legs["answer"]:
            answer(index)
    print(f"  the image was opened {whole.opened[str(picture)]} times until it was found")
    return {"whole": whole, **legs}


def training_step() -> dict[str, Walk]:
    """Four samples with one step of SugarTrainer and its start-up check."""
    from sugar_hf import (
        SugarForConditionalGeneration,
        SugarProcessor,
        SugarTrainer,
        SugarTrainingArguments,
        TripleTeacher,
        picturebook,
    )
    from sugar_hf.data import to_sample

    mini = picturebook.checkpoint("mini-sugar")
    model, processor = SugarForConditionalGeneration.from_pretrained(mini), SugarProcessor.from_pretrained(mini)
    teacher = TripleTeacher.from_pretrained(**picturebook.mini_teachers(), device="cpu")
    rows = teacher.cache(picturebook.load("train", size=4), lambda row: processor.slices(to_sample(row)))
    options = {"per_device_train_batch_size": 4, "max_steps": 1, "use_cpu": True, "report_to": "none"}
    with tempfile.TemporaryDirectory() as folder:
        arguments = SugarTrainingArguments(folder, save_strategy="no", disable_tqdm=True, **options)
        trainer = SugarTrainer(model, arguments, train_dataset=rows, processing_class=processor)
        trainer.train()  # late imports
        with Walk() as walk:
            trainer.train()
    return {"step": walk}


WALKS: dict[str, Callable[[], dict[str, Walk]]] = {"row to answer": row_to_answer, "training step": training_step}


def main() -> None:
    """Run the walks and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", action="store_true", help="print the files of each walk, by visits")
    options = parser.parse_args()
    for name, walk in WALKS.items():
        print(name)
        for leg, found in walk().items():
            print(f"  {leg}: {found}")
            if options.files:
                for file, visits in found.visits.most_common():
                    print(f"    {visits:5} {file}")


if __name__ == "__main__":
    main()
