"""Predictions on disk, one line each, so that a run that was stopped goes on where it was."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from .examples import Record


class PredictionFile:
    """A file of JSON lines: first what was run, then one prediction a line, in the order in which they came.

    Of several lines with one id the last counts: a sample that failed is asked again when the run goes on.

    Args:
        path: The file; `None` keeps nothing.
        run: What was run; JSON values. A file of another run is refused.

    Raises:
        ValueError: The file is of another run, is damaged, or another process writes to it.
    """

    def __init__(self, path: str | Path | None, run: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        # As it is read back. Where the data lies may change: each prediction has the digest of its sample.
        self.run = json.loads(json.dumps({key: value for key, value in run.items() if key != "data"}))
        self._found: dict[str, tuple[str, Record]] = {}
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(f"{self.path}.lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise ValueError(f"{self.path}: another process writes to it. Wait for it, or choose another.") from error
        try:
            self._open(self.path)
        except BaseException:
            self._lock.release()
            raise

    def find(self, id: str, digest: str) -> Record | None:
        """Return the prediction for an example, if there is one.

        Raises:
            ValueError: There is one, but the example was another then.
        """
        if id not in self._found:
            return None
        known, record = self._found[id]
        if record.error is not None:
            return None
        if known != digest:
            raise ValueError(
                f"{self.path}: sample {id!r} was another when it was answered. Has the data changed? Remove the file, "
                "or choose another."
            )
        return record

    def add(self, records: Iterable[tuple[str, Record]]) -> None:
        """Keep predictions, each with the digest of its example; they are on disk when this returns."""
        records = list(records)
        self._found.update({record.id: (digest, record) for digest, record in records})
        if self.path is None:
            return
        for digest, record in records:
            line: dict[str, Any] = {"id": record.id, "digest": digest, "prediction": record.prediction}
            line |= {"error": record.error} if record.error is not None else {}
            line |= {"reference": record.reference} if record.reference is not None else {}
            line |= {"info": record.info} if record.info else {}
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self.path is not None:
            self._file.close()
            self._lock.release()
            Path(self._lock.lock_file).unlink(missing_ok=True)

    def __enter__(self) -> "PredictionFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, path: Path) -> None:
        whole = self._read(path) if path.exists() else 0
        self._file = path.open("r+" if whole else "w", encoding="utf-8", newline="\n")
        if whole:
            self._file.truncate(whole)  # a line that was cut off when the run was stopped
            self._file.seek(0, 2)
        else:
            self._file.write(json.dumps({"run": self.run}, ensure_ascii=False) + "\n")
            self._file.flush()

    def _read(self, path: Path) -> int:
        """Read the lines that are whole, and return how many bytes they are."""
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        for number, line in enumerate(data[:whole].splitlines(), start=1):
            try:
                value = json.loads(line)
                if number == 1:
                    self._check(path, value["run"])
                    continue
                record = Record(
                    value["id"], value["prediction"], value.get("reference"), value.get("error"), value.get("info", {})
                )
                self._found[record.id] = (value["digest"], record)
            except (KeyError, TypeError, json.JSONDecodeError) as error:
                raise ValueError(f"{path}, line {number}: no prediction ({error!r}). Remove the file.") from error
        return whole

    def _check(self, path: Path, run: Mapping[str, Any]) -> None:
        names = [name for name in {**run, **self.run} if run.get(name) != self.run.get(name)]
        if names:
            said = "; ".join(
                f"{name}: {_short(run.get(name))} there, {_short(self.run.get(name))} now" for name in names
            )
            raise ValueError(f"{path} has the predictions of another run ({said}). Remove it, or choose another.")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
