"""`plugserve replay`: a flight recorder's file in words, and its requests again, here and on a server."""

import asyncio
import json
from array import array

import numpy as np
import pytest

from plugserve import cli
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.flight.flight_log import FlightLog
from plugserve.core.flight.flight_trace import trace_of
from plugserve.core.wire.request_origin import RequestOrigin
from plugserve.plugins.prefix_cache.lru_cache import BlockHashCache
from plugserve.replay.comparison import table
from plugserve.replay.recording import Measured, read_recording
from plugserve.replay.server_target import ServerTarget
from tests.core.flight.test_flight_recorder import driver
from tests.server.conftest import make_state, running, tokenizer  # noqa: F401 - fixtures
from tests.server.fakes import FakeEngine, says, served

ORIGIN = RequestOrigin("first", "/v1/chat/completions", 0.5)


def recorded(path, *, tokens=0):
    """Three requests that end, with a common beginning, and one that doesn't; one is refused."""
    engine = driver(path, prefix_cache=BlockHashCache(), hashes_prompts=True, tokens=tokens)
    common = list(range(1, 49))
    engine.send([*common, *range(60, 80)], 6, origin=ORIGIN, priority=2)
    engine.run()
    engine.now_s += 1.0
    engine.send([*common, *range(80, 100)], 4)
    engine.send(range(200, 250), 5)
    engine.send([10**9], 5)
    for _ in range(20):
        engine.step()
    engine.send(range(1, 20), 50)
    for _ in range(5):
        engine.step()
    engine.engine.flight.tick()
    return [one.prompt for one in engine.requests]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "m.flight"


def test_requests_have_their_offsets_lengths_and_recorded_times(path):
    recorded(path)
    found = read_recording(FlightLog(path), None)
    assert [(len(one.prompt), one.params.max_tokens) for one in found.requests] == [(68, 6), (68, 4), (50, 5), (19, 4)]
    assert found.left_out == {"refused": 1}
    offsets = [one.offset_s for one in found.requests]
    assert offsets[0] == 0
    assert offsets == sorted(offsets)
    assert offsets[1] == offsets[2] > 1.0
    first = found.requests[0]
    assert first.in_server.ttft_s == pytest.approx(first.in_engine.ttft_s + 0.5)
    assert first.in_engine.itl_s == pytest.approx(0.01)  # the driver's steps take 10 ms
    assert found.requests[-1].in_engine is None
    assert (first.priority, first.params.ignore_eos, first.id) == (2, True, "first")
    assert len(read_recording(FlightLog(path), 2).requests) == 1
    assert read_recording(FlightLog(path), None, max_model_len=60).left_out == {
        "refused": 1,
        "longer than 60 tokens": 2,
    }


def test_made_up_prompts_begin_alike_where_the_recorded_ones_did(path):
    sent = recorded(path)
    first, second, other, _ = [one.prompt for one in read_recording(FlightLog(path), None).requests]
    assert first[:48] == second[:48]
    assert first[48:] != second[48:]
    assert first[:10] != other[:10]
    assert first != sent[0]


def test_recorded_prompts_are_sent_again(path):
    sent = recorded(path, tokens=1000)
    found = read_recording(FlightLog(path), None)
    assert [one.prompt for one in found.requests] == [sent[0], sent[1], sent[2], sent[4]]


def test_sampling_parameters_come_back_as_they_were_given(path):
    engine = driver(path)
    given = {"temperature": 0.7, "top_p": 0.95, "top_k": 40, "min_p": 0.05, "seed": 2**64 - 5, "frequency_penalty": 0.1}
    params = SamplingParams(max_tokens=3, num_logprobs=2, **given)
    engine.engine.admit((b"w", 1), array("i", [1, 2]), params)
    engine.engine.step()
    engine.engine.step()
    (one,) = read_recording(FlightLog(path), None).requests
    assert {name: getattr(one.params, name) for name in given} == given
    assert one.params.num_logprobs == 2


