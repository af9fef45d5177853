"""The offline benchmark runs on a CPU at tiny size; only the format of its report is tested, not its numbers."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "offline.py"


def run(*arguments):
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=300)


def test_tiny_run_prints_every_workload_and_writes_json(tmp_path):
    out = tmp_path / "offline.json"
    done = run("--tiny", "--device", "cpu", "--out", str(out), "--setting", "threads", "1")
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert [row["workload"] for row in report["rows"]] == [
        "1 request",
        "8 requests",
        "64 requests",
        "saturation, greedy",
        "saturation, sampled",
        "prefill",
        "prefill and decode",
    ]
    assert all(row["value"] > 0 and row["workload"] in done.stdout for row in report["rows"])
    assert report["engines"]["tiny"]["load_format"] == "dummy"
    assert report["machine"]["torch"]


def test_unknown_shape_is_named():
    done = run("--shapes", "135M", "8B")
    assert done.returncode == 2
    assert "8B" in done.stderr
