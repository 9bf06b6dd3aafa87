"""Small data in the official formats, and models whose answers are known."""

import functools
import json
from pathlib import Path

from datasets import Dataset, Features, Image
from PIL import Image as PILImage

from sugar_hf import picturebook
from sugar_hf.data import load_image


@functools.cache
def scene(number):
    """A picture and its caption."""
    row = picturebook.load("test", kind="caption", size=number + 1, seed=3)[number]
    texts = [part["text"] for message in row["messages"] for part in message["content"] if part["type"] == "text"]
    return load_image(row["images"][0]), texts[-1]


class Saying:
    """A generator that answers as a function of the prompt's parts says; it notes what it was asked."""

    def __init__(self, answer):
        self.name, self.answer, self.asked = "saying", answer, []

    def generate(self, samples, max_new_tokens):
        self.asked += samples
        return [self.answer(sample) for sample in samples]

    def settings(self):
        return {"model": self.name}


def words(sample):
    """All texts of a prompt."""
    return " ".join(part for part in sample if isinstance(part, str))


def pictures(sample):
    """The images of a prompt."""
    return [part for part in sample if isinstance(part, PILImage.Image)]


def write_json(path, value):
    """Write JSON, and the folders above."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_image(path, image):
    """Write an image, and the folders above."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def write_rows(folder, rows, config="default", split="test", images=("image",), features=None):
    """Write rows as the Hub has them: parquet with the images in it. Several configurations may share a folder.

    Returns the features, which a split with hidden answers shall have too.
    """
    folder = Path(folder)
    features = (
        features or Dataset.from_list([{k: v for k, v in row.items() if k not in images} for row in rows]).features
    )
    features = Features({**features, **{name: Image() for name in images if name in rows[0]}})
    data = Dataset.from_list(rows, features=features)
    target = folder / config / f"{split}-00000-of-00001.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
    data.to_parquet(str(target))
    found = {}
    for path in sorted(folder.glob("*/*.parquet")):
        found.setdefault(path.parent.name, []).append(path)
    lines = ["---", "configs:"]
    for name, files in found.items():
        lines += [f"- config_name: {name}", "  data_files:"]
        for path in files:
            lines += [f"  - split: {path.name.split('-')[0]}", f"    path: {path.relative_to(folder)}"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")
    return features
