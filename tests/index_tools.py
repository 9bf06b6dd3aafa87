"""Documents, and an embedder without a model, for tests of indexes."""

import hashlib
import json

import numpy as np

from sugar_hf.data import BadSampleError, Document
from sugar_hf.retrieval.embedder import EmbeddingSettings, ModelFingerprint
from sugar_hf.retrieval.store import read_current
from sugar_hf.retrieval.store.layout import as_json

DIM = 16


def vector(text, dim=DIM):
    """A unit vector that belongs to a text."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    values = np.random.default_rng(seed).normal(size=dim).astype(np.float32)
    return values / np.linalg.norm(values)


def make(number, text=None, **metadata):
    """A document of three slices."""
    text = f"document {number}" if text is None else text
    return Document(f"d{number}", [text, f"{text}, second", f"{text}, third"], {"number": number, **metadata})


def texts(document):
    return [part["text"] for message in document.content.messages for part in message["content"]]


def state(index):
    """All that a reader of an index can see of its documents."""
    return {document.id: (texts(document), document.metadata) for document in index}


class FakeEmbedder:
    """Embeds a text as its `vector`; counts what it embeds, and refuses texts with BROKEN in them."""

    def __init__(self, dim=DIM, positions="last", weights="a"):
        self.dim = dim
        self.positions = positions
        self.weights = weights
        self.embedded = []
        self.fingerprint = ModelFingerprint(
            {
                "config": {"backbone": "fake"},
                "processor": {"tokenizer": "fake"},
                "weights": {"backbone": weights, "retrieval head": "h", "adapters": "", "precision": ["float32"]},
            },
            ((1.0, 0.0) if weights == "a" else (0.0, 1.0),),
        )

    @property
    def settings(self):
        return EmbeddingSettings(dim=self.dim, retrieval_dim=self.dim, positions=self.positions, model="fake")

    def encode(self, samples, **_):
        return np.stack([vector(sample if isinstance(sample, str) else sample[-1], self.dim) for sample in samples])

    def embed_documents(self, documents, *, skipped=None, progress=None):
        found = []
        for document in documents:
            slices = texts(document)
            if any("BROKEN" in text for text in slices):
                error = BadSampleError("it is broken", field="document", sample=document.id)
                if skipped is None:
                    raise error
                skipped.append(error)
                found.append(None)
                continue
            self.embedded.append(document.id)
            rows = np.stack([vector(text, self.dim) for text in slices])
            found.append(rows if self.positions == "all" else rows[-1:])
        return found


def unit(count):
    return np.stack([vector(f"v{i}") for i in range(count)])


def rewrite(folder, **changes):
    """Change the manifest as somebody would who knows the format."""
    path = folder / read_current(folder).name
    values = json.loads(path.read_bytes())
    for key, value in changes.items():
        values[key] = value(values[key]) if callable(value) else value
    data = as_json(values)
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    current = {"generation": values["generation"], "manifest": path.name, "sha256": digest}
    (folder / "CURRENT").write_bytes(as_json(current))
