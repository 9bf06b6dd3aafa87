"""Label matrices: values by definition, invariances, options, statistics."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from sugar_hf.structure import (
    SliceFeatures,
    StructureLossConfig,
    calibrated_cosine,
    features_from_columns,
    label_matrix,
    label_statistics,
    log_gak,
    soft_alignment,
    triple_distance,
)

KERNELS = ["calibrated", "aligned", "gak", "mean"]
MEANS = {"image-image": 0.3, "text-text": 0.55, "image-text": 0.15}


def random_features(
    samples: int = 5, slices: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64
) -> SliceFeatures:
    """Mixed-modality samples of 1 to ``slices`` slices (the first has all); junk on padding, as a test of it."""
    generator = torch.Generator().manual_seed(seed)
    is_image = torch.rand(samples, slices, generator=generator) < 0.5
    lengths = torch.randint(1, slices + 1, (samples,), generator=generator)
    lengths[0] = slices

    def vectors(width: int) -> torch.Tensor:
        shift = torch.randn(width, generator=generator, dtype=torch.float64)  # cosines that are not all near 0
        return normalize(torch.randn(samples, slices, width, generator=generator, dtype=torch.float64) + shift, dim=-1)

    clip, dino, text = vectors(6), vectors(5), vectors(7)
    return SliceFeatures(clip, dino * is_image[..., None], text * ~is_image[..., None], is_image, lengths).to(
        dtype=dtype
    )


def all_ends(features: SliceFeatures) -> torch.Tensor:
    return torch.tensor([[b, s] for b, length in enumerate(features.lengths.tolist()) for s in range(length)])


def slice_cosine(features, one, other, teachers="triple", means=None) -> float:
    """Cosine of two slices, (sample, slice) each, straight from the table of the triple kernel."""
    image_one, image_other = bool(features.is_image[one]), bool(features.is_image[other])
    if image_one and image_other:
        block, vectors = "image-image", features.dino
    elif not image_one and not image_other:
        block, vectors = "text-text", features.text
    else:
        block, vectors = "image-text", features.clip
    if teachers == "clip":
        vectors = features.clip
    cosine = float(vectors[one] @ vectors[other])
    return cosine if means is None else max(-1.0, (cosine - means[block]) / (1 - means[block]))


def label_by_definition(features, one, other, config) -> float:
    """Label of two prefixes, pair by pair from the definitions."""
    if one == other or (one[0] == other[0] and config.same_sample == "one"):
        return 1.0
    means = config.block_means if config.centring else None

    def cosines(a, b):
        return torch.tensor(
            [
                [slice_cosine(features, (a[0], i), (b[0], j), config.teachers, means) for j in range(b[1] + 1)]
                for i in range(a[1] + 1)
            ],
            dtype=torch.float64,
        )

    cosine = cosines(one, other)
    m, n = cosine.shape
    if m == n == 1 and config.single_slice == "cosine":
        return float(cosine)
    if config.label_kernel == "mean":
        return float(cosine.mean())
    if config.label_kernel == "calibrated":
        return float(calibrated_cosine(log_gak(2 - 2 * cosine, config.delta), m, n, config.delta))
    sigma = config.delta * math.sqrt((m + n) / 2)
    if config.label_kernel == "aligned":
        visits = soft_alignment(2 - 2 * cosine, sigma)
        return float((visits * cosine).sum() / visits.sum())
    norm = sum(float(log_gak(2 - 2 * cosines(a, a), config.delta * math.sqrt(a[1] + 1))) for a in (one, other)) / 2
    return min(1.0, math.exp(float(log_gak(2 - 2 * cosine, sigma)) - norm))


def test_values_by_definition(subtests):
    for kernel in KERNELS:
        for options in [
            {},
            {"delta": 0.7, "same_sample": "one"},
            {"single_slice": "kernel", "teachers": "clip"},
            {"centring": True, "block_means": MEANS},
            {"centring": True, "block_means": MEANS, "teachers": "clip", "delta": 0.5},
            {"centring": False, "block_means": MEANS},
        ]:
            with subtests.test(options=f"{options!r:.60}", kernel=f"{kernel!r:.60}"):
                features = random_features(4, 4)
                ends = all_ends(features)
                config = StructureLossConfig(label_kernel=kernel, **options)
                expected = torch.tensor(
                    [
                        [label_by_definition(features, tuple(a), tuple(b), config) for b in ends.tolist()]
                        for a in ends.tolist()
                    ],
                    dtype=torch.float64,
                )
                labels = label_matrix(features, ends, config)
                torch.testing.assert_close(labels, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), samples=st.integers(1, 6), slices=st.integers(1, 7), centring=st.booleans())
def test_symmetry_diagonal_range_and_padding(kernel, seed, samples, slices, centring):
    features = random_features(samples, slices, seed)
    ends = all_ends(features)
    config = StructureLossConfig(label_kernel=kernel, centring=centring, block_means=MEANS)
    labels = label_matrix(features, ends, config)
    assert torch.equal(labels, labels.T)
    assert torch.equal(labels.diagonal(), torch.ones(len(ends), dtype=labels.dtype))
    assert labels.abs().max() <= 1 + 1e-9
    torch.testing.assert_close(label_matrix(wider(features, 3), ends, config), labels, atol=1e-9, rtol=0)


def wider(features: SliceFeatures, more: int, fill: float = 0.7) -> SliceFeatures:
    """The same samples with more padding, and not of zeros."""

    def pad(tensor):
        return torch.cat([tensor, torch.full_like(tensor[:, :1], fill).expand(-1, more, *tensor.shape[2:])], 1)

    is_image = torch.cat([features.is_image, torch.ones(len(features), more, dtype=torch.bool)], 1)
    return SliceFeatures(pad(features.clip), pad(features.dino), pad(features.text), is_image, features.lengths)


@pytest.mark.parametrize("kernel", ["aligned", "calibrated"])
def test_single_slices_have_their_cosine_as_label_without_the_special_case(kernel):
    features = random_features(8, 1)
    ends = all_ends(features)
    config = StructureLossConfig(label_kernel=kernel, single_slice="kernel")
    labels = label_matrix(features, ends, config)
    for one, other in itertools.permutations(range(8), 2):
        assert float(labels[one, other]) == pytest.approx(slice_cosine(features, (one, 0), (other, 0)), abs=1e-9)


def test_what_comes_after_a_prefix_does_not_change_its_labels(subtests):
    for kernel in KERNELS:
        with subtests.test(kernel=f"{kernel!r:.60}"):
            features = random_features(5, 6)
            other = random_features(5, 6, seed=1)
            cut = torch.minimum(features.lengths, torch.tensor(3))
            for name in ("clip", "dino", "text"):
                getattr(features, name)[:, 3:] = 0.2  # whatever came later
            before = SliceFeatures(features.clip, features.dino, features.text, features.is_image, cut)
            ends = all_ends(before)
            changed = random_features(5, 6)
            for name in ("clip", "dino", "text", "is_image"):
                getattr(changed, name)[:, 3:] = getattr(other, name)[:, 3:]
            config = StructureLossConfig(label_kernel=kernel, delta=0.6)
            torch.testing.assert_close(
                label_matrix(before, ends, config), label_matrix(changed, ends, config), atol=1e-9, rtol=0
            )


def test_chunks_order_rows_and_batch_permutation(subtests):
    for config in [*(StructureLossConfig(label_kernel=k) for k in KERNELS), StructureLossConfig.paper()]:
        with subtests.test(config=f"{config!r:.60}"):
            features = random_features(7, 5)
            ends = all_ends(features)
            labels = label_matrix(features, ends, config)
            for max_cells in (1, 1000, 10_000):
                torch.testing.assert_close(
                    label_matrix(features, ends, config, max_cells=max_cells), labels, atol=1e-9, rtol=0
                )

            shuffle = torch.randperm(len(ends), generator=torch.Generator().manual_seed(0))
            torch.testing.assert_close(
                label_matrix(features, ends[shuffle], config), labels[shuffle][:, shuffle], atol=1e-9, rtol=0
            )

            rows = shuffle[:6]
            torch.testing.assert_close(
                label_matrix(features, ends, config, row_ends=ends[rows]), labels[rows], atol=1e-9, rtol=0
            )

            batch = torch.randperm(7, generator=torch.Generator().manual_seed(1))
            permuted = SliceFeatures(
                features.clip[batch],
                features.dino[batch],
                features.text[batch],
                features.is_image[batch],
                features.lengths[batch],
            )
            moved = torch.stack([torch.argsort(batch)[ends[:, 0]], ends[:, 1]], 1)
            torch.testing.assert_close(label_matrix(permuted, moved, config), labels, atol=1e-9, rtol=0)


def test_low_precision_features_give_float32_labels(subtests):
    for dtype in [torch.float32, torch.float16, torch.bfloat16]:
        for kernel in KERNELS:
            with subtests.test(kernel=f"{kernel!r:.60}", dtype=f"{dtype!r:.60}"):
                features = random_features().to(dtype=dtype)
                ends = all_ends(features)
                config = StructureLossConfig(label_kernel=kernel)
                labels = label_matrix(features, ends, config)
                assert labels.dtype == torch.float32
                torch.testing.assert_close(labels, label_matrix(features.to(dtype=torch.float32), ends, config))


def test_long_and_unlike_samples_stay_finite(subtests):
    for kernel in KERNELS:
        with subtests.test(kernel=kernel):
            features = random_features(3, 120, dtype=torch.float32)
            ends = torch.tensor([[b, s] for b in range(3) for s in (0, int(features.lengths[b]) - 1)])
            for delta in (0.05, 0.3, 3.0):
                labels = label_matrix(features, ends, StructureLossConfig(label_kernel=kernel, delta=delta))
                assert torch.isfinite(labels).all()


def test_labels_carry_no_gradient():
    features = random_features()
    features.clip.requires_grad_()
    assert not label_matrix(features, all_ends(features)).requires_grad


def test_duplicate_ends_get_label_one():
    labels = label_matrix(random_features(), torch.tensor([[0, 2], [0, 2], [0, 1]]))
    assert float(labels[0, 1]) == 1
    assert float(labels[0, 2]) < 1


def test_length_dominates_gak_and_not_calibrated():
    """Identical content at lengths 1 and 10: 0.0008 by the paper's kernel, 1 by the calibrated one."""
    vector = normalize(torch.randn(1, 1, 4, dtype=torch.float64), dim=-1)
    zeros = torch.zeros(2, 10, 4, dtype=torch.float64)
    features = SliceFeatures(
        zeros, zeros, vector.expand(2, 10, 4), torch.zeros(2, 10, dtype=torch.bool), torch.full((2,), 10)
    )
    ends = torch.tensor([[0, 0], [1, 9], [1, 1]])
    gak = label_matrix(features, ends, StructureLossConfig.paper())
    assert float(gak[0, 1]) == pytest.approx(0.0008, abs=5e-5)
    assert float(gak[0, 2]) == pytest.approx(1 / math.sqrt(3))
    calibrated = label_matrix(features, ends)
    torch.testing.assert_close(calibrated, torch.ones(3, 3, dtype=torch.float64), atol=1e-9, rtol=0)


