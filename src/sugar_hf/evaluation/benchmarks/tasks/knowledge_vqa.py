"""Knowledge VQA: FVQA, questions about an image whose answers need a fact."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ....data import BadSampleError, Document
from ....retrieval.rag import KNOWLEDGE_VQA
from ...examples import Example, Lazy, Record
from ...knowledge_evaluator import KnowledgeEvaluator, Pool, View
from ...metrics.exact_match import exact_match
from ..scorers.rouge import rouge_l_demon, rouge_l_google
from ..sources import Source, get, image_in, read_json
from .task import Task
from .vqa import mean

VIEWS = ("image", "text", "average")
#: The paper's words before what was found.
WORDS = KNOWLEDGE_VQA.text.removesuffix(" {documents} {question}")
_BRACKETS = re.compile(r"\[\[|\]\]")


def joined(parts: Sequence[Any]) -> list[Any]:
    """Texts and images with one space between them, neighbouring texts in one.

    >>> joined(["Known:", "cats purr.", b"image", "Which?"])
    ['Known: cats purr. ', b'image', ' Which?']
    """
    found: list[Any] = []
    for part in parts:
        if isinstance(part, str) and not part.strip():
            continue
        after_text = bool(found) and isinstance(found[-1], str)
        if not isinstance(part, str):
            if after_text:
                found[-1] += " "
            found.append(part)
        elif after_text:
            found[-1] += f" {part}"
        else:
            found.append(f" {part}" if found else part)
    return found


def knowledge_prompt(question: Sequence[Any], documents: Sequence[Sequence[Any]]) -> list[Any]:
    """The paper's prompt for knowledge VQA (app. F.1), with `<image>` where a part is an image.

    >>> knowledge_prompt([b"image", "Which?"], [["Cats purr."]])[0][-34:]
    'Reference information: Cats purr. '
    """
    return joined([WORDS, *(part for document in documents for part in document), *question])


def chosen_views(source: Source, views: Mapping[str, View]) -> dict[str, View]:
    """The views that the option `view` names: one of them, or all for their average."""
    choice = source.option("view", "average", VIEWS)
    return {name: view for name, view in views.items() if choice in (name, "average")}


def count_option(source: Source, name: str, default: int) -> int:
    """An option that is a number, 0 or more.

    Raises:
        ValueError: It is none.
    """
    value = source.option(name, str(default))
    if not value.isdecimal():
        raise ValueError(f"{source.task}: {name}={value!r}: give a number, 0 or more.")
    return int(value)


def read_object(path: Path) -> dict[str, Any]:
    """Read a file with one JSON object.

    Raises:
        ValueError: It is something else.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path}: an object is expected, and this is a {type(found).__name__}. Get the file again.")
    return found


def rouge_scores(records: Sequence[Record]) -> dict[str, list[float]]:
    """For each record the best over its answers of ROUGE-L in two forms and of exact match, 0 to 1."""
    metrics = {"rouge_l": rouge_l_demon, "rouge_l google": rouge_l_google, "exact match": exact_match}
    return {
        name: [max(float(metric(record.text, answer)) for answer in record.reference["answers"]) for record in records]
        for name, metric in metrics.items()
    }


# ---- FVQA ----


