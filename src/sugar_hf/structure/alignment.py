"""The global alignment kernel and what is read from it: log K, the posterior alignment, the calibrated cosine.

Source: Sugar (arXiv 2411.00304), equations 2 and 3, appendices C and D.2; Cuturi, "Fast global alignment kernels",
ICML 2011. ``sigma`` is the plain bandwidth of the local Gaussian (``phi / (2 sigma²)``), as in tslearn.

No function here carries a gradient: alignment scores are labels.

The dynamic programs run along anti-diagonals for many pairs at once. Tables have the layout
``(m, rows, n, columns)``: cell ``(i, j)`` of the alignment of row sequence ``r`` with column sequence ``c`` lies at
``[i, r, j, c]``. All pairs of one cell are contiguous, so each anti-diagonal is one strided view and each step of the
recursion is three vectorised operations. One matrix product of stacked sequences gives the distances in this layout.

Distances enter as halvings ``e = phi / (2 sigma² log 2)``, how often they halve the local Gaussian ``2^-e``: powers of
two are several times faster than exp on CPUs, and the factor costs nothing where sigma is divided by anyway.

Cell ``[i, r, j, c]`` holds the kernel of the prefixes of lengths ``i + 1`` and ``j + 1``. It depends on nothing that
comes later in the sequences, so padding needs no mask: read the table at the last real slice.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

# 2 * ALPHA + ALPHA**2 = 1: with every step weighted by ALPHA (a diagonal one by its square) no cell can exceed 1.
ALPHA = math.sqrt(2) - 1
LOG_ALPHA = math.log(ALPHA)
TWO_LOG_2 = 2 * math.log(2)  # squared distances over TWO_LOG_2 * sigma² are halvings

CellIndex = tuple[Tensor, Tensor, Tensor, Tensor]  # (slice of x, row, slice of y, column), broadcast together
NEWTON_STEPS = 5  # four reach 1e-12 at lengths up to 256


# ---- The recursions ----


def working_dtypes(tensor: Tensor) -> list[torch.dtype]:
    """The precisions in which the tilted recursion is tried, cheapest first."""
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    if dtype == torch.float64 or tensor.device.type == "mps":  # MPS has no float64
        return [dtype]
    return [dtype, torch.float64]


def precise(tensor: Tensor) -> Tensor:
    """The tensor in the widest float its device has."""
    return tensor.to(working_dtypes(tensor)[-1])


def underflow_floor(table: Tensor) -> float:
    """Smallest value of the tilted kernel that is still exact to rounding.

    Paths that pass through an underflowed cell weigh at most ``tiny`` each time, since tilted path weights never grow
    on the way to the corner. So their total is below ``tiny * cells``, which is below rounding for larger results.
    """
    info = torch.finfo(table.dtype)
    return info.tiny * table.shape[0] * table.shape[2] / info.eps


def _antidiagonal(table: Tensor, diagonal: int, first: int, stop: int) -> Tensor:
    """View of the cells ``(i, diagonal - i)`` for ``first <= i < stop``: (stop - first, rows, columns)."""
    step_i, step_row, step_j, step_column = table.stride()
    return table.as_strided(
        (stop - first, table.shape[1], table.shape[3]),
        (step_i - step_j, step_row, step_column),
        table.storage_offset() + first * step_i + (diagonal - first) * step_j,
    )


def _inner_antidiagonals(m: int, n: int) -> Iterator[tuple[int, int, int]]:
    """The anti-diagonals off the first row and column, as (diagonal, first i, stop i)."""
    for diagonal in range(2, m + n - 1):
        yield diagonal, max(1, diagonal - n + 1), min(m, diagonal)


def tilted_table_(halvings: Tensor) -> Tensor:
    """Run the tilted recursion in place.

    ``M_ij = ALPHA kappa_ij (M_i-1,j + M_i,j-1 + ALPHA M_i-1,j-1)`` with ``M_11 = ALPHA² kappa_11``, so that
    ``log K = log M_mn - (m + n) log ALPHA``. The local kernel is ``kappa = 1 / (2 * 2^e - 1)`` of the halvings e.

    Args:
        halvings: (m, rows, n, columns), overwritten by the table.
    """
    m, _, n, _ = halvings.shape
    table = halvings.exp2_()
    # 1 / (ALPHA kappa), both steps in one pass; dividing by it saves the pass that would invert it.
    torch.add(table.new_tensor(-1 / ALPHA), table, alpha=2 / ALPHA, out=table)
    edge = table[:, :, 0].unbind(0)
    torch.div(edge[0].new_tensor(ALPHA), edge[0], out=edge[0])
    for before, cell in pairwise(edge):
        torch.div(before, cell, out=cell)
    edge = table[0].unbind(1)
    for before, cell in pairwise(edge):
        torch.div(before, cell, out=cell)
    for diagonal, first, stop in _inner_antidiagonals(m, n):
        arriving = _antidiagonal(table, diagonal - 1, first - 1, stop - 1) + _antidiagonal(
            table, diagonal - 1, first, stop
        )
        arriving.add_(_antidiagonal(table, diagonal - 2, first - 1, stop - 1), alpha=ALPHA)
        cells = _antidiagonal(table, diagonal, first, stop)
        torch.div(arriving, cells, out=cells)
    return table


def log_table(halvings: Tensor) -> Tensor:
    """Log of the untilted table ``M_ij = k_ij (M_i-1,j + M_i,j-1 + M_i-1,j-1)``, for values no float can hold.

    Args:
        halvings: (m, rows, n, columns); kept.
    """
    m, _, n, _ = halvings.shape
    log_gauss = -math.log(2) * halvings
    table = log_gauss - torch.log(2 - torch.exp(log_gauss))  # log of the local kernel
    table[:, :, 0] = table[:, :, 0].cumsum(0)
    table[0] = table[0].cumsum(1)
    for diagonal, first, stop in _inner_antidiagonals(m, n):
        arriving = torch.logaddexp(
            _antidiagonal(table, diagonal - 1, first - 1, stop - 1), _antidiagonal(table, diagonal - 1, first, stop)
        )
        arriving = torch.logaddexp(arriving, _antidiagonal(table, diagonal - 2, first - 1, stop - 1))
        _antidiagonal(table, diagonal, first, stop).add_(arriving)
    return table


def log_kernel_at(halvings: Callable[[], Tensor], index: CellIndex) -> Tensor:
    """Compute log K of the prefix pairs at ``index``, by the cheapest recursion that holds their values.

    The tilted recursion runs first. It cannot overflow; where a wanted value comes out below what is exact it runs
    again in float64, and if that is too narrow as well, in log space.

    Args:
        halvings: computes the halvings (m, rows, n, columns), contiguous; called for each attempt, which may overwrite
            them.
        index: the cells to read; the four parts broadcast to the shape of the result.

    Returns:
        log K, in the precision that was needed.
    """
    current = halvings()
    _, rows, n, columns = current.shape
    last_x, row, last_y, column = index
    flat = (last_x * rows + row) * (n * columns) + (last_y * columns + column)  # much faster than four indices
    for dtype in working_dtypes(current):
        table = tilted_table_(current.to(dtype))
        values = table.view(-1)[flat]
        if values.numel() == 0 or bool(values.min() >= underflow_floor(table)):
            tilt_x, tilt_y = ((last + 1).to(dtype) * LOG_ALPHA for last in (last_x, last_y))
            return values.log_().sub_(tilt_x).sub_(tilt_y)
        current = halvings()
    return log_table(precise(current)).view(-1)[flat]


# ---- Kernels ----


def _lengths(lengths: Tensor | None, name: str, batch: torch.Size, longest: int, device: torch.device) -> Tensor:
    """Lengths as an int64 tensor of the batch's shape, flattened."""
    if lengths is None:
        return torch.full((math.prod(batch),), longest, dtype=torch.int64, device=device)
    lengths = torch.as_tensor(lengths, device=device).to(torch.int64)
    if lengths.numel() and (int(lengths.min()) < 1 or int(lengths.max()) > longest):
        raise ValueError(
            f"{name} must lie between 1 and {longest}, the padded length of `distances`; "
            f"got values from {int(lengths.min())} to {int(lengths.max())}."
        )
    return lengths.expand(batch).reshape(-1)