def test_show_says_what_happened(path, capsys):
    recorded(path)
    assert cli.main(["replay", str(path), "--show"]) == 0
    text = capsys.readouterr().out
    assert "engine of m (plugserve 1" in text
    assert "5 requests, 5 kept, 1 not ended" in text
    assert "request 1 first /v1/chat/completions\n    68 prompt tokens, 6 generated; done (length) after" in text
    assert "48 of them cached" in text
    assert "failed (error)" in text
    assert "had not ended" in text
    assert " step 17: " in text
    assert cli.main(["replay", str(path), "--show", "--last", "1"]) == 0
    assert "request 1 " not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "replay needs a flight recorder's file"),
        (["--show"], "replay needs a flight recorder's file"),
        (["no.flight"], "no.flight can't be read: No such file or directory"),
        (["FILE", "--show", "--rate", "2"], "--show runs nothing"),
        (["FILE", "--rate", "0"], "--rate must be a number above 0, got '0'"),
        (["FILE", "--last", "x"], "--last must be a whole number of at least 1, got 'x'"),
        (["FILE", "--url", "ftp://x"], "--url must be a server's address"),
        (["FILE", "--url", "http://127.0.0.1:9"], "can't be reached"),
        (["FILE", "--url", "http://127.0.0.1:9", "--dtype", "bfloat16"], "--dtype has no effect with --url"),
        (["FILE", "--json", "/no/folder/x.json"], "there is no folder /no/folder"),
        (["FILE", "--show", "--dtype", "x"], "--show takes no settings"),
    ],
)
def test_faults_are_one_line(words, line, path, capsys):
    recorded(path)
    assert cli.main(["replay", *(str(path) if word == "FILE" else word for word in words)]) in (1, 2)
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1


async def test_server_gets_each_request_again(path, make_state, tokenizer):  # noqa: F811
    recorded(path)
    found = read_recording(FlightLog(path), None)
    engine = FakeEngine(says(tokenizer, "hello world " * 20), max_model_len=1000)
    async with running(make_state(served(engine, tokenizer))) as server:
        target = await asyncio.to_thread(ServerTarget, f"http://127.0.0.1:{server.port}/v1", "")
        outcomes = await asyncio.to_thread(target.run, found.requests, 100.0)
    assert target.max_model_len == 1000
    assert all(isinstance(one, Measured) and 0 < one.ttft_s <= one.total_s for one in outcomes), outcomes
    calls = sorted(engine.calls, key=lambda call: call.priority, reverse=True)
    assert sorted(map(tuple, (call.prompt for call in calls))) == sorted(tuple(one.prompt) for one in found.requests)
    assert (calls[0].params.max_tokens, calls[0].params.ignore_eos, calls[0].priority) == (6, True, 2)


def test_engine_in_this_process_runs_them_again(path, scripted_words, capsys, tmp_path):
    recorded(path)
    assert cli.main(["replay", str(path), *scripted_words, "--json", str(tmp_path / "x.json")]) == 0
    text = capsys.readouterr().out
    assert "4 requests of m" in text
    assert "prompts: 0 as recorded, the others made up" in text
    assert "left out: 1 refused" in text
    assert "TTFT" in text
    rows = json.loads((tmp_path / "x.json").read_text())
    assert [row["output_tokens"] for row in rows] == [6, 4, 5, 4]
    assert all(row["replayed"]["total_s"] > 0 for row in rows)
    assert rows[-1]["recorded"] is None


@pytest.fixture
def scripted_words(smollm2_gguf, tmp_path):
    script = tmp_path / "script.json"
    script.write_text(json.dumps([{"when": "", "say": "hello world " * 50}]))
    return ["--model", str(smollm2_gguf), "--plugin", "benchmarks/clients/scripted.py", "--runner", "scripted",
            "--scripted.script", str(script), "--max-model-len", "1024", "--num-gpu-blocks-override", "64"]  # fmt: skip


def test_table_compares_what_both_times_ended():
    pairs = [(None, Measured(0.1, 0.01, 1.0), Measured(0.2, 0.01, 3.0)), (None, None, Measured(9.0, None, 9.0)),
             (None, Measured(5.0, 1.0, 5.0), "failed")]  # fmt: skip
    lines = list(table(pairs))
    assert [np.array(line.split()[1:], dtype=float).tolist() for line in lines[2:]] == [
        [100, 100, 200, 200, 2, 2],
        [10, 10, 10, 10, 1, 1],
        [1000, 1000, 3000, 3000, 3, 3],
    ]


def test_simulate_reads_the_file_too(path, capsys):
    recorded(path)
    log = FlightLog(path)
    trace = trace_of(log)
    assert [(one.prompt_tokens, one.output_tokens, one.prefix_tokens) for one in trace.requests] == [
        (68, 6, 48), (68, 4, 48), (50, 5, 0), (19, 4, 16)
    ]  # fmt: skip
    assert trace.requests[0].prefix_group == trace.requests[1].prefix_group != ""
    assert len(trace.steps) == len(log.steps())
    assert cli.main(["simulate", "--trace", str(path), "--step-time", "10,200", "--num-gpu-blocks-override", "64"]) == 0
    assert "4 requests of 1 users" in capsys.readouterr().out
