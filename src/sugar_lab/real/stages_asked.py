"""Stages of the study in which models are asked: what retrieval adds, and whether a paragraph's place counts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from sugar_hf.data import Document, RetrievalSet
from sugar_hf.model import SugarForConditionalGeneration, SugarProcessor

from ..outcomes import Outcome, write_outcomes
from .frozen_states import make_states, read_states
from .head_rows import ASKED, CURVED, SEARCHER, joint_rows, longest_rows, row_named
from .head_study import scores_of
from .joint_training import by_embeddings
from .manuals import slices_of, text_of
from .real_answers import Search, answers, hits_of, kept, places, prompt, ranked, ways
from .short_questions import QUESTIONS, check_questions
from .stages_real import load_head, load_trained, write_study
from .study import MAX_LENGTH, Study

#: Which questions are asked, and the texts in front of each.
Given = tuple[list[int], list[list[str]]]


def measure_answers(study: Study, output: Path) -> Path:
    """Ask the questions in all ways, and write what was right."""
    check_questions(QUESTIONS, study.manuals)
    corpus = _searched(study)
    own = row_named(SEARCHER)
    asked = [Document(question.item, question.question) for question in QUESTIONS]
    model, processor = study.model()
    model.vlm.to(study.dtype)
    make_states(model, processor, asked, study.work / "states", study.model_facts(), MAX_LENGTH)
    states = read_states(study.work / "states")
    head = load_head(study, own, 0)

    own_set = RetrievalSet(asked, corpus, {question.item: {question.section: 1.0} for question in QUESTIONS})

    def by_head(questions: Sequence[str]) -> list[list[int]]:
        return ranked(scores_of(states, own_set, own, head, {}))

    searches: dict[str, Search] = {"own": kept(by_head), "minilm": kept(by_sentences(study, corpus))}
    given = {name: (list(range(len(QUESTIONS))), texts) for name, texts in ways(QUESTIONS, corpus, searches).items()}
    given |= places(QUESTIONS, corpus, searches["minilm"])
    said = _said(model, processor, given)
    outcomes = _right("real-answers", 0, given, said) + _found("real-answers", 0, searches, corpus)
    path = study.work / "answers.parquet"
    write_outcomes(path, outcomes)
    return write_study(output, "real_answers", [path], {"said": said, "corpus": len(corpus), **study.facts()})


def _searched(study: Study) -> list[Document]:
    """Return the sections of test pages, among which those are that answer the questions."""
    sets = study.sets("test")
    return [document for name in ("gimp/title", "grass/title") for document in sets[name].corpus]


def _said(
    model: SugarForConditionalGeneration, processor: SugarProcessor, given: Mapping[str, Given]
) -> dict[str, list[str]]:
    """Return what a model answers, by how it was asked."""
    said = {}
    for name, (numbers, texts) in given.items():
        questions = [QUESTIONS[number] for number in numbers]
        prompts = [prompt(each.question, found) for each, found in zip(questions, texts, strict=True)]
        said[name] = answers(model, processor, prompts)
    return said


def _right(study: str, seed: int, given: Mapping[str, Given], said: Mapping[str, list[str]]) -> list[Outcome]:
    """Return which answers are right, a row for each way of asking."""
    return [
        Outcome(study, name, seed, "answer", item, "hit", hit)
        for name, (numbers, _) in given.items()
        for item, hit in hits_of([QUESTIONS[number] for number in numbers], said[name]).items()
    ]


def _found(study: str, seed: int, searches: Mapping[str, Search], corpus: Sequence[Document]) -> list[Outcome]:
    """Return the rank of each question's section by each search."""
    place = {document.id: number for number, document in enumerate(corpus)}
    outcomes = []
    for name, search in searches.items():
        for question, hits in zip(QUESTIONS, search([each.question for each in QUESTIONS]), strict=True):
            right = place[question.section]
            rank = hits.index(right) + 1 if right in hits else math.inf
            outcomes.append(Outcome(study, name, seed, "section", question.item, "rank", rank))
    return outcomes


def by_sentences(study: Study, corpus: Sequence[Document]) -> Search:
    """Return the search of the encoder of sentences, which sees the words of sections."""

    def search(questions: Sequence[str]) -> list[list[int]]:
        questioned, known = (
            study.mapped.model.encode(list(texts), batch_size=32, show_progress_bar=False, normalize_embeddings=True)
            for texts in (questions, [text_of(slices_of(document)) for document in corpus])
        )
        return ranked(questioned @ known.T)

    return search


def measure_curve(study: Study, seeds: Iterable[int], output: Path) -> Path:
    """Ask trained models with the paragraph of the answer at each place, and write what was right.

    Beside the places there is, for each question, how much better the middle places do than the first and the last:
    a curve that is flat has 0.
    """
    corpus = _searched(study)
    given = places(QUESTIONS, corpus, kept(by_sentences(study, corpus)))
    folder = study.work / "curve"
    parts: list[Path] = []
    for seed in seeds:
        for row in (row for row in joint_rows() if row.name in CURVED):
            path = folder / f"{row.name}-{seed}.parquet"
            if not path.is_file():
                model, processor = load_trained(study, row, seed, "joint")
                model.vlm.to(study.dtype)
                write_outcomes(path, _curve("real-curve", model, processor, given, row.name, seed))
            parts.append(path)
    return write_study(output, "real_curve", parts, {"corpus": len(corpus), **study.facts()})


def _curve(
    study: str,
    model: SugarForConditionalGeneration,
    processor: SugarProcessor,
    given: Mapping[str, Given],
    row: str,
    seed: int,
) -> list[Outcome]:
    said = _said(model, processor, given)
    hits = {
        name: hits_of([QUESTIONS[number] for number in numbers], said[name]) for name, (numbers, _) in given.items()
    }
    outcomes = [
        Outcome(study, row, seed, name, item, "hit", hit)
        for name, items in hits.items()
        for item, hit in items.items()
    ]
    first, *middle, last = hits.values()
    for item in first:
        bend = np.mean([place[item] for place in middle]) - (first[item] + last[item]) / 2
        outcomes.append(Outcome(study, row, seed, "middle less ends", item, "score", 100 * float(bend)))
    return outcomes


def measure_asked(study: Study, seeds: Iterable[int], output: Path) -> Path:
    """Ask the models that were trained longest, as the others are: with what was found, and place by place.

    The one that was trained with the structure loss finds sections itself, by its own embeddings.
    """
    corpus = _searched(study)
    encoder = kept(by_sentences(study, corpus))
    at_places = places(QUESTIONS, corpus, encoder)
    parts: list[Path] = []
    for seed in seeds:
        for row in (row for row in longest_rows() if row.is_trained and row.name in ASKED):
            path = study.work / "asked" / f"{row.name}-{seed}.parquet"
            parts.append(path)
            if path.is_file():
                continue
            model, processor = load_trained(study, row, seed, "longest")
            model.vlm.to(study.dtype)
            outcomes = _curve("real-asked-curve", model, processor, at_places, row.name, seed)
            if row.loss is not None:
                searches: dict[str, Search] = {
                    "own": kept(by_embeddings(model, processor, corpus)),
                    "encoder": encoder,
                }
                found = ways(QUESTIONS, corpus, searches)
                given = {name: (list(range(len(QUESTIONS))), texts) for name, texts in found.items()}
                outcomes += _right("real-asked", seed, given, _said(model, processor, given))
                outcomes += _found("real-asked", seed, searches, corpus)
            write_outcomes(path, outcomes)
    return write_study(output, "real_asked", parts, {"corpus": len(corpus), **study.facts()})