def _pair_halvings(distances: Tensor, sigma: float | Tensor) -> Tensor:
    """Halvings in the layout of the tables (m, 1, n, pairs), a fresh tensor of at least float32."""
    dtype = torch.promote_types(distances.dtype, torch.float32)
    sigma = torch.as_tensor(sigma, dtype=dtype, device=distances.device)
    if bool((sigma <= 0).any()):
        raise ValueError(f"sigma must be positive; got {float(sigma.min())}.")
    m, n = distances.shape[-2:]
    halvings = distances.to(dtype) / (TWO_LOG_2 * sigma.square())[..., None, None]
    # Squared distances are never negative; rounding can make them so.
    return halvings.reshape(-1, m, n).permute(1, 2, 0).unsqueeze(1).clamp(min=0).contiguous()


def _checked_shape(distances: Tensor) -> tuple[torch.Size, int, int]:
    if distances.dim() < 2 or 0 in distances.shape[-2:]:
        raise ValueError(
            f"distances must have shape (..., m, n) with a slice on each side at least; got {tuple(distances.shape)}."
        )
    return distances.shape[:-2], distances.shape[-2], distances.shape[-1]


@torch.no_grad()
def log_gak(
    distances: Tensor,
    sigma: float | Tensor,
    lengths_x: Tensor | None = None,
    lengths_y: Tensor | None = None,
) -> Tensor:
    """Log of the global alignment kernel of every pair (eq. 2 and 3), not normalised.

    ``M_ij = (M_i,j-1 + M_i-1,j-1 + M_i-1,j) kappa_ij``, ``K = M_mn``, with the local kernel
    ``kappa = s / (2 - s)``, ``s = exp(-phi / (2 sigma²))``.

    Args:
        distances: squared distances phi, padded where lengths are given.
        sigma: bandwidth, one for all or one per pair.
        lengths_x: real rows of each pair; all of them when None.
        lengths_y: real columns of each pair; all of them when None.

    Shape:
        distances (..., m, n), sigma () or (...,), lengths (...,) or broadcastable to it; returns (...,), float32 or
        the wider type of ``distances``.

    Raises:
        ValueError: for an empty side, a sigma that is not positive, or a length outside of 1 to m (or n).

    Example:
        >>> log_gak(torch.zeros(2, 2), sigma=1.0).exp()  # identical pairs: K counts the three alignments
        tensor(3.0000)
    """
    batch, m, n = _checked_shape(distances)
    last_x = _lengths(lengths_x, "lengths_x", batch, m, distances.device) - 1
    last_y = _lengths(lengths_y, "lengths_y", batch, n, distances.device) - 1
    pairs = torch.arange(last_x.numel(), device=distances.device)
    index = (last_x, torch.zeros_like(pairs), last_y, pairs)
    log_k = log_kernel_at(lambda: _pair_halvings(distances, sigma), index)
    return log_k.reshape(batch).to(torch.promote_types(distances.dtype, torch.float32))


