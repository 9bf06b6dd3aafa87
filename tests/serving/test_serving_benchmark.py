"""benchmarks/serving.py measures, and what it writes has the figures that are looked for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "serving.py"


@pytest.mark.slow
def test_it_measures(tmp_path):
    command = [sys.executable, str(BENCHMARK), "--quick", "--threads", "1", "--words", "3", "--new-tokens", "2"]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "x.json")], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "x.json").read_text())
    assert {"embed_batched_over_single", "chat_p95", "overhead_over_direct"} <= set(found)
    assert set(found["figures"]) == {"batched", "alone", "chat"}
    for rows in found["figures"].values():
        assert set(rows) == {"1", "8", "32"}
        assert all(0 < row["p50"] <= row["p95"] for row in rows.values())
    assert "| direct call |" in done.stdout
    assert "Traceback" not in done.stderr
