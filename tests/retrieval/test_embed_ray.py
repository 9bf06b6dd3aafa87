"""examples/embed_ray.py on a small cluster of this machine: the result is that of one process."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sugar_hf import picturebook
from sugar_hf.retrieval.embedder import SugarEmbedder
from sugar_hf.retrieval.index import SugarIndex

SCRIPT = Path(__file__).parents[2] / "examples" / "embed_ray.py"
MODEL = picturebook.checkpoint("mini-sugar")


def raylets():
    """The processes of Ray on this machine, of whoever started them."""
    listed = subprocess.run(["ps", "-eo", "pid,comm"], capture_output=True, text=True, check=True).stdout
    return {line.split()[0] for line in listed.splitlines() if "raylet" in line or "gcs_server" in line}


@pytest.mark.slow
def test_a_cluster_writes_the_index_of_one_process(tmp_path, one_thread):
    rows = picturebook.load("test", size=30)
    rows.to_parquet(tmp_path / "rows.parquet")
    before = raylets()
    options = ["--model", MODEL, "--workers", "2", "--part-documents", "4", "--batch-size", "3"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "rows.parquet"), str(tmp_path / "two.index"), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "30 documents added" in done.stdout
    assert raylets() <= before
    found = SugarIndex.load(tmp_path / "two.index")
    embedder = SugarEmbedder.from_pretrained(MODEL, batch_size=3)
    wanted = SugarIndex.build(tmp_path / "one.index", rows, embedder, part_documents=4, show_progress=False)
    assert [(d.id, d.digest) for d in found] == [(d.id, d.digest) for d in wanted]
    queries = embedder.encode(["a dog.", "a cat."])
    for ours, theirs in zip(found.search_embeddings(queries, 30), wanted.search_embeddings(queries, 30), strict=True):
        np.testing.assert_array_equal(ours, theirs)
