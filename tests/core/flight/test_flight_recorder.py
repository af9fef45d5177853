"""The flight recorder on a real engine with a fake runner: what a reader finds in its file, torn records included."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from array import array

import msgspec
import pytest

from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.errors import ConfigError
from plugserve.core.flight.block_map import CACHED, FREE, IN_USE, block_map
from plugserve.core.flight.flight_file import FlightFile, FlightSizes
from plugserve.core.flight.flight_log import FlightFacts, FlightLog
from plugserve.core.flight.flight_records import REQUEST, STEP
from plugserve.core.flight.request_story import RequestStory
from plugserve.core.wire.request_origin import RequestOrigin
from plugserve.plugins.prefix_cache.lru_cache import BlockHashCache
from plugserve.plugins.schedulers.fcfs import make_fcfs
from plugserve.testing.contexts import scheduler_context
from plugserve.testing.engine_driver import WORKER, EngineDriver

FACTS = FlightFacts(model="m", version="1", pid=7, started_s=1e9, epoch_offset_s=1e9, block_size=16, vocab_size=300)


def new_file(path, requests=16, steps=64, tokens=0):
    return FlightFile.create(path, FlightSizes(requests, steps, tokens), msgspec.json.encode(FACTS))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "flight-0"


def driver(path=None, *, requests=16, tokens=0, **options):
    file = None if path is None else new_file(path, requests=requests, tokens=tokens)
    engine = EngineDriver(make_fcfs(scheduler_context()), flight_file=file, **options)
    engine.now_s = 100.0  # 0 stands for what has not happened
    return engine


def stories(path, now_s=1e6):
    return [RequestStory.of(record, now_s, now_s) for record in FlightLog(path).requests()]


def test_finished_request_has_its_sizes_and_times(path):
    engine = driver(path)
    engine.send(range(1, 41), 5, priority=-3, origin=RequestOrigin("abc", "/v1/completions", 0.25, 0.0))
    engine.run()
    (story,) = stories(path)
    record, times = story.record, story.times
    assert (story.text("id"), story.text("route"), story.text("worker")) == ("abc", "/v1/completions", WORKER.decode())
    assert (record["num_prompt_tokens"], record["num_output_tokens"], record["priority"]) == (40, 5, -3)
    assert (story.state, story.finish_reason) == ("done", "length")
    assert times.server_s == pytest.approx(0.25)
    assert story.total_s == pytest.approx(times.total_s, abs=1e-3)  # no time is lost between the parts
    assert story.ttft_s == pytest.approx(0.25 + times.queue_s + times.prefill_s)
    assert record["first_step"] == 1


def test_steps_add_up_to_what_was_computed(path):
    engine = driver(path)
    for length in (30, 50):
        engine.send(range(1, length + 1), 6)
    engine.run()
    steps = FlightLog(path).steps()
    assert list(steps["serial"]) == list(range(1, engine.engine.stats.num_steps + 1))
    assert steps["num_generated_tokens"].sum() == 12
    assert steps["num_prompt_tokens"].sum() == 80
    assert (steps["num_tokens"] == steps["num_prompt_tokens"] + steps["num_decoding"]).all()
    assert steps[0]["longest_chunk"] == 34  # of 64: the first prompt's 30 came first
    assert steps[0]["longest_chunk_of"] == 2


def test_recorder_changes_no_output(path):
    def outputs(engine):
        for number in range(12):
            engine.send(range(1, 20 + number), 9, priority=number % 3)
        engine.step()
        engine.abort(3)
        engine.run()
        return [(one.tokens, one.finish) for one in engine.requests], engine.num_steps

    options = {"num_blocks": 12, "max_num_seqs": 4}
    assert outputs(driver(path, requests=4, **options)) == outputs(driver(None, **options))


def test_refused_aborted_and_failed_requests_are_recorded(path):
    engine = driver(path)
    engine.send([1, 2, 3], 50)
    engine.send([10**9], 5)
    engine.step()
    engine.abort(0)
    engine.run()
    assert [(one.state, one.finish_reason) for one in stories(path)] == [("aborted", "abort"), ("failed", "error")]


def test_preemptions_are_counted(path):
    engine = driver(path, num_blocks=6, max_num_seqs=4)
    for _ in range(3):
        engine.send(range(1, 17), 40)
    engine.run()
    assert engine.engine.stats.num_preemptions > 0
    assert sum(one.record["num_preemptions"] for one in stories(path)) == engine.engine.stats.num_preemptions
    assert FlightLog(path).steps()["num_preempted"].sum() == engine.engine.stats.num_preemptions


def test_request_that_runs_keeps_its_slot_while_others_come_and_go(path):
    engine = driver(path, requests=3)
    long = engine.send([1, 2, 3], 200)
    for number in range(10):
        engine.send([4, number + 1], 2)
        for _ in range(5):
            engine.step()
    engine.engine.flight.tick()
    ordinals = [int(one.record["ordinal"]) for one in stories(path)]
    assert ordinals == [1, 10, 11]
    running = stories(path)[0]
    assert running.state == "running"
    assert running.record["num_output_tokens"] == len(engine.requests[long].tokens) > 0


def test_requests_beyond_all_slots_are_counted_and_served(path):
    engine = driver(path, requests=2)
    for _ in range(5):
        engine.send([1, 2, 3], 4)
    engine.run()
    engine.engine.flight.leave()
    engine.assert_exact()
    gauges = FlightLog(path).gauges()
    assert (gauges.num_requests, gauges.num_without_slot, gauges.is_over) == (5, 3, True)


def test_steps_are_a_ring(path):
    engine = driver(path)
    engine.send([1, 2, 3], 100)
    engine.run()
    serials = list(FlightLog(path).steps()["serial"])
    assert serials == list(range(engine.engine.stats.num_steps - 63, engine.engine.stats.num_steps + 1))


def test_equal_beginnings_have_equal_names_and_others_not(path):
    engine = driver(path, prefix_cache=BlockHashCache(), hashes_prompts=True)
    engine.send(range(1, 65), 2)
    engine.send([*range(1, 49), *range(100, 116)], 2)
    engine.send(range(7, 71), 2)
    engine.run()
    first, second, other = FlightLog(path).requests()["prefix"]
    assert list(first[:3]) == list(second[:3])  # 1, 2 and 3 blocks
    assert first[3] != second[3]
    assert all(first[:4])
    assert not first[4:].any()
    assert not set(first[:4]) & set(other)


def test_prompts_are_kept_only_where_they_are_asked_for(path):
    engine = driver(path)
    engine.send([5, 6, 7], 2)
    engine.run()
    log = FlightLog(path)
    assert log.prompt(log.requests()[0]) is None
    assert array("i", [5, 6, 7]).tobytes() not in path.read_bytes()


def test_kept_prompts_are_a_ring(path):
    engine = driver(path, tokens=100)
    prompts = [list(range(start, start + 30)) for start in (1, 101, 201, 301, 401)]
    for prompt in prompts:
        engine.send(prompt, 2)
    engine.run()
    log = FlightLog(path)
    assert [log.prompt(record) for record in log.requests()] == [None, None, *prompts[2:]]


@pytest.mark.parametrize("layout", [REQUEST, STEP], ids=["request", "step"])
def test_record_that_was_being_written_is_left_out(path, layout):
    engine = driver(path)
    for _ in range(3):
        engine.send([1, 2, 3], 3)
    engine.run()
    log = FlightLog(path)
    whole = {REQUEST: log.requests, STEP: log.steps}[layout]
    before = whole()
    area = log._file.requests_at if layout is REQUEST else log._file.steps_at
    layout.struct.pack_into(log._file.map, area, *[b"?" if code[-1] == "s" else 99 for _, code in layout.fields[:-1]
                            for _ in range(int(code[:-1] or 1) if code[-1] != "s" else 1)], 98)  # fmt: skip
    assert list(whole()["serial"]) == list(before["serial"][1:])


def test_file_of_a_killed_process_says_what_was_alive(path):
    script = f"""
        import os, sys
        sys.path.insert(0, {os.getcwd()!r})
        from pathlib import Path
        from tests.core.flight.test_flight_recorder import driver
        engine = driver(Path({str(path)!r}))
        engine.send([1, 2, 3], 3)
        engine.run()
        engine.send(range(1, 30), 50)
        engine.send(range(1, 300), 50)
        for _ in range(4):
            engine.step()
        os.kill(os.getpid(), {int(signal.SIGKILL)})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert done.returncode == -signal.SIGKILL
    first, second, third = stories(path)
    assert first.state == "done"
    assert second.state == third.state == "running"
    assert (second.ttft_s is None, third.ttft_s is None) == (False, True)
    assert len(FlightLog(path).steps()) == 3 + 3  # one step was in flight
    assert not FlightLog(path).gauges().is_over