def test_triple_distance(subtests):
    for means in [None, MEANS]:
        for teachers in ["triple", "clip"]:
            with subtests.test(teachers=teachers, means=f"{means!r:.60}"):
                x, y = random_features(2, 3), random_features(3, 4)
                distances = triple_distance(x, y, teachers, means)
                assert distances.shape == (2, 3, 3, 4)
                joint = random_features(3, 4)
                same = triple_distance(joint, joint, teachers, means)
                for a, b, i, j in itertools.product(range(3), range(3), range(4), range(4)):
                    expected = 2 - 2 * slice_cosine(joint, (a, i), (b, j), teachers, means)
                    assert float(same[a, b, i, j]) == pytest.approx(expected, abs=1e-9)


def test_ends_that_do_not_exist(subtests):
    for ends, message in [
        (torch.tensor([[0, 0], [1, 9]]), r"ends\[1\] is slice 9 of sample 1, which does not exist"),
        (torch.tensor([[5, 0]]), r"ends\[0\] is slice 0 of sample 5"),
        (torch.tensor([[0, -1]]), "does not exist"),
        (torch.zeros(0, 2, dtype=torch.int64), "empty"),
        (torch.zeros(3, dtype=torch.int64), r"shape \(n, 2\)"),
        (torch.zeros(3, 2), "integers"),
    ]:
        with subtests.test(message=message), pytest.raises(ValueError, match=message):
            label_matrix(random_features(), ends)


