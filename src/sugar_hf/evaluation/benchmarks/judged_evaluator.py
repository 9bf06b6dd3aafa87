"""Questions that a model answers, and a judge that marks the answers."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..examples import Example, Record
from ..generation_evaluator import GenerationEvaluator, Submission
from ..predictions import PredictionFile
from .judges import Judge, RefusedPromptError

HEAT = 0.5  # by which the temperature rises from one try to the next


@dataclass(frozen=True)
class Marking:
    """How a judge marks answers.

    Args:
        prompt: What the judge is asked about a record; `None` where it need not be asked. It is not asked about
            samples that failed.
        read: The mark in its reply, `None` if there is none.
        score: Figures of all records and of their marks, in the order of the examples. A mark is `None` where the
            judge was not asked or its reply could not be read.
        system: The judge's system message.
        temperature: Of the first try.
        max_tokens: The judge's longest reply.
        tries: How often it is asked until its reply can be read; each time at a temperature higher by 0.5.
        words: Whose words the prompt has; the result says it.
    """

    prompt: Callable[[Record], str | None]
    read: Callable[[Record, str], Any]
    score: Callable[[Sequence[Record], Sequence[Any]], dict[str, Any]]
    system: str | None = None
    temperature: float = 0.0
    max_tokens: int = 1024
    tries: int = 1
    words: str | None = None


class JudgedEvaluator:
    """Holds questions; a model answers them first, then a judge marks the answers.

    The judge's replies are kept beside the predictions, in a file of its name, so that an interrupted run
    resumes and another judge can mark the same answers.

    Args:
        name: The task's name.
        examples: The questions, with ids that differ.
        marking: How the judge marks.
        judge: The judge. Without one, the model answers, and nothing is scored.
        primary_metric: The figure to look at; one of those that `marking.score` gives.
        max_new_tokens: The longest answer.
        runs: How often everything is judged; the figures are means over the runs.
        submission: How a file of the answers is written, for a server or an official script.
        seed: As in `GenerationEvaluator`.
        settings: As in `GenerationEvaluator`.

    Raises:
        ValueError: There are no examples, or no runs.
    """

    def __init__(
        self,
        name: str,
        examples: Sequence[Example],
        marking: Marking,
        judge: Judge | None,
        *,
        primary_metric: str,
        max_new_tokens: int = 1024,
        runs: int = 1,
        submission: Submission | None = None,
        seed: int = 0,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if runs < 1:
            raise ValueError(f"{name}: {runs} runs of the judge are none.")
        self.name, self.marking, self.judge, self.runs = name, marking, judge, runs
        self.primary_metric = None if judge is None else primary_metric
        self._answers = GenerationEvaluator(
            name,
            examples,
            None,
            primary_metric=None,
            max_new_tokens=max_new_tokens,
            submission=submission,
            seed=seed,
            settings=settings,
        )
        self.examples = self._answers.examples

    def __call__(
        self, model: Any, processor: Any = None, *, output: str | Path | None = None, batch_size: int = 8
    ) -> dict[str, Any]:
        """Measure a model; see `GenerationEvaluator`.

        Returns:
            As `GenerationEvaluator`, with `scored`: whether there was a judge. If not, `reason` says so, and there
            are no figures. With a judge, its name is in `settings`; `unjudged` lists the prompts it refused (they
            count as replies that cannot be read), and with several runs `runs` has the primary figure of each.

        Raises:
            ValueError: As `GenerationEvaluator`, or the judge's file is of another run.
            ConnectionError: The judge cannot be reached. What is done is kept.
        """

        def score(records: Sequence[Record]) -> dict[str, Any]:
            return {} if self.judge is None else self._judged(self.judge, records, output)

        self._answers.score = score
        result = self._answers(model, processor, output=output, batch_size=batch_size)
        result["scored"] = self.judge is not None
        if self.judge is None:
            result["reason"] = "There is no judge: the answers were written, and nothing was scored."
        result["settings"]["judge"] = None if self.judge is None else self.judge.name
        if self.judge is not None:
            result["settings"] |= {"judge_runs": self.runs, "judge_words": self.marking.words}
        return result

    def _judged(self, judge: Judge, records: Sequence[Record], output: str | Path | None) -> dict[str, Any]:
        path, short = None, Path(judge.name).name
        if output is not None:
            path = Path(output).with_suffix(f".judge-{re.sub(r'[^A-Za-z0-9=+-]+', '-', short)}.jsonl")
        how = self.marking
        run: dict[str, Any] = {"task": self.name, "judge": judge.name, "words": how.words, "system": how.system}
        run |= {"temperature": how.temperature, "max_tokens": how.max_tokens}
        refused: list[dict[str, str]] = []
        figures: list[dict[str, Any]] = []
        with PredictionFile(path, run) as file:
            for number in range(1, self.runs + 1):
                marks = [
                    self._mark(judge, record, number, file, refused)
                    for record in tqdm(records, desc=f"{self.name}: {short}", unit="answers", delay=2)
                ]
                figures.append(self.marking.score(records, marks))
        result: dict[str, Any] = {key: sum(each[key] for each in figures) / self.runs for key in figures[0]}
        result["unjudged"] = refused
        if self.runs > 1:
            result["runs"] = [each[str(self.primary_metric)] for each in figures]
        return result

    def _mark(
        self, judge: Judge, record: Record, number: int, file: PredictionFile, refused: list[dict[str, str]]
    ) -> Any:
        """The mark of an answer in one of the runs."""
        prompt = None if record.prediction is None else self.marking.prompt(record)
        if prompt is None:
            return None
        digest = hashlib.sha256(prompt.encode()).hexdigest()[:16]
        for attempt in range(self.marking.tries):
            id = f"{record.id} run {number} try {attempt + 1}"
            reply = file.find(id, digest)
            if reply is None:
                reply = self._asked(judge, id, prompt, self.marking.temperature + HEAT * attempt)
                file.add([(digest, reply)])
            if reply.error is not None:
                refused.append({"id": id, "error": reply.error})
                return None
            mark = self.marking.read(record, reply.text)
            if mark is not None:
                return mark
        return None

    def _asked(self, judge: Judge, id: str, prompt: str, temperature: float) -> Record:
        how = self.marking
        try:
            reply = judge(prompt, system=how.system, temperature=temperature, max_tokens=how.max_tokens)
            return Record(id, reply, info={"temperature": temperature})
        except RefusedPromptError as error:
            return Record(id, None, error=str(error))
