"""Hard negatives for pairs: what an index finds for a query, and what is known not to answer it."""

import base64
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from .._files import atomic_path, atomic_write
from ..data import DOCUMENT_ROLE, BadSampleError, Document
from ..data.containers import RawRow, iter_rows
from ..data.documents import from_schema, sample_digest
from ..data.formats import GivenImages, Images, ImageSource
from ..data.pair_rows import PairRow, read_pair
from ..data.schema import is_empty, looks_like_media
from ..model.samples_sugar import parse_sample
from ..structure import SliceFeatures, Teacher, label_matrix
from .embedder import SugarEmbedder
from .hits import Hit
from .index import SugarIndex

__all__ = ["MiningReport", "MiningRules", "mine_negatives"]

PART_ROWS = 256
SPARE = 8  # hits beyond the ranks that are asked for: copies of positives take no rank
CONTAINS = "contains a positive"
SAMPLINGS = ("top", "random")
SCORES = ("index", "teacher")
_POSITIVES = ("positives", "positive", "pos", "sentence2", "pos_text", "pos_image_path")


@dataclass(frozen=True)
class MiningRules:
    """What makes a document that was found a negative.

    Args:
        count: Negatives of a query.
        ranks: First and last rank that are looked at, from 1. Positives, the query itself, copies of either, and
            documents that have all slices of a positive are no candidates and have no rank.
        margin: A negative's score is at least this much below that of each positive.
        relative_margin: A negative's score is at least this share below that of each positive.
        min_score: The least score of a negative.
        max_score: The largest score of a negative.
        teacher_threshold: With a teacher: the largest similarity of a negative to the query and to a positive, as the
            teacher sees them. What is above may well be an answer that nobody has marked.
        sampling: `"top"`: the best that are left; `"random"`: any of them.
        seed: For `"random"`. What is drawn for a query depends on nothing but this and the query's id.
        scores: Write a score for each positive and negative, as soft targets: `"index"`: of the model, `"teacher"`:
            the teacher's similarity to the query.

    Raises:
        ValueError: A value makes no sense.
    """

    count: int = 5
    ranks: tuple[int, int] = (10, 50)
    margin: float | None = None
    relative_margin: float | None = None
    min_score: float | None = None
    max_score: float | None = None
    teacher_threshold: float = 0.9
    sampling: str = "top"
    seed: int = 0
    scores: str | None = None

    def __post_init__(self) -> None:
        first, last = self.ranks
        if not 1 <= first <= last:
            raise ValueError(f"ranks={first}-{last}: give a first rank of 1 or more, and a last one not before it.")
        if not 1 <= self.count <= last - first + 1:
            raise ValueError(f"count={self.count}: ranks {first} to {last} have {last - first + 1} documents.")
        if self.sampling not in SAMPLINGS:
            raise ValueError(f"sampling={self.sampling!r}: give one of {', '.join(SAMPLINGS)}.")
        if self.scores not in (None, *SCORES):
            raise ValueError(f"scores={self.scores!r}: give one of {', '.join(SCORES)}, or None.")
        for name in ("margin", "relative_margin"):
            value = vars(self)[name]
            if value is not None and not value >= 0:
                raise ValueError(f"{name}={value}: give 0 or more.")

    @property
    def needs_positives(self) -> bool:
        """Whether positives have to be embedded."""
        return self.margin is not None or self.relative_margin is not None or self.scores == "index"

    def fault(self, score: float, least: float | None) -> str | None:
        """Name the rule that a score breaks, beside the least score of a positive."""
        if self.min_score is not None and score < self.min_score:
            return "below min_score"
        if self.max_score is not None and score > self.max_score:
            return "above max_score"
        if least is None:
            return None
        if self.margin is not None and score > least - self.margin:
            return "within margin"
        if self.relative_margin is not None and score > least - abs(least) * self.relative_margin:
            return "within relative_margin"
        return None


