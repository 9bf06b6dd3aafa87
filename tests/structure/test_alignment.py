"""Global alignment kernel against enumeration, autograd, tslearn and hand values."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tslearn.metrics import cdist_gak, gak

from sugar_hf.structure import calibrated_cosine, gak_matrix, log_gak, soft_alignment
from sugar_hf.structure.alignment import TWO_LOG_2, log_table

FLOATS = [torch.float32, torch.float64]


def tolerance(dtype: torch.dtype) -> float:
    return 2e-5 if dtype == torch.float32 else 1e-10


def local_kernel(distances: torch.Tensor, sigma: float) -> torch.Tensor:
    gauss = torch.exp(-distances / (2 * sigma**2))
    return gauss / (2 - gauss)


def alignments(m: int, n: int) -> list[list[tuple[int, int]]]:
    """All monotone alignments of m with n slices, as lists of cells."""
    if m < 1 or n < 1:
        return []
    if m == n == 1:
        return [[(0, 0)]]
    before = alignments(m - 1, n) + alignments(m, n - 1) + alignments(m - 1, n - 1)
    return [[*path, (m - 1, n - 1)] for path in before]


def log_recursion(log_kappa: torch.Tensor) -> torch.Tensor:
    """The plain recursion of the paper in log space, differentiable."""
    m, n = log_kappa.shape
    cells: dict[tuple[int, int], torch.Tensor] = {}
    for i in range(m):
        for j in range(n):
            before = [cells[c] for c in ((i - 1, j), (i, j - 1), (i - 1, j - 1)) if c in cells]
            cells[i, j] = log_kappa[i, j] + (torch.logsumexp(torch.stack(before), 0) if before else 0)
    return cells[m - 1, n - 1]


def random_distances(*shape: int, seed: int = 0) -> torch.Tensor:
    return 4 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_equals_the_sum_over_all_alignments(subtests):
    for sigma in [0.1, 0.5, 2.0]:
        for m, n in [(1, 1), (1, 4), (3, 1), (2, 2), (3, 4), (5, 5)]:
            for dtype in FLOATS:
                with subtests.test(dtype=f"{dtype!r:.60}", m=m, n=n, sigma=sigma):
                    distances = random_distances(m, n)
                    kappa = local_kernel(distances, sigma)
                    weights = [math.prod(float(kappa[cell]) for cell in path) for path in alignments(m, n)]
                    log_k = log_gak(distances.to(dtype), sigma)
                    assert log_k.dtype == dtype
                    assert float(log_k) == pytest.approx(
                        math.log(sum(weights)), rel=tolerance(dtype), abs=tolerance(dtype)
                    )

                    visits = torch.zeros(m, n, dtype=torch.float64)
                    for path, weight in zip(alignments(m, n), weights, strict=True):
                        for cell in path:
                            visits[cell] += weight / sum(weights)
                    torch.testing.assert_close(
                        soft_alignment(distances.to(dtype), sigma).double(), visits, atol=tolerance(dtype), rtol=0
                    )


def test_soft_alignment_is_the_derivative_of_log_k(subtests):
    for m, n, sigma in [(7, 4, 0.3), (12, 15, 1.0), (20, 20, 0.1)]:
        for dtype in FLOATS:
            with subtests.test(dtype=f"{dtype!r:.60}", m=m, n=n, sigma=sigma):
                distances = random_distances(m, n, seed=1)
                log_kappa = local_kernel(distances, sigma).log().requires_grad_()
                (expected,) = torch.autograd.grad(log_recursion(log_kappa), log_kappa)
                visits = soft_alignment(distances.to(dtype), sigma).double()
                torch.testing.assert_close(visits, expected, atol=tolerance(dtype), rtol=0)
                assert float(visits[0, 0]) == pytest.approx(1, abs=1e-5)
                assert float(visits[-1, -1]) == pytest.approx(1, abs=1e-5)
                assert (visits.sum(0) > 1 - 1e-5).all()
                assert (visits.sum(1) > 1 - 1e-5).all()


def test_lengths_1_to_256_neither_overflow_nor_underflow(subtests):
    for value in [0.0, 0.4, 4.0]:
        for length in [1, 2, 3, 16, 53, 64, 128, 256]:
            for dtype in FLOATS:
                with subtests.test(dtype=f"{dtype!r:.60}", length=length, value=value):
                    sigma = 0.1**0.5
                    distances = torch.full((2, length, length), value, dtype=dtype)
                    exact = log_table(distances[0].double()[:, None, :, None] / (TWO_LOG_2 * sigma**2))[-1, 0, -1, 0]
                    log_k = log_gak(distances, sigma)
                    assert torch.isfinite(log_k).all()
                    torch.testing.assert_close(
                        log_k, exact.to(dtype).expand(2), rtol=2e-6 if dtype == torch.float32 else 1e-12, atol=1e-5
                    )
                    cosine = calibrated_cosine(log_k, length, length, sigma)
                    torch.testing.assert_close(cosine, torch.full_like(cosine, 1 - value / 2), atol=2e-5, rtol=0)


def test_linear_space_could_not_hold_these_values():
    """The cases in which the plain recursion fails in float32: 53 equal slices overflow, distant ones vanish."""
    assert float(log_gak(torch.zeros(60, 60), 1.0)) > math.log(torch.finfo(torch.float32).max)
    distant = torch.full((64, 64), 4.0)
    assert float(log_gak(distant, 0.1)) < math.log(torch.finfo(torch.float64).tiny)


def test_fallbacks_agree_with_the_log_recursion(subtests):
    """Sigma 0.3 stays in float32 or float64, 0.02 needs log space: also in one batch with easy pairs."""
    for sigma in [0.02, 0.1, 0.3]:
        with subtests.test(sigma=sigma):
            distances = random_distances(3, 9, 11, seed=2)
            distances[1] = 0
            log_k = log_gak(distances.float(), sigma)
            visits = soft_alignment(distances.float(), sigma)
            for pair in range(3):
                log_kappa = -distances[pair] / (2 * sigma**2)
                log_kappa = (log_kappa - torch.log(2 - log_kappa.exp())).requires_grad_()
                expected = log_recursion(log_kappa)
                assert float(log_k[pair]) == pytest.approx(expected.item(), rel=1e-6)
                (derivative,) = torch.autograd.grad(expected, log_kappa)
                torch.testing.assert_close(visits[pair].double(), derivative, atol=2e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    distances = random_distances(4, 5).to(dtype)
    log_k = log_gak(distances, 0.5)
    assert log_k.dtype == torch.float32
    torch.testing.assert_close(log_k, log_gak(distances.float(), 0.5))


def test_unnormalised_kernel_counts_alignments_of_identical_pairs():
    assert float(log_gak(torch.zeros(2, 2), 1.0).exp()) == pytest.approx(3)
    assert float(log_gak(torch.zeros(3, 3), 1.0).exp()) == pytest.approx(13)


@settings(max_examples=25, deadline=None)
@given(
    m=st.integers(1, 6),
    n=st.integers(1, 6),
    more=st.integers(0, 4),
    seed=st.integers(0, 1000),
    sigma=st.sampled_from([0.05, 0.3, 1.0]),
)
def test_padding_does_not_matter(m, n, more, seed, sigma):
    padded = random_distances(2, m + more, n + more, seed=seed)
    lengths_x, lengths_y = torch.tensor([m, m + more]), torch.tensor([n, n + more])
    log_k = log_gak(padded, sigma, lengths_x, lengths_y)
    visits = soft_alignment(padded, sigma, lengths_x, lengths_y)
    torch.testing.assert_close(log_k[0], log_gak(padded[0, :m, :n], sigma))
    torch.testing.assert_close(log_k[1], log_gak(padded[1], sigma))
    torch.testing.assert_close(visits[0, :m, :n], soft_alignment(padded[0, :m, :n], sigma))
    assert visits[0].sum() == pytest.approx(float(visits[0, :m, :n].sum()))
    torch.testing.assert_close(visits[1], soft_alignment(padded[1], sigma))


@settings(max_examples=25, deadline=None)
@given(m=st.integers(1, 7), n=st.integers(1, 7), seed=st.integers(0, 1000))
def test_swapping_the_sequences_transposes(m, n, seed):
    distances = random_distances(m, n, seed=seed)
    torch.testing.assert_close(log_gak(distances, 0.4), log_gak(distances.T, 0.4))
    torch.testing.assert_close(soft_alignment(distances, 0.4), soft_alignment(distances.T, 0.4).T)


@settings(max_examples=40, deadline=None)
@given(
    m=st.integers(1, 40),
    n=st.integers(1, 40),
    cosine=st.floats(-1, 1),
    sigma=st.sampled_from([0.1, 0.1**0.5, 1.0, 3.0]),
)
def test_calibrated_cosine_of_constant_distances_is_the_cosine(m, n, cosine, sigma):
    distances = torch.full((m, n), 2 - 2 * cosine, dtype=torch.float64)
    result = calibrated_cosine(log_gak(distances, sigma), m, n, sigma)
    assert float(result) == pytest.approx(cosine, abs=1e-9)


def test_calibrated_cosine_stays_between_the_smallest_and_largest_cosine():
    distances = random_distances(50, 6, 9, seed=3)
    lengths_x, lengths_y = torch.randint(1, 7, (50,)), torch.randint(1, 10, (50,))
    cosine = calibrated_cosine(log_gak(distances, 0.3, lengths_x, lengths_y), lengths_x, lengths_y, 0.3)
    assert (cosine >= 1 - distances.flatten(1).amax(1) / 2 - 1e-9).all()
    assert (cosine <= 1 - distances.flatten(1).amin(1) / 2 + 1e-9).all()


def test_sigma_per_pair():
    distances = random_distances(2, 3, 4, 5)
    sigma = torch.tensor([[0.2, 0.4, 0.6], [0.8, 1.0, 2.0]], dtype=torch.float64)
    log_k = log_gak(distances, sigma)
    assert log_k.shape == (2, 3)
    torch.testing.assert_close(log_k[1, 0], log_gak(distances[1, 0], 0.8))


@pytest.mark.parametrize(
    ("shape", "sigma", "length", "dtype"),
    [((5, 3), 1.0, 7, np.float64), ((5, 3), 0.7, 70, np.float64), ((1, 4), 2.0, 1, np.float64)],
)
def test_tslearn_gak(shape, sigma, length, dtype):
    """Tslearn's sigma is the plain bandwidth: exp(-d² / (2 sigma²)), the same for the self kernels."""
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(length, 3)).astype(dtype), generator.normal(size=(length + 2, 3)).astype(dtype)

    def log_k(a, b):
        distances = torch.cdist(torch.from_numpy(a), torch.from_numpy(b)).square()
        return float(log_gak(distances, sigma))

    ours = math.exp(log_k(x, y) - (log_k(x, x) + log_k(y, y)) / 2)
    assert ours == pytest.approx(float(gak(x, y, sigma=sigma)), rel=1e-8)


