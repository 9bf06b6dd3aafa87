"""Dynamic programs of the global alignment kernel, run along anti-diagonals for many pairs at once.

Tables have the layout ``(m, rows, n, columns)``: cell ``(i, j)`` of the alignment of row sequence ``r`` with column
sequence ``c`` lies at ``[i, r, j, c]``. All pairs of one cell are contiguous, so each anti-diagonal is one strided
view and each step of the recursion is three vectorised operations. One matrix product of stacked sequences gives the
distances in this very layout.

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