@torch.no_grad()
def soft_alignment(
    distances: Tensor,
    sigma: float | Tensor,
    lengths_x: Tensor | None = None,
    lengths_y: Tensor | None = None,
) -> Tensor:
    """Expected number of visits of the alignment to every cell, ``E = d log K / d log kappa``.

    The forward table times the table of the reversed sequences. Both corners are 1, and each real row and column sums
    to 1 or more; padding is 0.

    Args and errors: as for :func:`log_gak`.

    Shape:
        distances (..., m, n); returns (..., m, n).
    """
    batch, m, n = _checked_shape(distances)
    length_x = _lengths(lengths_x, "lengths_x", batch, m, distances.device)
    length_y = _lengths(lengths_y, "lengths_y", batch, n, distances.device)
    rows = torch.arange(m, device=distances.device)[:, None, None]  # (m, 1, 1)
    columns = torch.arange(n, device=distances.device)[None, :, None]  # (1, n, 1)
    pairs = torch.arange(length_x.numel(), device=distances.device)
    corner = (length_x - 1, length_y - 1, pairs)
    # Reverses each pair within its own lengths; padding stays in the cells that no real cell reads.
    flipped = ((length_x - 1 - rows).clamp(min=0), (length_y - 1 - columns).clamp(min=0), pairs)
    real = (rows < length_x) & (columns < length_y)  # (m, n, pairs)

    halvings = _pair_halvings(distances, sigma)[:, 0]  # (m, n, pairs)
    visits = None
    for dtype in working_dtypes(halvings):
        wide = halvings.to(dtype)
        backward = tilted_table_(wide[flipped].unsqueeze(1))[:, 0]
        forward = tilted_table_(wide.clone().unsqueeze(1))
        floor = underflow_floor(forward)
        forward = forward[:, 0]
        total = forward[corner]
        if total.numel() == 0 or bool(total.min() >= floor):
            leaving = torch.zeros_like(backward)  # weight of all ways on from a cell, itself excluded
            leaving[0, 0] = ALPHA
            leaving[1:] += backward[:-1]
            leaving[:, 1:] += backward[:, :-1]
            leaving[1:, 1:] += ALPHA * backward[:-1, :-1]
            visits = forward * leaving[flipped] / (ALPHA * total)
            break
    if visits is None:
        wide = precise(halvings)
        backward = log_table(wide[flipped].unsqueeze(1))[:, 0]
        forward = log_table(wide.unsqueeze(1))[:, 0]
        leaving = torch.full_like(backward, -math.inf)
        leaving[0, 0] = 0
        leaving[1:] = torch.logaddexp(leaving[1:], backward[:-1])
        leaving[:, 1:] = torch.logaddexp(leaving[:, 1:], backward[:, :-1])
        leaving[1:, 1:] = torch.logaddexp(leaving[1:, 1:], backward[:-1, :-1])
        visits = torch.exp(forward + leaving[flipped] - forward[corner])
    return visits.where(real, 0).permute(2, 0, 1).reshape(*batch, m, n).to(halvings.dtype)


