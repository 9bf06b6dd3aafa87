"""Images of a hundred bytes that an image processor would make gigabytes of are refused, whichever way they come."""

import base64
import io
import json

import pytest
from builders import cached_sugar
from PIL import Image

from sugar_hf.data import BadSampleError, Document, load_image, read_documents, read_pairs, to_sample
from sugar_hf.evaluation.baselines import document_images
from sugar_hf.model import SugarGenerationPipeline
from sugar_hf.model.images_sugar import MAX_ASPECT_RATIO
from sugar_hf.retrieval import SugarEmbedder, SugarIndex, SugarRag

SAYS = "longer side may be 200 times the shorter at most.*Cut it into pieces"
THIN = [(1, 10_000), (65_000, 1), (2, 401)]


def encode(size, image_format="PNG"):
    buffer = io.BytesIO()
    Image.new("L", size).save(buffer, image_format)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def llava():
    return cached_sugar("llava")


@pytest.mark.parametrize("size", THIN)
def test_every_source_of_a_sample(size, tmp_path, llava):
    data = encode(size)
    path = tmp_path / "thin.png"
    path.write_bytes(data)
    text = base64.b64encode(data).decode()
    image = {"type": "image"}
    parts = [Image.new("L", size), path, {**image, "path": str(path)}, {**image, "image": str(path)}]
    parts += [{**image, "base64": text}, {**image, "url": f"data:image/png;base64,{text}"}]
    for part in parts:
        with pytest.raises(ValueError, match=f"sample 0, part 0: .*{size[0]} x {size[1]} pixels.*{SAYS}"):
            llava[1]([[part, "What?"]])
    for source in (data, path, {"bytes": data, "path": None}, Image.new("RGB", size)):
        with pytest.raises(BadSampleError, match=f"^image: .*{SAYS}"):
            load_image(source)


def test_what_has_just_room(llava):
    assert MAX_ASPECT_RATIO == 200
    assert load_image(encode((1, 200))).size == (1, 200)
    assert load_image(encode((600, 3), "GIF")).size == (600, 3)
    assert llava[1]([[Image.new("RGB", (400, 20))]])["pixel_values"].shape[0] == 1


def test_front_doors(llava, tmp_path):
    model, processor = llava
    thin = Image.new("RGB", (1, 10_000))
    embedder = SugarEmbedder(model, processor)
    with pytest.raises(ValueError, match=f"sample 0, part 0: .*{SAYS}"):
        embedder.encode([[thin]])
    generate = SugarGenerationPipeline(model=model, processor=processor)
    with pytest.raises(ValueError, match=f"input 0, .*{SAYS}"):
        generate("What?", images=thin)
    with pytest.raises(ValueError, match=f"question, part 0: .*{SAYS}"):
        SugarRag(model, processor, ["a cat"]).answer([thin, "What?"])
    documents = [Document("good", "a cat"), Document("thin", thin), Document("file", encode((1, 10_000)))]
    with pytest.raises(BadSampleError, match=f"'thin'.*{SAYS}"):
        SugarIndex.build(tmp_path / "index", documents, embedder, show_progress=False)
    skipped: list[BadSampleError] = []
    embedder.embed_documents(documents, skipped=skipped)
    assert [error.sample for error in skipped] == ["thin", "file"]


def test_data_files(tmp_path):
    (tmp_path / "thin.png").write_bytes(encode((1, 10_000)))
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"image": "thin.png", "text": "a line"}) + "\n")
    with pytest.raises(BadSampleError, match=f"rows.jsonl.*image.*{SAYS}"):
        read_pairs(file)
    with pytest.raises(BadSampleError, match=SAYS):
        to_sample(read_pairs(file, validate_images=False)[0])
    [document] = read_documents(file)
    with pytest.raises(BadSampleError, match=SAYS):
        document.load()
    with pytest.raises(BadSampleError, match=SAYS):
        document_images(document)
