"""The attack program at tiny size: every flood and one fault of each kind, judged as the full run is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.attack import FAULTS, FLOODS, Attack, Resources
from benchmarks.bystander import Stream
from benchmarks.floods import Target

ROOT = Path(__file__).parents[2]


class NoServer:
    """What the judgement needs of a server."""

    url = "http://127.0.0.1:9"
    lines = ("INFO one", "ERROR two")


@pytest.fixture
def attack(tmp_path):
    made = Attack(NoServer(), 10.0, tmp_path / "hang")
    made._watch.stop()
    return made


def seen(text="a b", **fields):
    return Stream("p", **{"began_s": 1.0, "ended_s": 2.0, "longest_gap_s": 0.1, "text": text, **fields})


def judged(attack, *streams):
    attack.rows.clear()
    attack.judge(list(streams), {"p": "a b"})
    return [row.is_ok for row in attack.rows]


def test_a_bystanders_streams_must_be_exact_and_without_gaps(attack):
    attack._flood_times = [(0.0, 5.0)]
    assert judged(attack, seen()) == [True, True]
    assert judged(attack, seen("a c")) == [False, True]
    assert judged(attack, seen("a")) == [False, True]
    assert judged(attack, seen(longest_gap_s=1.5)) == [True, False]
    assert judged(attack) == [False, False]
    attack._fault_times = [(1.5, 9.0)]
    assert judged(attack, seen(), seen(began_s=1.4, longest_gap_s=8.0), seen(began_s=0.1, ended_s=1.0))[1]


def test_a_stream_may_be_cut_by_a_fault_only(attack):
    attack._flood_times, attack._fault_times = [(0.0, 5.0)], [(10.0, 20.0)]
    cut = {"text": "a", "error": "engine died"}
    assert judged(attack, seen(), seen(began_s=11.0, ended_s=12.0, **cut)) == [True, True]
    assert judged(attack, seen(), seen(**cut)) == [False, True]
    assert judged(attack, seen(), seen(began_s=11.0, ended_s=12.0, text="x", error="engine died")) == [False, True]


def test_what_a_server_keeps_is_a_failure(attack):
    before = Resources(100, 4, 70, 20, 1000.0)
    attack.compare(before, Resources(100, 4, 70, 20, 1049.0))
    assert all(row.is_ok for row in attack.rows)
    attack.rows.clear()
    attack.compare(before, Resources(99, 5, 71, 21, 1051.0))
    assert not any(row.is_ok for row in attack.rows)


def test_forged_lines_are_found(attack):
    assert not attack._is_forged()
    attack.live.lines = ("INFO one", "ERROR: forged by a client HTTP/1.1")
    assert attack._is_forged()


def test_a_request_of_the_attackers_is_whole():
    head, _, body = Target("http://h:1", "k").request("/x", {"a": 1}).partition(b"\r\n\r\n")
    assert b"Content-Length: %d" % len(body) in head
    assert b"Authorization: Bearer k" in head


def test_a_tiny_run_prints_its_table_and_holds(tmp_path, smollm2_gguf):
    out = tmp_path / "attack.json"
    names = ["aborts", "log forgeries", "killed worker"]
    command = [sys.executable, "-m", "benchmarks.attack", "--seconds", "2", "--prompts", "2"]
    command += ["--json", str(out), "--only", *names]
    command += ["--", "--load-format", "dummy", "--hf-overrides", '{"num_hidden_layers": 2}']  # exact texts, whichever
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    rows = {row["name"].partition(" x ")[0]: row for row in json.loads(out.read_text())}
    assert set(names) < set(rows)
    assert set(names) < {*FLOODS, *FAULTS}
    for name in (*names, "free blocks", "bystander's text"):
        assert rows[name]["is_ok"], done.stdout
        assert name in done.stdout
