"""Use the installed package as README shows: both pipelines, a training run, an index, sentence-transformers."""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import pipeline

import sugar_hf
from sugar_hf import (
    SugarEmbedder,
    SugarForConditionalGeneration,
    SugarIndex,
    SugarProcessor,
    SugarTrainer,
    SugarTrainingArguments,
    TripleTeacher,
    picturebook,
)
from sugar_hf.data import load_dataset_file, to_sample


def train(folder: Path, image: Image.Image) -> str:
    image.save(folder / "a.png")
    turns = [{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "a red house."}]
    rows = [{"id": str(i), "image": "a.png", "conversations": turns} for i in range(4)]
    (folder / "rows.json").write_text(json.dumps(rows))
    base = picturebook.checkpoint("mini-vlm")
    model, processor = SugarForConditionalGeneration.from_backbone(base), SugarProcessor.from_pretrained(base)
    before = model.retrieval_head.pooled_to_hidden.weight.detach().clone()
    teacher = TripleTeacher.from_pretrained(
        picturebook.checkpoint("mini-clip"), picturebook.checkpoint("mini-dino"), picturebook.checkpoint("mini-bert")
    )
    dataset = teacher.cache(
        load_dataset_file(str(folder / "rows.json"), image_root=str(folder)),
        slices=lambda row: processor.slices(to_sample(row)),
        cache_dir=folder / "teachers",
    )
    args = SugarTrainingArguments(str(folder / "run"), max_steps=2, per_device_train_batch_size=2, report_to="none")
    SugarTrainer(model=model, args=args, train_dataset=dataset, processing_class=processor).train()
    assert not torch.equal(model.retrieval_head.pooled_to_hidden.weight.cpu(), before)
    model.save_pretrained(folder / "sugar")
    processor.save_pretrained(folder / "sugar")
    return str(folder / "sugar")


def use_pipelines(model: str, image: Image.Image) -> None:
    retrieve = pipeline("sugar-retrieval", model=model)
    (hit,) = retrieve({"query": ["a dog.", image]}, candidates=[["a dog.", image], "it rains."], top_k=1)
    assert hit["index"] == 0
    (answer,) = pipeline("sugar-generation", model=model)("what is it?", images=image, max_new_tokens=4)
    assert answer["generated_text"]


def search(model: str, folder: Path, image: Image.Image) -> None:
    embedder = SugarEmbedder.from_pretrained(model)
    SugarIndex.build(folder / "index", ["a dog.", ["a cat.", image], image], embedder, show_progress=False)
    hits = SugarIndex.load(folder / "index", embedder).search({"query": ["a cat.", image]}, top_k=2)
    assert len(hits) == 2
    assert hits[0].score > 0.99


def encode(model: str) -> None:
    vectors = SentenceTransformer(model).encode(["a dog.", "a cat."])
    own = SugarEmbedder.from_pretrained(model).encode(["a dog.", "a cat."])
    np.testing.assert_allclose(vectors, own, atol=1e-5)


def main() -> None:
    print("with", sugar_hf.__file__)
    image = Image.new("RGB", (96, 96), "red")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = train(folder, image)
        use_pipelines(model, image)
        search(model, folder, image)
        encode(model)
    print("trained, answered, searched and encoded")


if __name__ == "__main__":
    main()