@dataclass
class MiningReport:
    """What became of all pairs and candidates.

    Attributes:
        rows: Rows that were written.
        negatives: Negatives that were found.
        short: Rows with fewer than were asked for, those without any included.
        empty: Rows without any.
        left_out: Candidates that were left out, by rule.
        skipped: Rows that cannot be read or embedded, with the reason.
    """

    rows: int = 0
    negatives: int = 0
    short: int = 0
    empty: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    skipped: list[BadSampleError] = field(default_factory=list)

    def add(self, counts: Mapping[str, Any]) -> None:
        """Add the counts of a part, and its rows that cannot be embedded."""
        for name in ("rows", "negatives", "short", "empty"):
            vars(self)[name] += counts[name]
        self.left_out.update(counts["left_out"])
        self.skipped += [BadSampleError(**fault) for fault in counts["faults"]]

    def counts(self) -> dict[str, Any]:
        """Return all counts, fit for JSON."""
        names = ("rows", "negatives", "short", "empty")
        found = {name: vars(self)[name] for name in names}
        return {**found, "left_out": dict(self.left_out), "skipped": len(self.skipped)}

    def __str__(self) -> str:
        lines = [f"rows: {self.rows}, negatives: {self.negatives}"]
        if self.short:
            lines.append(f"rows with fewer than asked for: {self.short}, of these without any: {self.empty}")
        if self.skipped:
            lines.append(f"rows that cannot be read or embedded, and are not written: {len(self.skipped)}")
        lines += [f"candidates left out, {rule}: {count}" for rule, count in sorted(self.left_out.items())]
        return "\n".join(lines)


def mine_negatives(
    pairs: str | Path | Iterable[Mapping[str, Any]],
    index: SugarIndex,
    output: str | Path,
    *,
    teacher: Teacher | None = None,
    prompt: str | None = None,
    image_root: str | Path | None = None,
    on_error: str = "raise",
    overwrite: bool = False,
    part_rows: int = PART_ROWS,
    show_progress: bool = True,
    **rules: Any,
) -> MiningReport:
    """Write pairs with negatives that an index finds for their queries, as lines of JSON to train on.

    ```python
    mine_negatives("pairs.jsonl", index, "mined.jsonl", ranks=(10, 50), margin=0.05, teacher=teacher)
    rows = load_dataset_file("mined.jsonl")
    ```

    A row may name its positives by `positive_ids`, ids of documents of the index, beside or instead of `positives`.
    Negatives of its own stay in front. What was done is kept beside the output, part by part, until all is: a call
    that was stopped goes on when it is repeated.

    Args:
        pairs: A file of rows as [`read_pair`] reads them, or such rows.
        index: Where negatives are found, with its embedder.
        output: The `.jsonl` file. Images that the pairs name stay names, relative to `image_root` if they lie in it;
            all others are written in base64.
        teacher: Looks for false negatives; see `teacher_threshold` of [`MiningRules`].
        prompt: The instruction of rows that have none of their own: their queries are embedded with it, and it is
            written, so that training has it, too.
        image_root: Folder of the images that a file names; its own folder when `None`.
        on_error: `"raise"` at a row that cannot be read or embedded, or `"skip"` and count it. A candidate that the
            teacher cannot embed is left out then.
        overwrite: Replace an output that is there.
        part_rows: Rows between two points from which a stopped call goes on.
        show_progress: Show a bar.
        **rules: See [`MiningRules`].

    Raises:
        BadSampleError: A row has no positives, names an unknown id, is too long, or is broken otherwise.
        FileExistsError: The output is there.
        ValueError: A rule makes no sense, the index has no embedder, or there are no pairs.
    """
    miner = _Miner(index, MiningRules(**rules), teacher, prompt, on_error == "skip")
    output = Path(output)
    if output.suffix != ".jsonl":
        raise ValueError(f"{output}: negatives are written as lines of JSON; give a name with .jsonl.")
    if output.exists() and not overwrite:
        raise FileExistsError(f"{output} is there. Remove it, or overwrite it.")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error={on_error!r}: give 'raise' or 'skip'.")
    if part_rows < 1:
        raise ValueError(f"part_rows={part_rows}: give 1 or more.")
    root = None if image_root is None else Path(os.path.abspath(image_root))
    if isinstance(pairs, str | Path):
        root = root or Path(os.path.abspath(pairs)).parent
        raws: Iterable[RawRow] = iter_rows(Path(pairs), show_progress=False, coco="pairs")
        images: Images = ImageSource(str(root))
    else:
        raws = (RawRow("pairs", number, None, row) for number, row in enumerate(pairs))
        images = GivenImages()
    report = MiningReport()
    rows = miner.read(raws, images, report.skipped if on_error == "skip" else None)
    folder = output.with_name(f"{output.name}.parts")
    written: list[Path] = []
    with tqdm(desc="Mining", unit="rows", disable=not show_progress) as bar:
        while part := list(islice(rows, part_rows)):
            place = folder / f"{len(written):06}-{miner.key(part)}.jsonl"
            counted = place.with_suffix(".json")  # written behind the lines: with it the part is whole
            if counted.exists():
                counts = json.loads(counted.read_text(encoding="utf-8"))
                if counts["faults"] and on_error == "raise":
                    raise BadSampleError(**counts["faults"][0])
                bar.update(len(part))
            else:
                lines, counts = miner.mine(part, root, bar)
                atomic_write(place, "".join(lines), (counted, json.dumps(counts)))
            report.add(counts)
            written.append(place)
    if not report.rows:
        shutil.rmtree(folder, ignore_errors=True)
        first = f": {len(report.skipped)} were left out. The first: {report.skipped[0]}" if report.skipped else "."
        raise ValueError(f"there are no pairs to mine negatives for{first}")
    with atomic_path(output) as temporary, temporary.open("wb") as file:
        for place in written:
            with place.open("rb") as lines_of_part:
                shutil.copyfileobj(lines_of_part, file)
    shutil.rmtree(folder)
    return report


