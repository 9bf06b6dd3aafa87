"""Retrieval on MSCOCO, between images and captions, and on VIST, the last image of a story."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ....data import BadSampleError, Document
from ....data.relevance import with_instruction
from ....data.schema import IMAGE_SUFFIXES
from ...examples import Lazy
from ...ranking_evaluator import KS, Ranking, RankingEvaluator
from ..qrels import own_instruction
from ..sources import Source, get, image_in, read_json
from .task import Task

CANDIDATES = ("all", "limited")
OPTIONS = {"candidates": "all (the default), or limited: only those of the first samples, with --limit"}

# ---- MSCOCO ----

CAPTIONS = ("first5", "all")
COCO_SPLITS = {"test": "test", "val": "val", "validation": "val"}


def load_coco(source: Source) -> RankingEvaluator:
    """MSCOCO in Karpathy's split: `dataset_coco.json`, or rows of the Hub, which have no images; and COCO's `val2014`.

    Text to image: each caption should find its image. Image to text: a hit if any caption of the image is among the
    first k. Captions are taken without the white space around them.
    """
    split = COCO_SPLITS.get(source.split or "test")
    if split is None:
        raise ValueError(f"coco: no split {source.split!r}; there are {', '.join(COCO_SPLITS)}.")
    captions = source.option("captions", "first5", CAPTIONS)
    file = source.find("dataset_coco.json")
    rows: Sequence[Any]
    if file is not None:
        rows = [row for row in get(read_json(file), "images", str(file)) if row["split"] == split]
        if not rows:
            raise ValueError(f"{file}: no image of the split {split!r}.")
    else:
        rows = source.rows(TASKS["coco"].hub_id, None, "validation" if split == "val" else split)
    taken = len(source.limited(rows))
    rows = _candidates(source, rows)
    images_of = _coco_images(source)
    texts: list[tuple[str, str]] = []
    captions_of: list[list[int]] = []  # numbers of each image's captions
    images: list[Document] = []
    for i, row in enumerate(rows):
        found = _captions(row, f"image {row.get('cocoid', i)}")[: 5 if captions == "first5" else None]
        captions_of.append(list(range(len(texts), len(texts) + len(found))))
        texts += found
        images.append(Document(str(row["cocoid"]), [images_of(row)]))
    image_of = [i for i, numbers in enumerate(captions_of[:taken]) for _ in numbers]
    return RankingEvaluator(
        "coco",
        {"captions": Lazy(len(texts), lambda i: Document(*texts[i])), "images": images},
        [
            Ranking("t2i", "captions", "images", [[i] for i in image_of]),
            Ranking("i2t", "images", "captions", captions_of[:taken]),
        ],
        primary_metric="t2i recall@5",
        seed=source.seed,
        settings=source.settings(split=split, captions=captions),
    )


def _candidates(source: Source, rows: Sequence[Any]) -> Sequence[Any]:
    """All rows, or with the option `candidates=limited` those that are taken."""
    return source.limited(rows) if source.option("candidates", "all", CANDIDATES) == "limited" else rows


def _captions(row: Mapping[str, Any], where: str) -> list[tuple[str, str]]:
    """Ids and texts. In the raw file a sentence knows its id, on the Hub the ids are a list beside the texts."""
    sentences = get(row, "sentences", where)
    if not sentences:
        raise BadSampleError("the image has no captions", field="sentences", sample=where)
    if isinstance(sentences[0], str):
        ids = get(row, "sentids", where)
        return [(str(id), text.strip()) for id, text in zip(ids, sentences, strict=True)]
    return [(str(get(one, "sentid", where)), get(one, "raw", where).strip()) for one in sentences]


def _coco_images(source: Source) -> Callable[[Mapping[str, Any]], Path]:
    given = source.option("images", "")
    if given:
        root = Path(given)
        if not root.is_dir():
            raise ValueError(f"coco: images={given!r} is no folder. Give the one that holds COCO's val2014.")
    elif (found := source.find("val2014")) is not None:
        root = found.parent
    else:
        raise ValueError(
            "coco: the pixels are missing: dataset_coco.json and yerevann/coco-karpathy have names and URLs only. Get "
            "val2014.zip from cocodataset.org, and put the folder val2014 beside the file, or give --option "
            "images=FOLDER, a folder with val2014 in it."
        )

    def path(row: Mapping[str, Any]) -> Path:
        where = f"image {row['cocoid']}"
        name, folder = get(row, "filename", where), get(row, "filepath", where)
        return image_in(root, f"{folder}/{name}" if (root / folder).is_dir() else name, where)

    return path


# ---- VIST ----

STORY = 5  # sentences, and images


def load_vist(source: Source) -> RankingEvaluator:
    """VIST as FROMAGe has it: which image ends a story, from `{split}.story-in-sequence.json` and the images.

    A story is five sentences and five images, in the order of the file; the last image is the target. A query is the
    five sentences (5c), or each of the first four with its image, then the fifth (5c+4i). Candidates are all images of
    the split's stories that are there. With dagger the story's first four images cannot be retrieved. A story with a
    missing image is no query, as in FROMAGe; how many, and which, is in the result.

    An instruction is a system message of each query. There is none by default, as in the paper; LamRA
    (Code-kunkun/LamRA@7286399, `eval/eval_zeroshot/eval_vist.py`) measures 5c+4i with dagger with one.
    """
    split = source.split or "val"
    file = source.need(f"{split}.story-in-sequence.json")
    stories = _stories(file)
    files = _vist_images(source)
    skipped = {
        id: "has not five sentences" if len(rows) != STORY else "lacks an image"
        for id, rows in stories.items()
        if len(rows) != STORY or any(photo not in files for photo, _ in rows)
    }
    whole = [id for id in stories if id not in skipped]
    asked = list(source.limited(whole))
    if not asked:
        raise ValueError(f"vist: none of the {len(stories)} stories of {file} has all its images.")
    kept = stories if source.option("candidates", "all", CANDIDATES) == "all" else asked
    photos = list(dict.fromkeys(photo for id in kept for photo, _ in stories[id] if photo in files))
    number = {photo: i for i, photo in enumerate(photos)}
    instruction = own_instruction(source, None)

    def captions(i: int) -> Document:
        return with_instruction(Document(asked[i], [text for _, text in stories[asked[i]]]), instruction)

    def mixed(i: int) -> Document:
        rows = stories[asked[i]]
        before = [part for photo, text in rows[:-1] for part in (text, files[photo])]
        return with_instruction(Document(asked[i], [*before, rows[-1][1]]), instruction)

    targets = [[number[stories[id][-1][0]]] for id in asked]
    context = [[number[photo] for photo, _ in stories[id][:-1]] for id in asked]
    missing = {photo for rows in stories.values() for photo, _ in rows if photo not in files}
    return RankingEvaluator(
        "vist",
        {
            "5c": Lazy(len(asked), captions),
            "5c+4i": Lazy(len(asked), mixed),
            "images": [Document(photo, [files[photo]]) for photo in photos],
        },
        story_rankings(targets, context),
        primary_metric="5c+4i dagger recall@5",
        seed=source.seed,
        settings=source.settings(split=split, skipped=skipped),
        counts={
            "n_stories": len(asked),
            "n_candidates": len(photos),
            "skipped stories": len(skipped),
            "missing images": len(missing),
        },
    )


def story_rankings(targets: Sequence[Sequence[int]], context: Sequence[Sequence[int]]) -> list[Ranking]:
    """VIST's rankings: the sets `5c` and `5c+4i` as queries for `images`, and the same with dagger.

    Args:
        targets: For each story the number of its last image.
        context: For each story the numbers of the images before, which with dagger may not be retrieved.
    """
    rankings = []
    for name in ("5c", "5c+4i"):
        rankings += [
            Ranking(name, name, "images", targets),
            Ranking(f"{name} dagger", name, "images", targets, context),
        ]
    return rankings


def _stories(file: Path) -> dict[str, list[tuple[str, str]]]:
    """Photo and sentence of each part of a story, in the order of the file."""
    stories: dict[str, list[tuple[str, str]]] = {}
    for i, item in enumerate(get(read_json(file), "annotations", str(file))):
        where = f"annotation {i} of {file}"
        if not isinstance(item, list) or len(item) != 1:
            raise BadSampleError("expected a list of one object", field="annotations", sample=where)
        id, photo, text = (str(get(item[0], name, where)) for name in ("story_id", "photo_flickr_id", "text"))
        stories.setdefault(id, []).append((photo, text))
    return stories


def _vist_images(source: Source) -> dict[str, Path]:
    """The image files by photo id."""
    given = source.option("images", "")
    folder = Path(given) if given else source.need("images", source.split or "val")
    if not folder.is_dir():
        raise ValueError(f"vist: images={given!r} is no folder. Give the one with the images, {{photo id}}.jpg.")
    return {path.stem: path for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES}


def _cells(names: Mapping[str, str], table: str) -> dict[str, str]:
    return {f"{name} recall@{k}": f"{table}/{column} R@{k}" for name, column in names.items() for k in KS}


TASKS = {
    task.name: task
    for task in (
        Task(
            "coco",
            "MSCOCO 5k",
            "embed",
            load_coco,
            "t2i recall@5",
            hub_id="yerevann/coco-karpathy",
            options={
                "images": "folder that holds COCO's val2014; needed with the Hub's rows, which have no pixels",
                "captions": "first5 (the default, 25,000) or all (25,010): captions of each image",
                **OPTIONS,
            },
            paper=_cells({"t2i": "T2I", "i2t": "I2T"}, "table3a"),
        ),
        Task(
            "vist",
            "VIST",
            "embed",
            load_vist,
            "5c+4i dagger recall@5",
            split="val",
            options={
                "images": "folder with the images, {photo id}.jpg; images or val in the data by default",
                "instruction": "what a query is told to look for: none (the default), or a text",
                **OPTIONS,
            },
            paper=_cells(
                {"5c": "5c", "5c dagger": "5c+dagger", "5c+4i": "5c+4i", "5c+4i dagger": "5c+4i+dagger"}, "table3b"
            ),
        ),
    )
}
