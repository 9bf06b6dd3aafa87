"""A file of JSON lines about a run, written atomically."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._files import replace


class ResultLines:
    """Lines about queries or items, each a JSON object; they are there when the block ends without error.

    Args:
        path: The file; `None` writes nothing.
        run: What was run, the first line. A file of another run is refused, one of the same is written anew.

    Attributes:
        folder: Where embeddings are kept beside the file; `None` if there is none.

    Raises:
        ValueError: The file is of another run.
    """

    def __init__(self, path: str | Path | None, run: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.folder = None if self.path is None else self.path.with_suffix(".embeddings")
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # as in `PredictionFile`, the data may have been moved
        first = json.dumps({"run": {key: value for key, value in run.items() if key != "data"}}, ensure_ascii=False)
        if self.path.exists():
            with self.path.open(encoding="utf-8") as file:
                if file.readline().rstrip("\n") != first:
                    raise ValueError(f"{self.path} is of another run. Remove it, or choose another.")
        self.unfinished = self.path.with_name(f"{self.path.name}.{os.getpid()}.unfinished")
        self.file = self.unfinished.open("w", encoding="utf-8", newline="\n")
        self.file.write(first + "\n")

    def write(self, line: Mapping[str, Any]) -> None:
        """Write a line."""
        if self.path is not None:
            self.file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def __enter__(self) -> "ResultLines":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if self.path is not None:
            self.file.close()
            if kind is None:
                replace(self.unfinished, self.path)
            else:
                self.unfinished.unlink()