@dataclass(frozen=True)
class _Sample:
    """A sample, and what is the same for copies of it: digests of its texts and of the bytes of its images."""

    document: Document
    digest: str
    slices: frozenset[str]  # digests, whatever the roles
    score: float = 0.0

    @classmethod
    def of(cls, document: Document, split_sentences: bool) -> "_Sample":
        row = document.to_row()
        slices = set()
        for message in parse_sample(from_schema(row["messages"], row["images"]), document.id, split_sentences):
            for part in message.parts:
                texts = [part.text[start:end] for start, end in part.spans]
                slices |= {sample_digest({"messages": [text], "images": []}) for text in texts}
                if part.is_image:
                    slices.add(sample_digest({"messages": [], "images": [part.image]}))
        return cls(document, sample_digest(row), frozenset(slices))


@dataclass
class _Pair:
    """A row, and what of it is compared."""

    row: PairRow
    prompted: _Sample  # the query with its instruction
    query: _Sample
    positives: list[_Sample]
    negatives: list[_Sample]  # the row's own
    ids: frozenset[str]  # of positives in the index
    place: dict[str, Any]  # where it stands: file, line and row
    vector: np.ndarray | None = None  # of the query
    fault: BadSampleError | None = None
    candidates: list[_Sample] = field(default_factory=list)
    chosen: list[_Sample] = field(default_factory=list)
    known_scores: list[float] = field(default_factory=list)  # of positives, then negatives of its own

    @property
    def barred(self) -> dict[str, str]:
        """By the digest of what can be no negative: why."""
        found = {each.digest: "copy of a negative of the row" for each in self.negatives}
        found[self.query.digest] = "the query itself"
        return found | {each.digest: "positive" for each in self.positives}