def test_tslearn_cdist_gak_with_variable_lengths(subtests):
    for max_cells in [None, 1, 500]:
        for dtype in FLOATS:
            with subtests.test(dtype=f"{dtype!r:.60}", max_cells=max_cells):
                generator = torch.Generator().manual_seed(0)
                sequences = torch.randn(9, 6, 4, generator=generator, dtype=torch.float64)
                lengths = torch.tensor([6, 1, 2, 6, 5, 3, 4, 6, 2])
                ragged = [sequences[i, :length].numpy() for i, length in enumerate(lengths)]
                reference = cdist_gak([series.tolist() for series in ragged], sigma=1.5)
                ours = gak_matrix(sequences.to(dtype), 1.5, lengths, max_cells=max_cells)
                assert ours.dtype == dtype
                torch.testing.assert_close(
                    ours.double(), torch.from_numpy(reference), atol=1e-6 if dtype == torch.float32 else 1e-12, rtol=0
                )
                assert torch.equal(ours, ours.T)
                assert torch.equal(ours.diagonal(), torch.ones(9, dtype=dtype))


def test_normalised_kernel_is_positive_semidefinite_for_one_space():
    sequences = torch.randn(30, 5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    matrix = gak_matrix(sequences, 1.0, torch.randint(1, 6, (30,), generator=torch.Generator().manual_seed(2)))
    assert torch.linalg.eigvalsh(matrix)[0] > -1e-9
    assert matrix.max() <= 1 + 1e-12


def test_bad_input(subtests):
    for call, message in [
        (lambda: log_gak(torch.zeros(3), 1.0), r"shape \(\.\.\., m, n\)"),
        (lambda: log_gak(torch.zeros(0, 3), 1.0), "a slice on each side"),
        (lambda: log_gak(torch.zeros(3, 3), 0.0), "sigma must be positive"),
        (lambda: log_gak(torch.zeros(2, 3, 3), 1.0, torch.tensor([1, 4])), "lengths_x must lie between 1 and 3"),
        (lambda: soft_alignment(torch.zeros(2, 3, 3), 1.0, None, torch.tensor([0, 1])), "lengths_y"),
        (lambda: calibrated_cosine(torch.zeros(1), 0, 1, 0.3), "1 or more"),
        (lambda: gak_matrix(torch.zeros(3, 3), 1.0), r"shape \(n, T, d\)"),
    ]:
        with subtests.test(message=message), pytest.raises(ValueError, match=message):
            call()


def test_empty_batch():
    assert log_gak(torch.zeros(0, 3, 4), 1.0).shape == (0,)
    assert soft_alignment(torch.zeros(0, 3, 4), 1.0).shape == (0, 3, 4)
