"""Teachers on tiny random checkpoints: embeddings, data set columns, stale caches, block means."""

import itertools
import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn.functional import normalize
from transformers import (
    BertConfig,
    BertModel,
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
    PreTrainedTokenizerFast,
)

from sugar_hf.structure import (
    TEACHER_COLUMNS,
    SliceFeatures,
    StructureLossConfig,
    TripleTeacher,
    block_means,
    check_cache,
    features_from_columns,
    label_matrix,
)

WORDS = ["[PAD]", "[UNK]", "[BOS]", "[EOS]", "a", "cat", "dog", "on", "the", "mat", "red", "blue"]
CLIP_LENGTH, TEXT_LENGTH = 8, 16


def word_tokenizer(longest: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        bos_token="[BOS]",
        eos_token="[EOS]",
        model_max_length=longest,
    )


def save_teachers(folder, seed: int = 0) -> dict[str, str]:
    """Tiny random CLIP, DINOv2 and BERT checkpoints."""
    torch.manual_seed(seed)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    clip = CLIPModel(
        CLIPConfig(
            text_config=CLIPTextConfig(
                **small,
                vocab_size=len(WORDS),
                max_position_embeddings=CLIP_LENGTH,
                bos_token_id=2,
                eos_token_id=3,
                pad_token_id=0,
            ).to_dict(),
            vision_config=CLIPVisionConfig(**small, image_size=32, patch_size=16).to_dict(),
            projection_dim=12,
        )
    )
    dino = Dinov2Model(
        Dinov2Config(hidden_size=20, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16)
    )
    bert = BertModel(BertConfig(**small, vocab_size=len(WORDS), max_position_embeddings=TEXT_LENGTH))
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    parts = {
        "clip": (clip, CLIPImageProcessorPil(**size), word_tokenizer(CLIP_LENGTH)),
        "dino": (dino, BitImageProcessorPil(**size)),
        "text": (bert, word_tokenizer(TEXT_LENGTH)),
    }
    for name, items in parts.items():
        for item in items:
            item.save_pretrained(folder / name)
    return {name: str(folder / name) for name in parts}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return save_teachers(tmp_path_factory.mktemp("teachers"))


@pytest.fixture(scope="module")
def teacher(checkpoints):
    return TripleTeacher.from_pretrained(**checkpoints, show_progress=False)