class _Miner:
    def __init__(
        self, index: SugarIndex, rules: MiningRules, teacher: Teacher | None, prompt: str | None, skips: bool
    ) -> None:
        if index.embedder is None:
            raise ValueError(
                f"{index.folder} was opened without a model. Open it with SugarIndex.load(folder, embedder)."
            )
        if rules.scores == "teacher" and teacher is None:
            raise ValueError("scores='teacher' needs a teacher.")
        self.index, self.rules, self.teacher, self.prompt, self.skips = index, rules, teacher, prompt, skips
        self.embedder: SugarEmbedder = index.embedder
        # of the teacher, by the digest of a sample: what it sees, or why it cannot
        self.columns: dict[str, dict[str, Any]] = {}
        self.unseen: dict[str, str] = {}
        self.found: dict[str, tuple[str, frozenset[str]]] = {}  # by id: digests of a document and of its slices

    # ---- Rows ----

    def read(self, raws: Iterable[RawRow], images: Images, skipped: list[BadSampleError] | None) -> Iterator[_Pair]:
        for raw in raws:
            try:
                if raw.error is not None:
                    raise raw.error
                yield self._read(raw, images)
            except BadSampleError as error:
                name = raw.value.get("id") if isinstance(raw.value, Mapping) else None
                _put(error, _place(raw)).at(sample=None if name is None else str(name))
                if skipped is None:
                    raise
                skipped.append(error)

    def _read(self, raw: RawRow, images: Images) -> _Pair:
        if not isinstance(raw.value, Mapping):
            raise BadSampleError(f"expected an object, got a {type(raw.value).__name__}")
        value = {name: each for name, each in raw.value.items() if name != "positive_ids"}
        ids = self._ids(raw.value.get("positive_ids"))
        known = [self.index.get(name).to_row() for name in ids]
        found = [{"messages": each["messages"], "images": each["images"]} for each in known]
        has_own = any(not is_empty(value.get(name)) for name in _POSITIVES)
        if found and not has_own:
            value["positives"] = found
        row = read_pair(value, images, name=f"{Path(raw.file).stem}-{raw.row}", source=f"{raw.file}#{raw.row}")
        if found and has_own:
            row = replace(row, positives=[*row.positives, *found])
        if row.instruction is None and self.prompt:
            row = replace(row, instruction=self.prompt)
        if row.scores is not None and self.rules.scores is None:
            mend = "Have scores written for all of them (scores=), or leave the column out"
            raise BadSampleError("the row has scores, and new negatives would have none", field="scores", mend=mend)
        prompted, *others = [self._sample(f"{row.id[:200]} {name}", each) for name, each in row.samples()]
        query = prompted if row.instruction is None else self._sample(f"{row.id[:200]} query", row.query)
        positives = list({each.digest: each for each in others[: len(row.positives)]}.values())
        return _Pair(row, prompted, query, positives, others[len(row.positives) :], frozenset(ids), _place(raw))

    def _sample(self, name: str, sample: Mapping[str, Any]) -> _Sample:
        document = Document(name, from_schema(sample["messages"], sample["images"]))
        return _Sample.of(document, self.embedder.split_sentences)

    def _refuse(self, pair: _Pair, error: BadSampleError) -> None:
        """Leave a row out that cannot be embedded."""
        pair.fault = _put(error, pair.place)
        if not self.skips:
            raise pair.fault

    def _ids(self, given: Any) -> list[str]:
        if is_empty(given):
            return []
        if not isinstance(given, list | tuple) or not all(isinstance(each, str) for each in given):
            raise BadSampleError("expected a list of ids", field="positive_ids")
        for name in given:
            if name not in self.index:
                mend = "Build the index of all positives, or give them under `positives`"
                raise BadSampleError(f"the index has no document {name!r}", field="positive_ids", mend=mend)
        return list(given)

    def key(self, part: Sequence[_Pair]) -> str:
        """Return a digest of all that the lines of a part depend on."""
        manifest = self.index.store.snapshot.manifest
        settings = {
            "rules": asdict(self.rules),
            "index": [manifest.uid, manifest.generation, manifest.write],
            "model": self.embedder.describe(),
            "teacher": None if self.teacher is None else self.teacher.fingerprint,
            "rows": [[each.row.id, each.prompted.digest, each.barred, sorted(each.ids)] for each in part],
            "slices": [[sorted(positive.slices) for positive in each.positives] for each in part],
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:24]

    # ---- Candidates ----

    def mine(self, part: Sequence[_Pair], root: Path | None, bar: tqdm) -> tuple[list[str], dict[str, Any]]:
        """Find the negatives of some rows; returns lines of JSON, and counts."""
        report = MiningReport()
        self.columns, self.unseen, self.found = {}, {}, {}
        self._embed(part)
        self._find(_usable(part), report)
        waiting = [pair for pair in _usable(part) if pair.candidates]
        bar.update(len(part) - len(waiting))
        while waiting:  # as many candidates of each row at a time as it lacks: most are never looked at
            self._teach([each for pair in waiting for each in (pair.query, *pair.positives, *self._next(pair))])
            for pair in waiting:
                if self._is_seen(pair, pair.positives):
                    self._choose(pair, report)
            left = [pair for pair in _usable(waiting) if pair.candidates and len(pair.chosen) < self.rules.count]
            bar.update(len(waiting) - len(left))
            waiting = left
        if self.rules.scores == "teacher":
            self._teach([each for pair in _usable(part) for each in (pair.query, *pair.positives, *pair.negatives)])
            for pair in _usable(part):
                self._is_seen(pair, [*pair.positives, *pair.negatives])
        kept = _usable(part)
        for pair in kept:
            report.rows += 1
            report.negatives += len(pair.chosen)
            report.short += len(pair.chosen) < self.rules.count
            report.empty += not pair.chosen
        faults = [vars(pair.fault) for pair in part if pair.fault is not None]
        lines = [json.dumps(self._line(pair, root), ensure_ascii=False) + "\n" for pair in kept]
        return lines, {**report.counts(), "faults": faults}

    def _embed(self, part: Sequence[_Pair]) -> None:
        """Embed the queries, and score what the rows bring along, if rules or scores need it."""
        for pair, vectors in zip(part, self._embedded([pair.prompted for pair in part]), strict=True):
            if isinstance(vectors, BadSampleError):
                self._refuse(pair, vectors)
            else:
                pair.vector = vectors[-1]
        if not self.rules.needs_positives:
            return
        known = [(pair, each) for pair in _usable(part) for each in (*pair.positives, *pair.negatives)]
        for (pair, _), vectors in zip(known, self._embedded([each for _, each in known]), strict=True):
            if isinstance(vectors, BadSampleError):
                self._refuse(pair, vectors)
            else:
                pair.known_scores.append(float((vectors @ pair.vector).max()))

    def _embedded(self, samples: Sequence[_Sample]) -> list[np.ndarray | BadSampleError]:
        """Return the vectors of each sample, or why it has none."""
        errors: list[BadSampleError] = []
        found = self.embedder.embed_documents([each.document for each in samples], skipped=errors)
        faults = iter(errors)
        return [next(faults) if vectors is None else vectors for vectors in found]

    def _find(self, part: Sequence[_Pair], report: MiningReport) -> None:
        """Give each row its candidates: what is found within the ranks and breaks no rule about scores."""
        if not part:
            return
        most = self.rules.ranks[1] + SPARE + 2 * max(len(pair.barred) for pair in part)
        short = self._search(part, most, report)
        for pair in short:  # alone, as the documents that contain a positive may be many
            count = most
            while self._search([pair], count := 4 * count, report):
                pass

    def _search(self, part: Sequence[_Pair], count: int, report: MiningReport) -> list[_Pair]:
        """Find the candidates of some rows; returns the rows whose ranks reach beyond so many hits."""
        queries = np.stack([pair.vector for pair in part if pair.vector is not None])
        documents = max(1, len(self.index))
        found = self.index.search_vectors(queries, min(count, documents))
        looked = zip(part, found, strict=True)
        return [pair for pair, hits in looked if not self._look(pair, hits, count >= documents, report)]

    def _look(self, pair: _Pair, hits: Sequence[Hit], are_all: bool, report: MiningReport) -> bool:
        """Choose candidates among hits. Nothing is done if the ranks reach beyond them and there are more."""
        first, last = self.rules.ranks
        least = min(pair.known_scores[: len(pair.positives)], default=None)
        candidates: list[_Sample] = []
        left_out: Counter[str] = Counter()
        rank, seen = 0, pair.barred
        for hit in hits:
            sample = self._sample_of(hit)
            reason = "positive" if hit.id in pair.ids else seen.get(sample.digest)
            if reason is None and any(each.slices <= sample.slices for each in pair.positives):
                reason = CONTAINS
            if reason is None:
                rank += 1
                if rank > last:
                    break
                seen[sample.digest] = "copy of a better candidate"
                if rank < first:
                    continue
                reason = self.rules.fault(hit.score, least)
            if reason is None:
                candidates.append(sample)
            else:
                left_out[reason] += 1
        if rank < last and not are_all:
            return False
        if self.rules.sampling == "random":
            name = hashlib.blake2b(pair.row.id.encode(), digest_size=8).digest()
            random = np.random.default_rng((self.rules.seed, int.from_bytes(name, "big")))
            candidates = [candidates[i] for i in random.permutation(len(candidates))]
        pair.candidates = candidates
        report.left_out.update(left_out)
        return True

    def _sample_of(self, hit: Hit) -> _Sample:
        """Return what was found with its digests, which are computed once in a part."""
        if hit.id not in self.found:
            sample = _Sample.of(hit.document, self.embedder.split_sentences)
            self.found[hit.id] = sample.digest, sample.slices
        return _Sample(hit.document, *self.found[hit.id], hit.score)

    def _next(self, pair: _Pair) -> list[_Sample]:
        return pair.candidates[: self.rules.count - len(pair.chosen)]

    def _choose(self, pair: _Pair, report: MiningReport) -> None:
        """Take the next candidates, but those that are too much like an answer for the teacher."""
        some = self._next(pair)
        pair.candidates = pair.candidates[len(some) :]
        if self.teacher is None:
            pair.chosen += some
            return
        if unseen := sum(each.digest in self.unseen for each in some):
            report.left_out["the teacher cannot embed it"] += unseen
            some = [each for each in some if each.digest in self.columns]
        if not some:
            return
        answers = [pair.query, *pair.positives]
        alike = self._similarities(answers, some).max(axis=0)
        for each, similarity in zip(some, alike.tolist(), strict=True):
            if similarity > self.rules.teacher_threshold:
                report.left_out["too alike for the teacher"] += 1
            else:
                pair.chosen.append(each)

    # ---- Teacher ----

    def _teach(self, samples: Iterable[_Sample]) -> None:
        """Have the teacher embed what it has not seen of a part."""
        if self.teacher is None:
            return
        known = self.columns.keys() | self.unseen.keys()
        new = {each.digest: each.document for each in samples if each.digest not in known}
        slices = [self.embedder.processor.slices(each.load(), self.embedder.split_sentences) for each in new.values()]
        try:
            self.columns |= dict(zip(new, self.teacher.embed(slices), strict=True))
        except (ValueError, TypeError):
            before = len(self.unseen)
            for (digest, document), each in zip(new.items(), slices, strict=True):
                try:
                    [self.columns[digest]] = self.teacher.embed([each])
                except (ValueError, TypeError) as error:
                    self.unseen[digest] = f"the teacher cannot embed it ({error})"
                    if not self.skips:
                        raise BadSampleError(self.unseen[digest], sample=document.id) from error
            if len(self.unseen) == before:
                raise

    def _is_seen(self, pair: _Pair, samples: Sequence[_Sample]) -> bool:
        """Whether the teacher has seen the query and other samples of a row, which is left out otherwise."""
        for each in (pair.query, *samples):
            if each.digest in self.unseen:
                self._refuse(pair, BadSampleError(self.unseen[each.digest], sample=each.document.id))
                return False
        return True

    def _similarities(self, ones: Sequence[_Sample], others: Sequence[_Sample]) -> np.ndarray:
        """The labels that training would give to pairs of samples. (m, n)."""
        features = SliceFeatures.pad([self.columns[each.digest] for each in (*ones, *others)])
        ends = torch.stack([torch.arange(len(features)), features.lengths - 1], dim=1)
        return label_matrix(features, ends[len(ones) :], row_ends=ends[: len(ones)]).numpy()

    # ---- Lines ----

    def _line(self, pair: _Pair, root: Path | None) -> dict[str, Any]:
        negatives = [*pair.negatives, *pair.chosen]
        line: dict[str, Any] = {
            "id": pair.row.id,
            "query": _written(pair.query.document, root),
            "positives": [_written(each.document, root) for each in pair.positives],
            "negatives": [_written(each.document, root) for each in negatives],
        }
        if pair.row.instruction is not None:
            line["instruction"] = pair.row.instruction
        if self.rules.scores == "index":
            scores = [*pair.known_scores, *(each.score for each in pair.chosen)]
            line["scores"] = [round(score, 6) for score in scores]
        elif self.rules.scores == "teacher":
            found = self._similarities([pair.query], [*pair.positives, *negatives])[0]
            line["scores"] = [round(score, 6) for score in found.tolist()]
        return line