@pytest.mark.parametrize(
    ("data", "fault"), [(b"", "no flight recorder's file"), (bytes(4096), "no flight recorder's file")]
)
def test_other_files_are_refused_in_a_line(path, data, fault):
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=fault):
        FlightLog(path)


def test_cut_off_and_foreign_layouts_are_refused(path):
    new_file(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ConfigError, match="cut off"):
        FlightLog(path)
    path.write_bytes(data[:8] + b"\x63" + data[9:])
    with pytest.raises(ConfigError, match="another version of plugserve"):
        FlightLog(path)


def test_details_are_written_while_somebody_watches(path):
    engine = driver(path, prefix_cache=BlockHashCache())
    log = FlightLog(path)
    engine.send(range(1, 40), 20)
    for _ in range(3):
        engine.step()
    engine.engine.flight.tick()
    assert not log.detail().kv_map
    log.watch()
    engine.now_s += 1.5
    engine.engine.flight.tick()
    detail = log.detail()
    assert detail.plugin_calls["FcfsScheduler schedule"] == 3
    assert len(detail.kv_map) > 0
    engine.run()
    states = engine.engine.kv.pool.states()
    assert set(states) == {FREE, CACHED}


def test_block_map_shows_shares():
    import numpy as np

    states = np.array([FREE] * 4 + [CACHED, FREE] * 2 + [CACHED] * 4 + [IN_USE, FREE] * 2 + [IN_USE] * 4, np.uint8)
    assert list(block_map(states)[::4]) == [0, 127, 127, 255, 255]
    wide = np.repeat(states, 1024 // 4)  # 20 x 256 blocks in 1024 cells of 5
    assert len(block_map(wide)) == 1024
    mixed = np.array(([IN_USE] * 1 + [FREE] * 3) * 1024, np.uint8)
    assert set(block_map(mixed)) == {127 + 32}
    assert block_map(np.zeros(0, np.uint8)) == b""


@pytest.mark.parametrize("sign", [1, -1])
def test_extreme_values_fit_into_their_fields(path, sign):
    """A refused request, and what plugins change, may hold anything."""
    engine = driver(path)
    params = SamplingParams(
        max_tokens=sign * 2**40, seed=2**64 - 1, top_k=sign * 2**40, min_tokens=sign * 2**40, num_logprobs=sign * 2**40,
        temperature=sign * 1e300, top_p=sign * 1e300, min_p=sign * 1e300, presence_penalty=sign * 1e300,
        frequency_penalty=float("nan"), repetition_penalty=sign * float("inf"),
    )  # fmt: skip
    origin = RequestOrigin("é" * 60, "/" * 90, 1e300, -1.0)
    engine.engine.admit((b"w" * 60, sign * 2**62), array("i", [1]), params, priority=sign * 2**40, origin=origin)
    record = FlightLog(path).requests()[0]
    assert record["seed"] == 2**64 - 1
    assert record["priority"] == (2**31 - 1 if sign > 0 else -(2**31))
    assert stories(path)[0].state == "failed"


def test_file_that_does_not_fit_leaves_nothing(path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mmap.mmap", full)
    with pytest.raises(OSError, match="No space left"):
        new_file(path)
    assert list(path.parent.iterdir()) == []
