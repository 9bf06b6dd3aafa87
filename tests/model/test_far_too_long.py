"""What is far too long is refused or shortened before all of it is tokenised and its images are processed."""

import pytest
import torch
from builders import build_sugar, cached_sugar, picture
from PIL import Image

from sugar_hf import SugarEmbedder
from sugar_hf.model.tokenizing_sugar import Encoder

LIMIT = 512


@pytest.fixture
def counted(llava, monkeypatch):
    """Counts the characters that are tokenised and the images that are processed."""
    _, processor = llava
    seen = {"characters": 0, "images": 0}
    encode, preprocess = Encoder.encode, type(processor.image_processor).preprocess

    def counting_encode(self, strings, as_text=False):
        seen["characters"] += sum(map(len, strings))
        return encode(self, strings, as_text)

    def counting_preprocess(self, images, *args, **kwargs):
        seen["images"] += sum(len(each) if isinstance(each, list) else 1 for each in images)
        return preprocess(self, images, *args, **kwargs)

    monkeypatch.setattr(Encoder, "encode", counting_encode)
    monkeypatch.setattr(type(processor.image_processor), "preprocess", counting_preprocess)
    return processor, seen


def test_a_prefix_shows_that_it_is_too_long(counted, subtests):
    for sample in [
        ["word " * 2_000_000],
        ["a" * 10_000_000],
        ["First.", "word " * 2_000_000],
        [picture(1), "<image> " * 1_000_000],
        [{"role": "user", "content": "word " * 2_000_000}],
        [{"role": "system", "content": "word " * 2_000_000}, {"role": "user", "content": "Hi"}],
        [picture(1)] * 5_000,
        ["a b"] * 100_000,
    ]:
        with subtests.test(sample=f"{sample!r:.60}"):
            processor, seen = counted
            with pytest.raises(
                ValueError, match=r"the long one has over 1024 tokens in .* more than max_length=512\. Shorten"
            ):
                processor([sample], max_length=LIMIT, names=["the long one"])
            assert seen["characters"] < 200_000
            assert seen["images"] <= 200


def test_shortened_without_looking_at_the_rest(counted):
    processor, seen = counted
    images = [picture(seed) for seed in range(3)]
    sample = [*images, "Two balls.", "word " * 2_000_000, *images * 500]
    with pytest.warns(
        UserWarning, match=r"over 1024 tokens in 1505 slices, .*: dropped its last 1501 slices"
    ) as warned:
        features = processor([sample], max_length=LIMIT, truncation="slice")
    assert len([warning for warning in warned if "dropped" in str(warning.message)]) == 1
    assert seen["characters"] < 200_000
    assert seen["images"] <= 16
    expected = processor([sample[:4]])
    assert all(torch.equal(features[key], expected[key]) for key in expected)


@pytest.mark.parametrize("count", [40, 200])
def test_shortened_to_what_the_whole_would_be(llava, count):
    _, processor = llava
    sample = [part for i in range(count) for part in (picture(i), f"Picture {i}. It is red.")]
    whole = processor([sample], split_sentences=True)["slice_map"][0].abs()
    ends = [int((whole == k).nonzero()[-1]) for k in range(1, int(whole.max()) + 1)]
    kept = sum(end < 300 for end in ends)
    with pytest.warns(UserWarning, match=f"in {3 * count} slices, .*dropped its last {3 * count - kept} slices"):
        found = processor([sample], split_sentences=True, max_length=300, truncation="slice")
    assert torch.equal(found["slice_map"][0].abs(), whole[: ends[kept - 1] + 1])
    with pytest.raises(ValueError, match="more than max_length=300"):
        processor([sample], max_length=300)


def test_samples_that_fit_are_left_alone(subtests):
    for family in ["llava", "llava_onevision", "qwen2_5_vl", "idefics3"]:
        with subtests.test(family=family):
            _, processor = cached_sugar(family)
            samples = [[picture(1)] * 40, "word " * 1000, ["a", " " * 100_000 + "b"]]
            for sample in samples:
                expected = processor([sample])
                found = processor([sample], max_length=expected["input_ids"].shape[1])
                assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_without_max_length_there_is_a_limit_too(llava):
    _, processor = llava
    with pytest.raises(ValueError, match=r"sample 1 has 100000000 characters, more than .*max_characters=1000000"):
        processor(["fine", "word " * 20_000_000])
    with pytest.raises(ValueError, match="has 1000001 characters"):
        processor([["a" * 1_000_000, "b"]], max_length=2_000_000)
    with pytest.raises(ValueError, match="question has 10000000 characters"):
        SugarEmbedder(*llava).encode(["a" * 10_000_000], names=["question"], show_progress=False)
    _, own = build_sugar("llava")
    own.max_characters = 10
    assert own(["0123456789", Image.new("RGB", (9, 9))])["slice_map"].max() == 1
    with pytest.raises(ValueError, match="has 11 characters"):
        own(["0123456789a"])