def _usable(part: Iterable[_Pair]) -> list[_Pair]:
    return [pair for pair in part if pair.fault is None]


def _place(raw: RawRow) -> dict[str, Any]:
    return {"file": raw.file, "line": raw.line, "row": raw.row}


def _put(error: BadSampleError, place: Mapping[str, Any]) -> BadSampleError:
    """Say in which row of which file an error is."""
    error.file = place["file"]
    return error.at(line=place["line"], row=place["row"])


def _written(document: Document, root: Path | None) -> Any:
    """Write a sample as JSON that [`read_pair`] reads: a text, a list of parts, or a chat."""
    images = zip(document.content.images, document.to_row()["images"], strict=True)
    messages = []
    for message in document.content.messages:
        parts: list[Any] = []
        for part in message["content"]:
            if part["type"] == "text":
                parts.append({"text": part["text"]} if looks_like_media(part["text"]) else part["text"])
                continue
            given, stored = next(images)
            if isinstance(given, Path):
                inside = root is not None and given.is_relative_to(root)
                parts.append({"image": os.fspath(given.relative_to(root) if inside and root else given)})
            else:
                parts.append({"base64": base64.b64encode(stored["bytes"]).decode()})
        messages.append({"role": message["role"], "content": parts})
    if messages[0]["role"] != DOCUMENT_ROLE:
        return messages
    parts = messages[0]["content"]
    return parts[0] if len(parts) == 1 else parts
