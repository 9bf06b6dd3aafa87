"""Questions that a model answers, and a metric on its answers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..data import BadSampleError
from .examples import Example, Record, digest_of
from .generators import Generator, as_generator
from .predictions import PredictionFile

WINDOW = 16  # batches that are looked at together, and put into an order by their lengths

#: From all records, in the order of the examples, to figures. Percent where a share is meant.
Score = Callable[[Sequence[Record]], dict[str, Any]]


@dataclass(frozen=True)
class Submission:
    """A file for a server that has the answers.

    Args:
        suffix: How its name ends, such as `.json`.
        write: Writes the records to a path.
        server: Where it is sent.
    """

    suffix: str
    write: Callable[[Sequence[Record], Path], None]
    server: str


class GenerationEvaluator:
    """Holds questions and measures models on them.

    Args:
        name: The task's name.
        examples: The questions, with ids that differ.
        score: Makes figures of the records. A record without prediction counts as a wrong answer. `None` if the
            answers are hidden.
        primary_metric: The figure to look at; one of those that `score` gives.
        max_new_tokens: The longest answer.
        submission: How the server's file is written, if there is a server.
        seed: What whoever made the examples drew with; it is written into the result.
        settings: What else the result should say: data, prompt, and so on; JSON values.

    Raises:
        ValueError: There are no examples.
    """

    def __init__(
        self,
        name: str,
        examples: Sequence[Example],
        score: Score | None,
        *,
        primary_metric: str | None,
        max_new_tokens: int = 16,
        submission: Submission | None = None,
        seed: int = 0,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if not len(examples):
            raise ValueError(f"{name}: there are no samples.")
        self.name, self.examples, self.score = name, examples, score
        self.primary_metric = primary_metric if score is not None else None
        self.max_new_tokens, self.submission, self.seed = max_new_tokens, submission, seed
        self.settings = dict(settings or {})

    def __call__(
        self, model: Any, processor: Any = None, *, output: str | Path | None = None, batch_size: int = 8
    ) -> dict[str, Any]:
        """Measure a model.

        Args:
            model: A Sugar model, any image-text-to-text model, or a `Generator`.
            processor: The model's; not needed with a generator.
            output: File of JSON lines for the predictions. If it is there already, what it has is not asked again.
            batch_size: Questions answered together.

        Returns:
            The figures, `n`, `seed`, `failed` (a list of `{"id", "error"}`; they are in `n`, and count as wrong) and
            `settings`; `submission` is the path of the server's file, if one was written.

        Raises:
            ValueError: The output is of another run, or two examples have one id.
        """
        generator = as_generator(model, processor)
        settings = {"task": self.name, "n": len(self.examples), **self.settings, "seed": self.seed}
        settings |= {"max_new_tokens": self.max_new_tokens, **generator.settings()}
        with PredictionFile(output, settings) as file:
            records = predict(self.examples, generator, file, self.max_new_tokens, batch_size, self.name)
        result = finish(records, self.score, self.seed, settings)
        if self.submission is not None and output is not None:
            path = Path(output).with_suffix(".submission" + self.submission.suffix)
            self.submission.write(records, path)
            result |= {"submission": str(path), "server": self.submission.server}
        return result


def finish(records: Sequence[Record], score: Score | None, seed: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Make the result of the records."""
    failed = [{"id": record.id, "error": record.error} for record in records if record.error is not None]
    figures = {} if score is None else score(records)
    return {**figures, "n": len(records), "seed": seed, "failed": failed, "settings": dict(settings)}


def predict(
    examples: Sequence[Example],
    generator: Generator,
    file: PredictionFile,
    max_new_tokens: int,
    batch_size: int,
    name: str,
) -> list[Record]:
    """Answer every example that the file does not already hold.

    Args:
        examples: The questions.
        generator: Answers them.
        file: Knows answers of before, and keeps the new ones.
        max_new_tokens: The longest answer.
        batch_size: Questions answered together; they are of similar length.
        name: What the bar says.

    Returns:
        One record for each example, in order.

    Raises:
        ValueError: Two examples have one id.
    """
    records: dict[str, Record] = {}
    with tqdm(total=len(examples), desc=name, unit="samples", delay=2) as bar:
        for window in _windows(examples, WINDOW * batch_size):
            waiting: list[tuple[str, Example]] = []
            for example in window:
                if example.id in records:
                    raise ValueError(f"{name}: two samples have the id {example.id!r}.")
                # its place in the order
                records[example.id] = Record(example.id, None, example.reference, info=example.info)
                try:
                    if example.fault is not None:
                        raise ValueError(example.fault)
                    digest = digest_of(example.document, example.reference)
                except ValueError as error:
                    found: Record | None = _failed(example, error)
                    file.add([("", _failed(example, error))])
                else:
                    found = file.find(example.id, digest)
                if found is None:
                    waiting.append((digest, example))
                else:
                    records[example.id] = found
                    bar.update()
            waiting.sort(key=lambda item: item[1].document.size, reverse=True)
            for start in range(0, len(waiting), batch_size):
                batch = waiting[start : start + batch_size]
                done = _answered([example for _, example in batch], generator, max_new_tokens)
                file.add((digest, record) for (digest, _), record in zip(batch, done, strict=True))
                records.update({record.id: record for record in done})
                bar.update(len(batch))
    return list(records.values())


def _windows(examples: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    for start in range(0, len(examples), size):
        yield examples[start : start + size]


def _answered(batch: list[Example], generator: Generator, max_new_tokens: int) -> list[Record]:
    """Answer a batch. If something in it cannot be read, each is asked alone: the others must not suffer."""
    samples, errors = {}, {}
    for example in batch:
        try:
            samples[example.id] = example.document.load()
        except BadSampleError as error:
            errors[example.id] = str(error)
    texts: dict[str, str] = {}
    try:
        if samples:
            texts = dict(zip(samples, generator.generate(list(samples.values()), max_new_tokens), strict=True))
    except ValueError:
        for id, sample in samples.items():
            try:
                [texts[id]] = generator.generate([sample], max_new_tokens)
            except ValueError as error:
                errors[id] = str(error)
    return [
        Record(example.id, texts.get(example.id), example.reference, errors.get(example.id), example.info)
        for example in batch
    ]


def _failed(example: Example, error: Exception) -> Record:
    return Record(example.id, None, example.reference, str(error), example.info)
