"""An encoder whose similarities are known: images are what their captions say."""

import re
import zlib

import numpy as np
from benchmark_tools import scene

from sugar_hf.data import BadSampleError

SCENES = 16
STOPPED = {"a", "an", "the", "is", "are", "of", "in", "on", "at", "for", "what", "which", "where", "background"}


class Comparing:
    """Embeds words, 4096 places for their hashes; an image is read as the caption of the scene that it shows."""

    def __init__(self):
        self.name, self.embedded = "comparing", []
        self.scenes = [(np.asarray(scene(i)[0], np.float32), scene(i)[1]) for i in range(SCENES)]

    def embed_documents(self, documents, *, batch_size=8, skipped=None, progress=None):
        found = []
        for document in documents:
            self.embedded.append(document)
            try:
                found.append(self._vector(document.load()))
            except BadSampleError as error:
                skipped.append(error)
                found.append(None)
        return found

    def describe(self):
        return {"encoder": self.name}

    def notes(self):
        return {"embedded": len(self.embedded)}

    def _vector(self, parts):
        vector = np.zeros(4097, np.float32)
        for part in parts:
            for word in re.findall(r"[a-z]+", (part if isinstance(part, str) else self._caption(part)).lower()):
                if word not in STOPPED:
                    vector[zlib.crc32(word.encode()) % 4096] += 1
        vector[-1] = not vector.any()
        return (vector / np.linalg.norm(vector))[None]

    def _caption(self, image):
        pixels = np.asarray(image, np.float32)
        return min(self.scenes, key=lambda known: np.abs(known[0] - pixels).mean())[1]
