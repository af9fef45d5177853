"""The benchmark of idle plugins runs at tiny size; only the format of its report is tested, not its numbers."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "plugin_overhead.py"


def test_tiny_run_prints_every_figure_and_writes_json(tmp_path):
    out = tmp_path / "overhead.json"
    words = ["--plugins", "3", "--steps", "1000", "--out", str(out)]
    done = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert report["num_idle_plugins"] == 3
    assert report["num_steps"] == 1000
    assert all(value > 0 for value in report["us_per_step"].values())
    assert report["interval_us"][0] <= report["difference_us"] <= report["interval_us"][1]
    assert "difference, median of pairs" in done.stdout
