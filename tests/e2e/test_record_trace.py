"""A trace of a live server with two workers, and a simulation of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from plugserve import cli
from plugserve.core.wire.trace_file import read_trace
from tests.e2e.live_server import LiveServer, scripted_model


def test_live_traffic_is_recorded_by_all_workers_and_simulated(smollm2_gguf, tmp_path, capsys):
    path = tmp_path / "trace.jsonl"
    # a path relative to the server's own folder
    model = scripted_model(tmp_path)
    with LiveServer(*model, "--record-trace", "trace.jsonl", "--api-workers", "2", cwd=tmp_path) as server:
        with ThreadPoolExecutor(8) as pool:
            asked = [(f"Tell me number {n}: " + "word " * (5 * n), 3 + n, f"user {n % 2}") for n in range(8)]
            list(pool.map(lambda one: server.complete(one[0], one[1], user=one[2], ignore_eos=True), asked))
        assert server.stop() == 0
    trace = read_trace(str(path))
    assert sorted(one.output_tokens for one in trace.requests) == list(range(3, 11))
    assert len({one.user for one in trace.requests}) == 2
    assert "Tell" not in path.read_text()
    assert (trace.facts.block_size, trace.facts.scheduler, trace.facts.max_num_seqs) == (16, "fcfs", 256)
    decoded = sum(rows for _, rows, _, _ in trace.steps)
    assert sum(prompt for prompt, _, _, _ in trace.steps) == sum(one.prompt_tokens for one in trace.requests)
    assert decoded >= sum(one.output_tokens - 1 for one in trace.requests)
    assert cli.main(["simulate", "--trace", str(path), "--scheduler", "fcfs,fair"]) == 0
    out = capsys.readouterr().out
    assert "steps measured in the trace" in out
    assert "measured (fcfs)" in out


def test_unwritable_trace_stops_the_start(smollm2_gguf, tmp_path, capsys):
    assert cli.main(["--port", "0", "--record-trace", str(tmp_path / "no" / "trace.jsonl")]) == 2
    assert f"there is no folder {tmp_path / 'no'}" in capsys.readouterr().err
    assert cli.main(["--port", "0", "--record-trace", str(tmp_path)]) == 2
    assert f"--record-trace {tmp_path} can't be written" in capsys.readouterr().err