def test_centring_needs_block_means():
    with pytest.raises(ValueError, match="block_means"):
        label_matrix(random_features(), torch.tensor([[0, 0]]), StructureLossConfig(centring=True))


def test_statistics():
    labels = torch.tensor([[1.0, 0.5, 0.0], [0.5, 1.0, -0.5], [0.0, -0.5, 1.0]])
    embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [-0.9, 0.5]])
    statistics = label_statistics(labels, embeddings)
    assert statistics["mean"] == pytest.approx(0.0)
    assert statistics["share_below_0.01"] == pytest.approx(2 / 3)
    assert statistics["smallest_eigenvalue"] == pytest.approx(1 - math.sqrt(0.5))
    # cosines 0.8, -0.87, -0.41 against labels 0.5, 0, -0.5: ranks 3, 1, 2 and 3, 2, 1
    assert statistics["spearman"] == pytest.approx(0.5)
    assert math.isnan(label_statistics(torch.ones(3, 3), embeddings)["spearman"])
    assert "spearman" not in label_statistics(labels)
    with pytest.raises(ValueError, match="square"):
        label_statistics(labels[:2])


def columns(slices: int, seed: int = 0, width: int = 4) -> dict:
    generator = torch.Generator().manual_seed(seed)
    is_image = [bool(s % 2) for s in range(slices)]
    vectors = normalize(torch.randn(3, slices, width, generator=generator), dim=-1)
    mask = torch.tensor(is_image)[:, None]
    return {
        "teacher_clip": vectors[0].half().tolist(),
        "teacher_dino": (vectors[1] * mask).half().numpy(),
        "teacher_text": (vectors[2] * ~mask).half(),
        "teacher_is_image": is_image,
    }


