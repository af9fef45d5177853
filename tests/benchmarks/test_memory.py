"""The memory benchmark runs on a CPU at tiny size; its report is tested, not how near the prediction is."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "memory.py"


def test_tiny_server_is_filled_and_measured(tmp_path):
    out = tmp_path / "memory.json"
    words = ["--models", "tiny", "--out", str(out)]
    for name, value in (("kv_cache_memory", "2MiB"), ("max_num_seqs", "4"), ("threads", "1")):
        words += ["--setting", name, value]
    done = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, 1), done.stderr
    (row,) = json.loads(out.read_text())
    assert row["full"] > 0.9
    assert row["real"] > 100 << 20
    assert row["predicted"] > 100 << 20
    parts = {name: (predicted, loaded) for name, predicted, loaded in row["parts"]}
    for name in ("weights", "KV cache"):
        assert parts[name][0] == parts[name][1] > 0
    assert "ratio" in done.stderr
    assert "tiny: weights" in done.stderr
