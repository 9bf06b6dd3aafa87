"""An encoder whose vectors are known."""

import numpy as np
from benchmark_tools import scene
from PIL import Image

from sugar_hf.data import BadSampleError


class Seeing:
    """An encoder that embeds as a function of the loaded sample says: its vector or vectors, made unit vectors.

    It notes the ids that it was asked for.
    """

    def __init__(self, see, name="seeing"):
        self.name, self.see, self.asked = name, see, []

    def embed_documents(self, documents, *, batch_size=8, skipped=None, progress=None):
        found = []
        for document in documents:
            self.asked.append(document.id)
            try:
                rows = np.atleast_2d(np.asarray(self.see(document.load()), np.float32))
                found.append(rows / np.linalg.norm(rows, axis=1, keepdims=True))
            except BadSampleError as error:
                skipped.append(error)
                found.append(None)
            if progress is not None:
                progress.update()
        return found

    def describe(self):
        return {"encoder": self.name}

    def notes(self):
        return {}


def scene_number(part, count=12):
    """Which of the first scenes an image shows, or a text has the caption of."""
    if isinstance(part, Image.Image):
        pixels = np.asarray(part, float)
        return int(np.argmin([np.abs(pixels - np.asarray(scene(i)[0], float)).mean() for i in range(count)]))
    [number] = [i for i in range(count) if scene(i)[1] in part]
    return number


def knowing(sample):
    """One dimension for each scene, that of the last part of the sample: finds everything."""
    return np.eye(12)[scene_number(sample[-1])]


def blind(sample):
    """The same vector for all."""
    return [1.0, 0.0]
