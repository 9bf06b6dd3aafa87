"""Time the normalised global alignment kernels of all pairs of n sequences against ``tslearn.metrics.cdist_gak``.

Both get the same inputs in one run, and their results are compared. Needs ``pip install "sugar-hf[dev]"``::

    python benchmarks/alignment.py --json alignment.json
    python benchmarks/alignment.py --quick

Sequences are random unit vectors, the bandwidth is ``sigma = delta sqrt(T)`` with delta 0.5 (appendix D.2 of the paper
at equal lengths). Our time is the best of several calls, that of tslearn the best of two (one if a call takes over
10 s). Where tslearn would take long over all n (n + 1) / 2 pairs it is timed on the pairs of the first m sequences and
scaled by the number of pairs: column "tslearn pairs" says on which share it was timed, and agreement is checked on
those. tslearn works in float64 whatever it is given, and runs ``n_jobs`` threads.
"""

import argparse
import itertools
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tslearn.metrics import cdist_gak

from sugar_hf.structure import gak_matrix

DELTA = 0.5
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}


def best_time(call, repeats: int, enough: float) -> tuple[float, object]:
    """Shortest of several calls in seconds, and the last result; stops early when they have taken ``enough``."""
    shortest, spent, result = float("inf"), 0.0, None
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        duration = time.perf_counter() - start
        shortest, spent = min(shortest, duration), spent + duration
        if spent > enough:
            break
    return shortest, result


def compare(n: int, length: int, dim: int, dtype: torch.dtype, threads: int, limit: float) -> dict:
    """One row of the table."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    sequences = torch.nn.functional.normalize(torch.randn(n, length, dim, generator=generator), dim=-1).to(dtype)
    sigma = DELTA * length**0.5
    arrays = sequences.numpy()

    gak_matrix(sequences, sigma)
    ours, kernels = best_time(lambda: gak_matrix(sequences, sigma), repeats=30, enough=3.0)

    probe = min(n, 16)
    cdist_gak(arrays[:2], sigma=sigma, n_jobs=threads)  # compiles
    per_pair, _ = best_time(lambda: cdist_gak(arrays[:probe], sigma=sigma, n_jobs=threads), repeats=2, enough=limit)
    per_pair /= probe * (probe + 1) / 2
    timed = n
    while timed > probe and per_pair * timed * (timed + 1) / 2 > limit:
        timed //= 2
    theirs, reference = best_time(
        lambda: cdist_gak(arrays[:timed], sigma=sigma, n_jobs=threads), repeats=2, enough=min(limit, 10.0)
    )
    share = timed * (timed + 1) / (n * (n + 1))
    error = float(np.abs(kernels[:timed, :timed].numpy() - reference).max())
    return {
        "n": n,
        "T": length,
        "d": dim,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": threads,
        "ours_s": ours,
        "tslearn_s": theirs / share,
        "tslearn_share_of_pairs_timed": share,
        "largest_difference": error,
        "agree": error <= TOLERANCE[dtype],
        "ratio_vs_tslearn": theirs / share / ours,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to this file")
    parser.add_argument("--quick", action="store_true", help="the two targets only, one thread")
    parser.add_argument("--limit", type=float, default=60, help="seconds a call of tslearn may take (default: 60)")
    options = parser.parse_args()
    if options.quick:
        cases = [(512, 8, 64, torch.float32, 1), (128, 64, 64, torch.float32, 1)]
    else:
        cases = list(
            itertools.product((32, 128, 512), (4, 8, 16, 64), (64, 768), (torch.float32, torch.float64), (1, 2))
        )
    rows = []
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}; sigma = {DELTA} sqrt(T)")
    print("  n   T    d    dtype threads     ours ms   tslearn ms  tslearn pairs  difference    ratio")
    for case in cases:
        row = compare(*case, limit=options.limit)
        rows.append(row)
        print(
            f"{row['n']:>3} {row['T']:>3} {row['d']:>4} {row['dtype']:>8} {row['threads']:>7} "
            f"{row['ours_s'] * 1e3:>11.2f} {row['tslearn_s'] * 1e3:>12.1f} "
            f"{row['tslearn_share_of_pairs_timed']:>14.1%} {row['largest_difference']:>11.1e} "
            f"{row['ratio_vs_tslearn']:>8.1f}" + ("" if row["agree"] else "  DISAGREE"),
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if all(row["agree"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