def picture(seed: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 48, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


SAMPLES = [
    [picture(0), "a red cat", picture(1), "the dog on the mat"],
    ["blue mat"],
    [picture(2, "L"), picture(3, "RGBA")],
]


def test_columns_hold_unit_vectors_of_the_right_teachers(teacher):
    columns = teacher.embed(SAMPLES)
    assert [set(row) for row in columns] == [set(TEACHER_COLUMNS)] * 3
    first = columns[0]
    assert first["teacher_clip"].shape == (4, 12)
    assert first["teacher_dino"].shape == (4, 20)
    assert first["teacher_text"].shape == (4, 16)
    assert first["teacher_clip"].dtype == np.float16
    assert first["teacher_is_image"].tolist() == [True, False, True, False]
    assert np.linalg.norm(first["teacher_clip"].astype(float), axis=1) == pytest.approx(np.ones(4), abs=2e-3)
    assert np.linalg.norm(first["teacher_dino"].astype(float), axis=1) == pytest.approx([1, 0, 1, 0], abs=2e-3)
    assert np.linalg.norm(first["teacher_text"].astype(float), axis=1) == pytest.approx([0, 1, 0, 1], abs=2e-3)


def test_vectors_are_those_of_the_models(teacher, checkpoints):
    columns = teacher.embed(SAMPLES)[0]
    image, text = SAMPLES[0][0], SAMPLES[0][1]
    clip, dino = CLIPModel.from_pretrained(checkpoints["clip"]), Dinov2Model.from_pretrained(checkpoints["dino"])
    bert = BertModel.from_pretrained(checkpoints["text"])
    tokens = word_tokenizer(TEXT_LENGTH)(text, return_tensors="pt")
    clip_pixels = CLIPImageProcessorPil.from_pretrained(checkpoints["clip"])(image, return_tensors="pt")
    dino_pixels = BitImageProcessorPil.from_pretrained(checkpoints["dino"])(image, return_tensors="pt")
    with torch.no_grad():
        expected = {
            ("teacher_clip", 0): clip.get_image_features(**clip_pixels).pooler_output,
            ("teacher_dino", 0): dino(**dino_pixels).last_hidden_state[:, 0],
            ("teacher_clip", 1): clip.get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output,
            ("teacher_text", 1): bert(**tokens).last_hidden_state[:, 0],
        }
    for (column, place), vector in expected.items():
        assert columns[column][place] == pytest.approx(normalize(vector, dim=-1)[0].numpy(), abs=2e-3)


def test_batches_do_not_matter(teacher, checkpoints, subtests):
    for batch_size in [1, 2, 64]:
        with subtests.test(batch_size=batch_size):
            other = TripleTeacher.from_pretrained(**checkpoints, batch_size=batch_size, show_progress=False)
            for one, two in zip(teacher.embed(SAMPLES), other.embed(SAMPLES), strict=True):
                for column in ("teacher_clip", "teacher_dino", "teacher_text"):
                    assert one[column] == pytest.approx(two[column], abs=2e-3)


def test_bfloat16(checkpoints, teacher):
    half = TripleTeacher.from_pretrained(**checkpoints, dtype=torch.bfloat16, show_progress=False)
    columns = half.embed(SAMPLES)
    assert columns[0]["teacher_clip"] == pytest.approx(teacher.embed(SAMPLES)[0]["teacher_clip"], abs=0.05)
    assert half.fingerprint != teacher.fingerprint


def test_features_and_labels_from_embeddings(teacher):
    features = SliceFeatures.pad(teacher.embed(SAMPLES))
    assert features.lengths.tolist() == [4, 1, 2]
    labels = label_matrix(features, torch.tensor([[0, 3], [1, 0], [2, 1]]), StructureLossConfig())
    assert labels.shape == (3, 3)
    assert torch.isfinite(labels).all()


def test_truncation_is_counted_and_warned(teacher):
    long_for_clip, long_for_both = "cat " * 10, "cat " * 30
    with pytest.warns(UserWarning, match=r"Of 3 texts .*: 2 for the clip teacher \(at 8 tokens\), 1 for the text"):
        columns = teacher.embed([[long_for_clip], [long_for_both], ["a cat"]])
    assert np.isfinite(columns[1]["teacher_text"]).all()


def test_short_texts_do_not_warn(teacher, recwarn):
    teacher.embed([["a cat"]])
    assert not recwarn.list


def test_bad_samples_are_named(teacher, subtests):
    for samples, error, message in [
        ([["a cat"], []], ValueError, "Sample 1 has no slices"),
        ([["a cat", "  "]], ValueError, "Sample 0, slice 1 is an empty text"),
        ([["a cat", 3]], TypeError, "Sample 0, slice 1 is a int"),
    ]:
        with (
            subtests.test(message=message),
            pytest.raises(error, match=message),
        ):
            teacher.embed(samples)


def text_slices(row: dict) -> list:
    return [part if part != "<picture>" else picture(row["number"]) for part in row["parts"]]


@pytest.fixture
def dataset():
    parts = [["a cat", "<picture>"], ["the dog"], ["<picture>", "red mat", "blue mat"], ["<picture>"]]
    return Dataset.from_dict({"number": list(range(4)), "parts": parts})


def test_cache_holds_what_embed_gives(teacher, dataset):
    cached = teacher.cache(dataset, slices=text_slices, batch_size=3)
    assert set(cached.column_names) == {"number", "parts", *TEACHER_COLUMNS}
    assert cached.features["teacher_clip"].feature.feature.dtype == "float16"
    assert check_cache(cached, teacher) == teacher.fingerprint == check_cache(cached)
    fresh = features_from_columns(teacher.embed([text_slices(row) for row in dataset]))
    for rows in (list(cached), list(cached.with_format("numpy"))):
        features = features_from_columns(rows)
        assert torch.equal(features.is_image, fresh.is_image)
        for name in ("clip", "dino", "text"):
            torch.testing.assert_close(getattr(features, name), getattr(fresh, name), atol=2e-3, rtol=0)


def test_cache_is_taken_from_disk(teacher, dataset, tmp_path):
    dataset.save_to_disk(tmp_path / "data")
    stored = Dataset.load_from_disk(tmp_path / "data")
    first = teacher.cache(stored, slices=text_slices, load_from_cache_file=True)
    calls = []

    def embed(*args, **kwargs):
        calls.append(args)
        raise AssertionError("computed again")

    again = TripleTeacher(
        teacher.clip,
        teacher.clip_image_processor,
        teacher.clip_tokenizer,
        teacher.dino,
        teacher.dino_image_processor,
        teacher.text,
        teacher.text_tokenizer,
        show_progress=False,
    )
    again._embed = embed
    second = again.cache(stored, slices=text_slices, load_from_cache_file=True)
    assert not calls
    assert second["teacher_clip"][:] == first["teacher_clip"][:]


def test_caching_warns_once_of_truncated_texts(teacher):
    dataset = Dataset.from_dict({"text": ["cat " * 10] * 5})
    with pytest.warns(UserWarning, match="5 for the clip teacher") as caught:
        teacher.cache(dataset, slices=lambda row: [row["text"]], batch_size=2, load_from_cache_file=False)
    assert len([w for w in caught if "truncated" in str(w.message)]) == 1


def test_caching_names_the_row_of_a_bad_sample(teacher, dataset):
    with pytest.raises(ValueError, match="Sample 3 has no slices"):
        teacher.cache(dataset, slices=lambda row: ["a cat"] if row["number"] < 3 else [], batch_size=2)


def test_fingerprint_depends_on_contents_and_not_on_the_path(teacher, checkpoints, tmp_path):
    copy = save_teachers(tmp_path / "copy")
    assert TripleTeacher.from_pretrained(**copy).fingerprint == teacher.fingerprint
    other = save_teachers(tmp_path / "other", seed=1)
    changed = TripleTeacher.from_pretrained(clip=checkpoints["clip"], dino=other["dino"], text=checkpoints["text"])
    before, now = teacher.fingerprint.split(","), changed.fingerprint.split(",")
    assert [one == two for one, two in zip(before, now, strict=True)] == [True, False, True]

    path = tmp_path / "copy" / "clip" / "preprocessor_config.json"
    preprocessing = json.loads(path.read_text())
    preprocessing["image_mean"] = [0.1, 0.2, 0.3]
    path.write_text(json.dumps(preprocessing))
    changed = TripleTeacher.from_pretrained(**copy)
    assert changed.fingerprint.split(",")[0] != before[0]
    assert changed.fingerprint.split(",")[1:] == before[1:]


def test_stale_or_missing_cache_is_refused(teacher, checkpoints, dataset, tmp_path):
    with pytest.raises(ValueError, match=r"no column teacher_clip, .*teacher\.cache"):
        check_cache(dataset, teacher)
    cached = teacher.cache(dataset, slices=text_slices)
    other = save_teachers(tmp_path, seed=1)
    changed = TripleTeacher.from_pretrained(
        clip=other["clip"], dino=checkpoints["dino"], text=other["text"], show_progress=False
    )
    with pytest.raises(ValueError, match=r"stale: .*another clip and text teacher \(clip: cached .*teacher\.cache"):
        check_cache(cached, changed)
    with pytest.raises(ValueError, match="stale"):
        check_cache(cached, changed.fingerprint)
    renewed = changed.cache(cached, slices=text_slices)
    check_cache(renewed, changed)
    mixed = [teacher.fingerprint] * 3 + [changed.fingerprint]
    mixed = cached.remove_columns("teacher_fingerprint").add_column("teacher_fingerprint", mixed)
    with pytest.raises(ValueError, match="2 different sets of teachers"):
        check_cache(mixed)
    with pytest.raises(ValueError, match="no rows"):
        check_cache(cached.select([]), teacher)


def test_incomplete_checkpoint_is_refused(checkpoints, tmp_path):
    copy = save_teachers(tmp_path)
    model = BertModel.from_pretrained(copy["text"])
    weights = {key: value for key, value in model.state_dict().items() if "encoder.layer.1" not in key}
    model.save_pretrained(copy["text"], state_dict=weights)
    with pytest.raises(ValueError, match=r"text teacher .* lacks .*encoder\.layer\.1"):
        TripleTeacher.from_pretrained(clip=checkpoints["clip"], dino=checkpoints["dino"], text=copy["text"])


def test_wrong_kind_of_checkpoint_is_refused(checkpoints):
    with pytest.raises(TypeError, match="dino teacher must be a Dinov2Model; got a CLIPModel"):
        TripleTeacher.from_pretrained(clip=checkpoints["clip"], dino=checkpoints["clip"], text=checkpoints["text"])


@pytest.mark.parametrize("teachers", ["triple", "clip"])
def test_block_means_equal_the_mean_over_all_unrelated_pairs(teacher, dataset, teachers):
    cached = teacher.cache(dataset, slices=text_slices)
    rows = list(cached)
    cosines = {"image-image": [], "text-text": [], "image-text": []}
    for one, other in itertools.permutations(rows, 2):
        for i, j in itertools.product(range(len(one["teacher_is_image"])), range(len(other["teacher_is_image"]))):
            images = one["teacher_is_image"][i], other["teacher_is_image"][j]
            block = "image-image" if all(images) else "image-text" if any(images) else "text-text"
            column = {"image-image": "dino", "text-text": "text", "image-text": "clip"}[block]
            column = "teacher_" + ("clip" if teachers == "clip" else column)
            a, b = np.array(one[column][i]), np.array(other[column][j])
            cosines[block].append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    means = block_means(cached, teachers)
    assert means == pytest.approx({block: np.mean(values) for block, values in cosines.items()}, abs=1e-4)
    assert block_means(rows, teachers) == pytest.approx(means, abs=1e-6)
    StructureLossConfig(teachers=teachers, centring=True, block_means=means)


def test_block_means_without_pairs_and_columns(teacher, dataset):
    texts = teacher.embed([["a cat"], ["the dog"]])
    means = block_means(texts)
    assert means["image-image"] == means["image-text"] == 0
    assert means["text-text"] != 0
    with pytest.raises(ValueError, match="no column teacher_clip"):
        block_means(dataset)
    with pytest.raises(ValueError, match="teachers must be one of"):
        block_means(texts, "dino")


@pytest.mark.parametrize(("image", "reason"), [(("L", (1, 10_000)), "1 x 10000 pixels"), (("I", (8, 8)), "mode 'I'")])
def test_a_picture_that_cannot_be_used_is_named(teacher, image, reason):
    with pytest.raises(ValueError, match=f"Sample 1, slice 1: cannot use the image: .*{reason}"):
        teacher.embed([["a cat"], ["a dog", Image.new(*image)]])