def test_features_from_columns_pads_lists_arrays_and_tensors():
    features = features_from_columns([columns(3), columns(1, seed=1)])
    assert features.clip.shape == (2, 3, 4)
    assert features.lengths.tolist() == [3, 1]
    assert features.is_image.tolist() == [[False, True, False], [False, False, False]]
    assert torch.equal(features.clip[1, 1:], torch.zeros(2, 4))
    torch.testing.assert_close(features.clip[0].norm(dim=-1), torch.ones(3))
    assert torch.equal(features.dino[0, 0], torch.zeros(4))
    half = features.to(dtype=torch.float16)
    assert half.clip.dtype == torch.float16
    assert half.is_image.dtype == torch.bool
    assert half.lengths.dtype == torch.int64


def test_broken_columns_name_the_sample(subtests):
    for change, message in [
        (lambda row: row.pop("teacher_dino"), "Sample 1 has no teacher_dino"),
        (lambda row: row.update(teacher_clip=[[1.0, 0, 0, 0]]), "Sample 1: teacher_clip has shape"),
        (lambda row: row.update(teacher_is_image=[]), "Sample 1: teacher_is_image"),
        (lambda row: row.update(columns(3, width=5)), "Sample 1: teacher_clip has width 5"),
    ]:
        with subtests.test(message=message):
            row = columns(3)
            change(row)
            with pytest.raises(ValueError, match=message):
                features_from_columns([columns(3), row])


def test_slice_features_check_their_shapes():
    good = random_features(2, 3)
    with pytest.raises(ValueError, match="dino must have shape"):
        SliceFeatures(good.clip, good.dino[:1], good.text, good.is_image, good.lengths)
    with pytest.raises(ValueError, match="lengths"):
        SliceFeatures(good.clip, good.dino, good.text, good.is_image, good.lengths[:1])