def load_fvqa(source: Source) -> KnowledgeEvaluator:
    """Load FVQA from its official files.

    These are `all_qs_dict_release.json`, `all_fact_triples_release.json`, `images` and
    `Name_Lists/{train,test}_list_{0..4}.txt`.

    The candidates are the facts of all questions, equal texts once. With `answers=kb` (the default) those questions
    are asked whose answer is in the fact and not in the image, which is how the paper's "questions that need the
    knowledge base" is read here. A question that is in several test lists is asked once.
    """
    part = source.split or "test"
    if part not in ("train", "test"):
        raise ValueError(f"fvqa: no split {part!r}; there are train, test.")
    choice = source.option("split_number", "all", ("all", *"01234"))
    wanted = source.option("answers", "kb", ("kb", "image", "all"))
    in_pool = source.option("pool", "questions", ("questions", "all"))
    top_k = count_option(source, "top_k", 1)
    questions = read_object(source.need("all_qs_dict_release.json"))
    facts = read_object(source.need("all_fact_triples_release.json", "*fact*triples*.json"))
    texts = {id: _fact_texts(id, row, facts) for id, row in questions.items()}
    known = dict.fromkeys(text for of in texts.values() for text in of)
    if in_pool == "all":
        known |= dict.fromkeys(_surface(get(row, "surface", f"fact {id}")) for id, row in facts.items())
    pool = sorted(known)
    numbers = {text: number for number, text in enumerate(pool)}
    lists = {number: _names(source, part, number) for number in (range(5) if choice == "all" else [int(choice)])}
    listed = []
    for id, row in questions.items():
        splits = [number for number, names in lists.items() if get(row, "img_file", id) in names]
        if splits:
            listed.append((id, row, splits))
    chosen = [each for each in listed if wanted in ("all", str(get(each[1], "ans_source", each[0])).lower())]
    asked = list(source.limited(chosen))
    folder = source.need("images")

    def image(i: int) -> Path:
        return image_in(folder, asked[i][1]["img_file"], asked[i][0])

    def question(i: int) -> str:
        return str(get(asked[i][1], "question", asked[i][0])).strip()

    def build(i: int) -> Example:
        id, row, splits = asked[i]
        answer = str(get(row, "answer", id)).strip()
        return Example.of(id, [image(i), question(i)], {"answers": [answer], "splits": splits})

    entries = [Document(f"fact {number}", [text]) for number, text in enumerate(pool)]
    views = {
        "image": View(Lazy(len(asked), lambda i: Document(asked[i][0], [image(i)])), "facts"),
        "text": View(Lazy(len(asked), lambda i: Document(asked[i][0], [question(i)])), "facts"),
    }
    counts = {str(number): sum(number in splits for _, _, splits in asked) for number in lists}
    return KnowledgeEvaluator(
        "fvqa",
        Lazy(len(asked), build),
        Pool(entries, {"facts": entries}, gold=[[numbers[text] for text in texts[id]] for id, _, _ in asked]),
        chosen_views(source, views),
        knowledge_prompt,
        score_fvqa,
        primary_metric="rouge_l",
        top_k=top_k,
        seed=source.seed,
        settings=source.settings(
            split=part, answers=wanted, left_out=len(listed) - len(chosen), questions_per_split=counts
        ),
    )


def score_fvqa(records: Sequence[Record]) -> dict[str, float]:
    """The mean over the splits that have questions, and each split's own figures."""
    scores = rouge_scores(records)
    figures: dict[str, float] = {}
    splits = sorted({split for record in records for split in record.reference["splits"]})
    for name, values in scores.items():
        of_splits = {
            split: mean([v for v, record in zip(values, records, strict=True) if split in record.reference["splits"]])
            for split in splits
        }
        figures[name] = sum(of_splits.values()) / len(splits)
        figures |= {f"{name}, split {split}": value for split, value in of_splits.items()}
    return figures


def _fact_texts(id: str, row: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """Texts of a question's facts; its own copy where the file of facts lacks one."""
    found = row.get("fact") or []
    found = [found] if isinstance(found, str) else found
    surfaces = [str(facts.get(fact, {}).get("surface") or row.get("fact_surface") or "") for fact in found]
    if not surfaces or not all(surfaces):
        mend = "Every question has a fact in the release: get its files again"
        raise BadSampleError("the question has no fact that is known", field="fact", sample=id, mend=mend)
    return [_surface(surface) for surface in surfaces]


def _surface(text: str) -> str:
    """A fact as a sentence, without the brackets around its entities."""
    return " ".join(_BRACKETS.sub("", text).split())


def _names(source: Source, part: str, number: int) -> set[str]:
    lines = source.need(f"{part}_list_{number}.txt").read_text(encoding="utf-8-sig").splitlines()
    return {Path(line.strip()).name for line in lines if line.strip()}


RETRIEVAL_OPTIONS = {
    "view": "what is compared: image, text or average (the mean of both; the default)",
    "top_k": "documents put into a prompt (default 1); 0 asks without retrieval",
}

TASKS = {
    task.name: task
    for task in (
        Task(
            "fvqa",
            "FVQA",
            "both",
            load_fvqa,
            "rouge_l",
            options={
                **RETRIEVAL_OPTIONS,
                "split_number": "one of the five splits, 0 to 4, or all (the mean; the default)",
                "answers": "questions whose answer is in the fact, kb (the default), in the image, image, or all",
                "pool": "what can be found: facts of the questions (the default) or all, every fact of the release",
            },
            paper={"rouge_l": "table7/FVQA"},
        ),
    )
}
