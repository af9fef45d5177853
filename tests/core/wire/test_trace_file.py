"""A trace is read as it was written, says nothing of prompts, and faults are named by line."""

from __future__ import annotations

import json
import multiprocessing
import os

import pytest

from plugserve.core.errors import ConfigError
from plugserve.core.wire.trace_file import (
    VERSION,
    StepTimeFacts,
    TraceFacts,
    TraceRequest,
    TraceSteps,
    TraceWriter,
    check_trace_path,
    hash_ids,
    read_trace,
)


@pytest.fixture
def trace(tmp_path):
    """trace(lines) -> path of a file that holds them."""

    def write(*lines):
        path = tmp_path / "trace.jsonl"
        path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        return str(path)

    return write


def request(arrival_s=0.0, **more):
    return {"arrival_s": arrival_s, "prompt_tokens": 5, "output_tokens": 3} | more


def test_what_is_written_is_read(tmp_path):
    path = str(tmp_path / "t.jsonl")
    facts = TraceFacts(
        plugserve_trace=VERSION, model="m", block_size=32, num_blocks=9, step_time=StepTimeFacts(1.5, 20.0)
    )
    first = TraceRequest(arrival_s=0.0, prompt_tokens=7, output_tokens=2, model="m", user="ada", hash_ids=("a", "b"))
    writer = TraceWriter(path)
    writer.write([facts, TraceSteps([(10, 2, 30, 4.5)], "m")])
    writer.write([first])
    writer.close()
    read = read_trace(path)
    assert (read.facts, read.requests, read.steps) == (facts, [first], [(10, 2, 30, 4.5)])
    assert read.facts.step_time.step_time().predict_s(100) == pytest.approx(0.0035)


def test_requests_are_put_in_order_and_start_at_zero(trace):
    requests = read_trace(trace(request(1e9 + 2), request(1e9), "", request(1e9 + 1.5))).requests
    assert [one.arrival_s for one in requests] == [0.0, 1.5, 2.0]


def test_several_processes_append_whole_lines(tmp_path):
    path = str(tmp_path / "t.jsonl")
    workers = [multiprocessing.get_context("spawn").Process(target=append_many, args=(path, n)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert sorted(one.prompt_tokens for one in read_trace(path).requests) == list(range(1, 301))


def append_many(path, number):
    writer = TraceWriter(path)
    for n in range(100):
        long = tuple("x" * 16 for _ in range(200))
        tokens = number * 100 + n + 1
        writer.write([TraceRequest(arrival_s=0, prompt_tokens=tokens, output_tokens=1, hash_ids=long)])


def test_mooncakes_names_are_read(trace):
    line = {"timestamp": 2500, "input_length": 700, "output_length": 50, "hash_ids": [46, 47]}
    read = read_trace(trace({"timestamp": 1000, "input_length": 1, "output_length": 1}, line))
    assert read.requests[1] == TraceRequest(arrival_s=1.5, prompt_tokens=700, output_tokens=50, hash_ids=(46, 47))


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "is not JSON"),
        ("[1]", "must be a JSON object, got list"),
        ({"prompt_tokens": 1}, "missing required field `arrival_s`"),
        (request(prompt_tokens=0), "prompt_tokens must be at least 1, got 0"),
        (request(output_tokens=-1), "output_tokens must be at least 0, got -1"),
        (request(prompt_tokens="x"), "Expected `int`, got `str` - at `$.prompt_tokens`"),
        (request(max_tokens=2), "output_tokens 3 is more than max_tokens 2"),
        (request(arrival_s=None), "`$.arrival_s`"),
        ({"plugserve_trace": 2}, "a trace of version 2; this plugserve reads 1"),
        ({"plugserve_trace": 1, "num_blocks": 0}, "num_blocks must be at least 1, got 0"),
        ({"plugserve_trace": 1, "step_time": {"base_s": 1}}, "base_s"),
        ({"steps": [[1, 2]]}, "`$.steps[0]`"),
    ],
)
def test_fault_is_named_with_its_line(trace, line, fault):
    with pytest.raises(ConfigError) as raised:
        read_trace(trace(request(), line))
    assert "trace.jsonl line 2" in str(raised.value)
    assert fault in str(raised.value)


def test_file_without_requests_and_no_file_at_all_are_refused(trace, tmp_path):
    with pytest.raises(ConfigError, match="holds no requests"):
        read_trace(trace({"plugserve_trace": 1}))
    with pytest.raises(ConfigError, match=r"none\.jsonl: No such file"):
        read_trace(str(tmp_path / "none.jsonl"))


def test_one_model_of_several_has_to_be_chosen(trace):
    path = trace(
        {"plugserve_trace": 1, "model": "a", "num_blocks": 5},
        {"plugserve_trace": 1, "model": "b", "num_blocks": 7},
        request(1.0, model="a"),
        request(2.0, model="b"),
        request(3.0),
    )
    with pytest.raises(ConfigError, match="several models; choose one with --model: a, b"):
        read_trace(path)
    with pytest.raises(ConfigError, match="holds nothing of --model c, but of a, b"):
        read_trace(path, "c")
    read = read_trace(path, "b")
    assert (read.facts.num_blocks, [one.arrival_s for one in read.requests]) == (7, [0.0, 1.0])


def test_equal_beginnings_have_equal_names_under_one_key_only():
    shared = list(range(200))
    one, two = hash_ids([*shared, 1] + [7] * 100, b"key"), hash_ids([*shared, 2] + [7] * 100, b"key")
    assert len(one) == 4
    assert one[:3] == two[:3]
    assert one[3] != two[3]
    assert not set(one) & set(hash_ids([*shared, 1] + [7] * 100, b"other"))
    assert hash_ids(shared[:63], b"key") == ()


def _fifo(folder):
    os.mkfifo(folder / "fifo")
    return folder / "fifo"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_fifo, "is not a regular file"),
        (lambda folder: folder, "is not a regular file"),
        (lambda folder: "/dev/full", "is not a regular file"),
        (lambda folder: folder / "missing" / "trace", "No such file or directory"),
        (lambda folder: folder / ("x" * 300), "File name too long"),
        (lambda folder: f"{folder}/a\0b", "null byte"),
    ],
)
def test_a_path_that_can_not_be_appended_to_is_one_line(make, says, tmp_path):
    with pytest.raises(ConfigError, match=says) as caught:
        check_trace_path(str(make(tmp_path)))
    assert "--record-trace" in str(caught.value)


def test_a_path_that_can_be_written_passes_and_keeps_what_it_holds(tmp_path):
    path = tmp_path / "trace"
    path.write_text("kept\n")
    check_trace_path(str(path))
    check_trace_path(str(tmp_path / "new"))
    assert path.read_text() == "kept\n"
