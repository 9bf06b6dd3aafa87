"""Retrieval tasks made of real documents: what belongs together in a manual, and stamps with their captions.

`python -m sugar_lab.real.real_tasks --packages FOLDER` counts what a study gets, and what was left out.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from sugar_hf.data import Document, RetrievalSet
from sugar_hf.data.relevance import ranks_of

from .manuals import (
    FORMS,
    SPLITS,
    STUDIED,
    Manual,
    Slices,
    Split,
    content_key,
    page_of,
    page_split,
    picture_digest,
    plain,
    read_manual,
    slices_of,
    text_of,
    title_of,
)
from .packages import get_packages

#: What a manual asks, in the order of tables.
KINDS = ("title", "rest", "next", "next_seen", "caption", "picture")
#: What the stamps ask: a caption for its picture, a picture for its caption.
STAMP_KINDS = ("stamp_caption", "stamp_picture")
POOL = 1000

_PARAGRAPH = 40  # characters from which a text is one
_CAPTION = range(10, 201)  # characters
_TEXTS, _PICTURES = 2, 4  # in front of the next paragraph
_MOST_ANSWERS = 5  # with more, a query asks for nothing in particular
_FIGURE = "Figure: "


@dataclass(frozen=True)
class RealTask:
    """A task.

    Attributes:
        name: `manual/kind`, or `stamps/kind`.
        kind: Of `KINDS` or `STAMP_KINDS`.
        split: That of the queries. Candidates are those of validation and test, filled up from training.
        data: Queries, candidates and relevance. The id of a query is that of its item, the same in all runs.
        counts: What was made and what was left out.
    """

    name: str
    kind: str
    split: Split
    data: RetrievalSet
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Pair:
    """A query and what answers it.

    Attributes:
        item: The id of the query.
        query: What is asked with.
        target: The id of what answers it.
        answer: That itself.
        split: That of the page.
        seen: Slices of the query as candidates, by id.
    """

    item: str
    query: Slices
    target: str
    answer: Slices
    split: Split
    seen: dict[str, Slices] = field(default_factory=dict)


def manual_tasks(manual: Manual, split: Split, *, kinds: Sequence[str] = KINDS, pool: int = POOL) -> list[RealTask]:
    """The tasks of a manual.

    | kind | query | what answers it |
    |---|---|---|
    | `title` | the path of headings | the section, which does not hold the path |
    | `rest` | the first paragraph of a section | what follows it there |
    | `next` | up to two texts, then up to four pictures with their captions | the next paragraph |
    | `next_seen` | the same | the same, among candidates that hold each text and picture of the query, too |
    | `caption` | the path of headings and a picture | its caption |
    | `picture` | a caption | the path of headings and the picture |

    A candidate that says the same as what answers a query, or answers one that asks the same, is relevant, too. Left
    out and counted are queries whose answer stands word for word in a training section, or is a picture of one, and
    queries that ask the same as an earlier one.

    Args:
        manual: The manual.
        split: The pages that the queries come from.
        kinds: The kinds.
        pool: Candidates that there are at least, if the manual has so many: what answers a query of validation or
            test, then other paragraphs of these pages where paragraphs answer, then what would answer one of training.
    """
    known = _known(manual.split("train"))
    nexts, captions = list(_nexts(manual)), list(_captions(manual))
    made = {
        "title": list(_titles(manual)),
        "rest": list(_rests(manual)),
        "next": nexts,
        "next_seen": nexts,
        "caption": captions,
        "picture": list(_turned(captions)),
    }
    paragraphs = {
        f"{section.id}@{number}": [each]
        for section in manual.split("validation", "test")
        for number, each in enumerate(slices_of(section))
        if _is_paragraph(each)
    }
    fillers = {kind: paragraphs if kind in ("next", "next_seen") else {} for kind in KINDS}
    return [_task(f"{manual.name}/{kind}", kind, split, made[kind], known, pool, fillers[kind]) for kind in kinds]


def read_stamps(content: Path) -> tuple[list[Document], Counter[str]]:
    """Read the stamps of Tux Paint that have an English caption of their own, as `[picture, caption]`.

    Args:
        content: The folder of the stamps.

    Returns:
        The stamps, and what was read and left out.
    """
    if not content.is_dir():
        raise FileNotFoundError(f"no folder {str(content)!r}: give the content of tuxpaint-stamps-default.")
    counts: Counter[str] = Counter()
    found: list[tuple[str, Path, str]] = []
    for picture in sorted(content.rglob("*.png")):
        text = picture.with_suffix(".txt")
        caption = text.read_text(encoding="utf-8").splitlines()[0].strip() if text.is_file() else ""
        if not caption:
            counts["stamps without a caption"] += 1
            continue
        found.append((f"stamps/{picture.relative_to(content).with_suffix('').as_posix()}", picture, caption))
    same = Counter(plain(caption) for _, _, caption in found)
    pictures = Counter(picture_digest(picture) for _, picture, _ in found)
    stamps = []
    for name, picture, caption in found:
        if same[plain(caption)] > 1 or pictures[picture_digest(picture)] > 1:
            counts["stamps whose caption or picture is another's, too"] += 1
        else:
            stamps.append(Document(name, [picture, caption], {"manual": "stamps", "file": plain(caption)}))
    counts["stamps"] = len(stamps)
    return stamps, counts


def split_stamps(stamps: Iterable[Document], *splits: Split) -> list[Document]:
    """The stamps of these splits, by a digest of the caption."""
    return [stamp for stamp in stamps if page_split("stamps", page_of(stamp)) in splits]


def stamp_tasks(stamps: Sequence[Document], split: Split) -> list[RealTask]:
    """A caption for its picture, and a picture for its caption, among all stamps.

    Args:
        stamps: All stamps.
        split: That of the queries.
    """
    pairs = []
    for stamp in stamps:
        picture, caption = slices_of(stamp)
        place = page_split("stamps", page_of(stamp))
        pairs.append(Pair(stamp.id, [picture], f"{stamp.id}@caption", [caption], place))
    known = _known(split_stamps(stamps, "train"))
    return [
        _task("stamps/stamp_caption", "stamp_caption", split, pairs, known, len(pairs), {}),
        _task("stamps/stamp_picture", "stamp_picture", split, list(_turned(pairs)), known, len(pairs), {}),
    ]


def real_tasks(
    manuals: Iterable[Manual],
    stamps: Sequence[Document],
    split: Split,
    *,
    kinds: Sequence[str] = KINDS,
    pool: int = POOL,
) -> dict[str, RealTask]:
    """All tasks of a split, by name; see [`manual_tasks`] and [`stamp_tasks`]."""
    tasks = [task for manual in manuals for task in manual_tasks(manual, split, kinds=kinds, pool=pool)]
    if stamps:
        tasks += stamp_tasks(stamps, split)
    return {task.name: task for task in tasks}


def samples_of(tasks: Iterable[RealTask]) -> dict[str, Document]:
    """What has to be embedded for these tasks, each content once, by content."""
    found: dict[str, Document] = {}
    for task in tasks:
        for document in (*task.data.queries, *task.data.corpus):
            found.setdefault(content_key(slices_of(document)), document)
    return found


def item_ranks(data: RetrievalSet, scores: np.ndarray) -> dict[str, int]:
    """The rank of the best relevant candidate of each query, from 1.

    Equal scores rank by id, from the last to the first, as [`RetrievalSet.metrics`] has them.

    Args:
        data: The task's queries, candidates and relevance.
        scores: How well each candidate fits each query, both in their order.

    Shape:
        scores (q, n).
    """
    order = sorted(range(len(data.corpus)), key=lambda i: data.corpus[i].id, reverse=True)
    place = {data.corpus[i].id: number for number, i in enumerate(order)}
    ranks = {}
    for row, query in zip(scores, data.queries, strict=True):
        relevant = [place[name] for name, grade in data.relevance[query.id].items() if grade > 0]
        ranks[query.id] = int(ranks_of(row[order], relevant).min()) + 1
    return ranks


def _task(
    name: str, kind: str, split: Split, pairs: list[Pair], known: set[str], pool: int, filler: dict[str, Slices]
) -> RealTask:
    counts: Counter[str] = Counter()
    own = [pair for pair in pairs if pair.split != "train"]
    corpus = {pair.target: pair.answer for pair in own}
    counts["candidates that answer"] = len(corpus)
    corpus |= _some({name: each for name, each in filler.items() if name not in corpus}, pool - len(corpus))
    training = _some({pair.target: pair.answer for pair in pairs if pair.split == "train"}, pool - len(corpus))
    counts["candidates from training"] = len(training)
    corpus |= training
    if kind == "next_seen":
        corpus = {name: each for pair in own for name, each in pair.seen.items()} | corpus
    by_content: dict[str, set[str]] = {}
    for identity, sample in corpus.items():
        by_content.setdefault(content_key(sample), set()).add(identity)
    by_query: dict[str, set[str]] = {}
    for pair in pairs:
        if pair.target in corpus:
            by_query.setdefault(content_key(pair.query), set()).update(by_content[content_key(pair.answer)])
    queries: dict[str, Document] = {}
    relevance: dict[str, dict[str, float]] = {}
    for pair in own:
        if pair.split != split:
            continue
        counts["queries made"] += 1
        query, answer = content_key(pair.query), content_key(pair.answer)
        right = by_query[query]
        if _is_known(pair.answer, known):
            counts["queries left out: the answer stands in training"] += 1
        elif answer in {content_key(each) for each in pair.seen.values()}:
            counts["queries left out: the answer stands in the query"] += 1
        elif query in queries:
            counts["queries left out: asked before"] += 1
        elif len(right) > _MOST_ANSWERS:
            counts[f"queries left out: more than {_MOST_ANSWERS} answers"] += 1
        else:
            queries[query] = Document(pair.item, pair.query)
            relevance[pair.item] = dict.fromkeys(sorted(right), 1.0)
    counts["queries"], counts["candidates"] = len(queries), len(corpus)
    documents = [Document(identity, sample) for identity, sample in sorted(corpus.items())]
    return RealTask(name, kind, split, RetrievalSet(list(queries.values()), documents, relevance), counts)


def _some(candidates: dict[str, Slices], count: int) -> dict[str, Slices]:
    """The first candidates in the order of a digest of their ids."""
    order = sorted(candidates, key=lambda name: hashlib.sha256(name.encode()).digest())
    return {name: candidates[name] for name in order[: max(0, count)]}


def _known(sections: Iterable[Document]) -> set[str]:
    """What stands in training: each text, all texts of a section together, and each picture."""
    found = set()
    for section in sections:
        found.add(plain(text_of(slices_of(section))))
        found.update(content_key([each]) for each in slices_of(section))
    return found


def _is_known(answer: Slices, known: set[str]) -> bool:
    pictures = [each for each in answer if isinstance(each, Path)]
    text = plain(text_of(answer))
    if len(answer) <= 2 and pictures:  # a picture in its context
        return any(content_key([each]) in known for each in pictures)
    return text in known if text else all(content_key([each]) in known for each in pictures)


def _is_paragraph(block: str | Path) -> bool:
    if not isinstance(block, str) or len(block) < _PARAGRAPH:
        return False
    return "\n" in block or not block.startswith(_FIGURE)


def _sections(manual: Manual) -> Iterator[tuple[Document, Split]]:
    for section in manual.sections:
        yield section, page_split(manual.name, page_of(section))


def _titles(manual: Manual) -> Iterator[Pair]:
    for section, split in _sections(manual):
        yield Pair(f"{section.id}@title", [title_of(section)], section.id, slices_of(section), split)


def _rests(manual: Manual) -> Iterator[Pair]:
    for section, split in _sections(manual):
        first = next((i for i, each in enumerate(slices_of(section)) if _is_paragraph(each)), None)
        if first is None:
            continue
        rest = slices_of(section)[first + 1 :]
        if len(text_of(rest)) >= _PARAGRAPH:
            yield Pair(f"{section.id}@first", [slices_of(section)[first]], f"{section.id}@rest", rest, split)


def _nexts(manual: Manual) -> Iterator[Pair]:
    for section, split in _sections(manual):
        blocks = slices_of(section)
        number = 0
        while number < len(blocks):
            if not isinstance(blocks[number], Path):
                number += 1
                continue
            start, end = number, number
            while start > 0 and number - start < _TEXTS and isinstance(blocks[start - 1], str):
                start -= 1
            while end < len(blocks) and not _is_paragraph(blocks[end]):
                end += 1
            pictures = sum(isinstance(each, Path) for each in blocks[number:end])
            # with more pictures the next paragraph says less of the first
            if start < number and end < len(blocks) and pictures <= _PICTURES:
                seen = {f"{section.id}@{i}": [blocks[i]] for i in range(start, end)}
                yield Pair(
                    f"{section.id}@{start}-{end}", blocks[start:end], f"{section.id}@{end}", [blocks[end]], split, seen
                )
            number = end


def _captions(manual: Manual) -> Iterator[Pair]:
    for section, split in _sections(manual):
        blocks = slices_of(section)
        for number, picture in enumerate(blocks):
            if not isinstance(picture, Path):
                continue
            place = _caption_of(blocks, number)
            if place is not None:
                query: Slices = [title_of(section), picture]
                yield Pair(f"{section.id}@{number}", query, f"{section.id}@{place}", [blocks[place]], split)


def _caption_of(blocks: Sequence[str | Path], number: int) -> int | None:
    """Where the caption of a picture stands: behind it, or the title of a figure in front of it."""

    def text(place: int) -> str:
        found = blocks[place] if 0 <= place < len(blocks) else ""
        return found if isinstance(found, str) and "\n" not in found else ""

    def is_caption(found: str) -> bool:
        words = found.removeprefix(_FIGURE)
        return len(words) in _CAPTION and " " in words and not words.endswith((":", ","))

    before, after = text(number - 1), text(number + 1)
    is_last = number + 2 >= len(blocks) or not isinstance(blocks[number + 2], Path)
    titled = before.startswith(_FIGURE) and is_caption(before)
    if titled and (is_last or not after):
        follows = number + 1 < len(blocks) and isinstance(blocks[number + 1], Path)
        return None if follows else number - 1  # a title of several pictures is the caption of none
    return number + 1 if is_caption(after) else None


def _turned(pairs: Iterable[Pair]) -> Iterator[Pair]:
    for pair in pairs:
        yield Pair(f"{pair.item}@turned", pair.answer, f"{pair.item}@picture", pair.query, pair.split)


def main(
    packages: Annotated[list[Path] | None, typer.Option(help="Folders that hold packages; repeatable.")] = None,
    work: Annotated[Path, typer.Option(help="Folder of what is unpacked.")] = Path("runs/real"),
) -> None:
    """Count the sections, stamps and items of each split."""
    names = [*(FORMS[name].package for name in STUDIED), "tuxpaint-stamps-default"]
    folders = get_packages(work, packages or [], names)
    manuals = [read_manual(name, folders[FORMS[name].package]) for name in STUDIED]
    stamps, counts = read_stamps(folders["tuxpaint-stamps-default"])
    for manual in manuals:
        typer.echo(f"{manual.name}: {_said(manual.counts)}")
        for split in SPLITS:
            chosen = [slices_of(section) for section in manual.split(split)]
            pictures = sum(isinstance(each, Path) for blocks in chosen for each in blocks)
            typer.echo(f"  {split}: {len(chosen)} sections, {sum(map(len, chosen))} slices, {pictures} pictures")
    typer.echo(f"stamps: {_said(counts)}, {len(split_stamps(stamps, 'train'))} to train on")
    tasks = [task for split in SPLITS[1:] for task in real_tasks(manuals, stamps, split).values()]
    for task in tasks:
        typer.echo(f"{task.name} {task.split}: {_said(task.counts)}")
    typer.echo(f"{len(samples_of(tasks))} samples in all tasks, each content once")


def _said(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.items())


if __name__ == "__main__":
    typer.run(main)
