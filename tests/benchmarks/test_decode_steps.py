"""The decode step benchmark runs on a CPU at tiny size; its report is tested, not its speed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "decode_steps.py"


def test_a_tiny_run_prints_a_line_a_job():
    words = [sys.executable, str(SCRIPT), "tiny:3:40", "tiny:1:8", "--setting", "device", "cpu"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    head, *lines = done.stdout.splitlines()
    assert head.split()[:3] == ["shape", "rows", "context"]
    assert [line.split()[:3] for line in lines] == [["tiny", "3", "40"], ["tiny", "1", "8"]]
    assert all(float(line.split()[3]) > 0 for line in lines)