@torch.no_grad()
def calibrated_cosine(log_k: Tensor, length_x: int | Tensor, length_y: int | Tensor, sigma: float | Tensor) -> Tensor:
    """The constant cosine that would give the same kernel at these lengths.

    Solves ``sum_l N_l kappa^l = K`` by Newton steps on log kappa, where ``N_l`` counts the alignments that visit ``l``
    cells, ``l = max(m, n), ..., m + n - 1``, then undoes the local kernel of a unit-vector pair:
    ``c = 1 + sigma² log(2 kappa / (1 + kappa))``. This is no part of the paper. It removes what the lengths alone do
    to K: the result is exactly the cosine for single slices, and exactly ``1 - phi / 2`` for constant distances phi
    at any lengths.

    Args:
        log_k: log of the kernel that is not normalised.
        length_x: m, number of slices.
        length_y: n, number of slices.
        sigma: the bandwidth K was computed with.

    Shape:
        log_k (...,); the others broadcast with it; returns (...,).

    Example:
        >>> phi = torch.full((3, 5), 0.8)
        >>> calibrated_cosine(log_gak(phi, sigma=0.3), 3, 5, sigma=0.3)
        tensor(0.6000)
    """
    dtype = torch.promote_types(log_k.dtype, torch.float32)
    target = precise(log_k)
    m = torch.as_tensor(length_x, device=log_k.device).to(torch.int64)
    n = torch.as_tensor(length_y, device=log_k.device).to(torch.int64)
    if (m.numel() and int(m.min()) < 1) or (n.numel() and int(n.min()) < 1):
        raise ValueError("length_x and length_y must be 1 or more.")
    # Counted once for each pair of lengths that there may be, and looked up.
    longest_x, longest_y = (int(length.max()) if length.numel() else 1 for length in (m, n))
    counts = _log_counts(longest_x, longest_y, log_k.device, target.dtype)  # (longest_x, longest_y, most)
    log_count = counts.flatten(0, 1)[(m - 1) * longest_y + (n - 1)]  # (..., most)
    log_kappa = torch.zeros((), dtype=torch.float32, device=log_k.device)
    for step in range(NEWTON_STEPS):
        # each step squares the error: all but the last may be made in single precision
        precision = target.dtype if step == NEWTON_STEPS - 1 else torch.float32
        start, wanted, counted = (part.to(precision) for part in (log_kappa, target, log_count))
        log_kappa = _newton_step(start, wanted, counted, m + n - 1)
    sigma = torch.as_tensor(sigma, dtype=target.dtype, device=target.device)
    cosine = 1 + sigma.square() * (math.log(2) + log_kappa - torch.log1p(log_kappa.exp()))
    return cosine.clamp(max=1).to(dtype)


def _newton_step(log_kappa: Tensor, target: Tensor, log_count: Tensor, longest_path: Tensor) -> Tensor:
    """One step towards ``log sum_l N_l exp(l t) = target``, which is convex and rises in t: from above, it comes down.

    Shape:
        log_kappa and target (...,), log_count (..., most) of paths with 0, 1, ... diagonal steps, longest_path (...,).
    """
    diagonals = torch.arange(log_count.shape[-1], device=log_count.device, dtype=log_count.dtype)
    visited = longest_path[..., None] - diagonals  # (..., most)
    terms = torch.addcmul(log_count, visited, log_kappa[..., None])
    largest = terms.amax(-1, keepdim=True)
    moments = torch.stack([torch.ones_like(diagonals), diagonals], dim=1)  # (most, 2)
    # exp(-80) is nothing beside 1, and results that underflow cost a CPU a hundred times as much
    total, weighted = (terms.sub_(largest).clamp_(min=-80).exp_() @ moments).unbind(-1)
    slope = longest_path - weighted / total  # mean of the visited cells
    return log_kappa - (total.log() + largest[..., 0] - target) / slope


def _log_counts(longest_x: int, longest_y: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Log of the number of alignments of lengths m and n with d diagonal steps, -inf where there is none.

    They visit l = m + n - 1 - d cells: N_l = (l-1)! / ((n-1-d)! (m-1-d)! d!).

    Shape:
        returns (longest_x, longest_y, most), at [m - 1, n - 1, d].
    """
    m = torch.arange(1, longest_x + 1, device=device)[:, None, None]
    n = torch.arange(1, longest_y + 1, device=device)[:, None]
    diagonals = torch.arange(min(longest_x, longest_y), device=device)
    log_factorial = torch.lgamma(torch.arange(1, longest_x + longest_y + 1, device=device, dtype=dtype))
    log_count = (
        log_factorial[m + n - 2 - diagonals]
        - log_factorial[(n - 1 - diagonals).clamp(min=0)]
        - log_factorial[(m - 1 - diagonals).clamp(min=0)]
        - log_factorial[diagonals]
    )
    return log_count.where(diagonals < torch.minimum(m, n), -math.inf)


@torch.no_grad()
def gak_matrix(sequences: Tensor, sigma: float, lengths: Tensor | None = None, max_cells: int | None = None) -> Tensor:
    """Normalised global alignment kernels of all pairs of sequences, with Euclidean distances and one bandwidth.

    ``Kn(x, y) = K(x, y) / sqrt(K(x, x) K(y, y))``: what ``tslearn.metrics.cdist_gak`` computes, for all pairs at once.

    Args:
        sequences: the vectors, padded.
        sigma: bandwidth of all pairs.
        lengths: real vectors of each sequence; all of them when None.
        max_cells: alignment cells held at once; the default suits CPU caches.

    Shape:
        sequences (n, T, d), lengths (n,); returns (n, n), symmetric, 1 on the diagonal.
    """
    if sequences.dim() != 3 or 0 in sequences.shape:
        raise ValueError(f"sequences must have shape (n, T, d), none of them 0; got {tuple(sequences.shape)}.")
    if sigma <= 0:
        raise ValueError(f"sigma must be positive; got {sigma}.")
    count, length, _ = sequences.shape
    device = sequences.device
    last = _lengths(lengths, "lengths", sequences.shape[:1], length, device) - 1
    points = sequences.to(torch.promote_types(sequences.dtype, torch.float32)).transpose(0, 1)
    points = points / (sigma * math.sqrt(TWO_LOG_2 / 2))
    half_square = points.square().sum(-1, keepdim=True) / 2
    ones = torch.ones_like(half_square)
    # The halvings |a - b|² / (2 sigma² log 2) of all vectors by one matrix product.
    left = torch.cat([-points, half_square, ones], -1)  # (T, n, d + 2)
    right = torch.cat([points, ones, half_square], -1)
    log_k = torch.empty(count, count, dtype=points.dtype, device=device)
    chunks = row_chunks(count, count, length * length, max_cells or default_cells(sequences, length), True)
    # One workspace for all blocks: fresh memory for each would cost page faults.
    workspace = points.new_empty(max((stop - start) * (count - start) for start, stop in chunks) * length * length)
    for start, stop in chunks:
        rows = left[:, start:stop].flatten(0, 1)
        columns = right[:, start:].flatten(0, 1)
        shape = (length, stop - start, length, count - start)
        index = (
            last[start:stop, None],
            torch.arange(stop - start, device=device)[:, None],
            last[None, start:],
            torch.arange(count - start, device=device)[None],
        )

        def halvings(rows: Tensor = rows, columns: Tensor = columns, shape: tuple[int, ...] = shape) -> Tensor:
            product = workspace[: math.prod(shape)].view(len(rows), len(columns))
            return torch.mm(rows, columns.T, out=product).clamp_(min=0).view(shape)

        block = log_kernel_at(halvings, index)
        block[:, : stop - start] = mirrored(block[:, : stop - start])
        log_k[start:stop, start:] = block
        log_k[start:, start:stop] = block.T
    half_self = log_k.diagonal() / 2
    return log_k.sub_(half_self[:, None] + half_self).exp_()


def default_cells(tensor: Tensor, length: int) -> int:
    """Cells of a block of pairs: on a CPU one anti-diagonal of all its pairs should stay in the cache."""
    return max(2**20, 2**16 * length) if tensor.device.type == "cpu" else 2**26


def row_chunks(rows: int, columns: int, cells_per_pair: int, max_cells: int, symmetric: bool) -> list[tuple[int, int]]:
    """Split rows into ranges whose pairs with the columns (from the range on, if symmetric) fit into ``max_cells``."""
    ranges = []
    start = 0
    while start < rows:
        width = columns - start if symmetric else columns
        step = max(1, max_cells // (cells_per_pair * width))
        if step > 16:
            step -= step % 16  # what is left of a symmetric matrix stays aligned to vector registers
        stop = min(rows, start + step)
        ranges.append((start, stop))
        start = stop
    return ranges


def mirrored(upper: Tensor) -> Tensor:
    """The symmetric matrix with this upper triangle; what lies below the diagonal is ignored."""
    result = torch.triu(upper)
    return result.add_(torch.triu(upper, 1).T)
