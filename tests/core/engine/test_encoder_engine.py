"""Batches of an encoder's engine: by length, within limits, without those that were aborted or failed."""

from array import array

import msgspec
import numpy as np
import pytest

from plugserve.core.contracts.runner import RunnerInfo
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.engine.encoder_engine import EncoderEngine
from plugserve.core.engine.flight_recorder import FlightRecorder
from plugserve.core.flight.flight_file import FlightFile, FlightSizes
from plugserve.core.flight.flight_log import FlightLog
from plugserve.core.flight.request_story import RequestStory
from plugserve.core.wire.messages import FINISH_ERROR, FINISH_REFUSED, FINISH_STOP
from tests.core.flight.test_flight_recorder import FACTS


class Runner:
    """Each vector is (length, first token, second_start)."""

    def __init__(self):
        self.batches = []
        self.error = None

    def load(self):
        raise NotImplementedError

    def encode(self, batch):
        self.batches.append([len(one.token_ids) for one in batch])
        if self.error is not None:
            raise self.error
        return [np.array([len(one.token_ids), one.token_ids[0], one.second_start], "<f4").tobytes() for one in batch]

    def close(self): ...


def make(*, max_num_tokens=100, max_num_seqs=8, max_num_waiting=None, task="embed", **options):
    info = RunnerInfo(
        task=task, vocab_size=50, max_model_len=60, max_num_batched_tokens=max_num_tokens, num_blocks=0, block_size=16,
        kv_cache_bytes=0, weight_bytes=0, dtype="float32", device="cpu",
    )  # fmt: skip
    return EncoderEngine(Runner(), info, max_num_seqs=max_num_seqs, max_num_waiting=max_num_waiting, **options)


def admit(engine, number, length=3, token=1, *, worker=b"w", pooling="model", second_start=0, priority=0, user=""):
    params = SamplingParams(max_tokens=0, seed=0, pooling=pooling, second_start=second_start)
    engine.admit((worker, number), array("i", [token] * length), params, priority=priority, user=user)


def run(engine):
    while engine.has_work:
        engine.step()
    return engine.take_outputs()


def finishes(outputs):
    return {id: finish for _, one in outputs for id, finish in zip(one.ids, one.finish, strict=True)}


def test_each_input_gets_its_own_vector():
    engine = make()
    for number, length in enumerate((5, 30, 5, 31, 2)):
        admit(engine, number, length, token=number, second_start=number % 2)
    ((identity, outputs),) = run(engine)
    assert identity == b"w"
    assert set(outputs.finish) == {FINISH_STOP}
    got = {id: np.frombuffer(vector, "<f4").tolist() for id, vector in outputs.pooled.items()}
    assert got == {n: [length, n, n % 2] for n, length in enumerate((5, 30, 5, 31, 2))}
    assert set(outputs.started) == set(range(5))


@pytest.mark.parametrize("seed", range(20))
def test_batches_hold_limits_and_the_oldest_is_never_passed_over(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 61, 60).tolist()
    engine = make(max_num_tokens=100, max_num_seqs=6)
    for number, length in enumerate(lengths):
        admit(engine, number, length)
    left = list(range(60))
    while engine.has_work:
        engine.step()
        ((_, outputs),) = engine.take_outputs()
        assert left[0] in outputs.ids
        left = [number for number in left if number not in outputs.ids]
        (*_, batch) = engine._runner.batches
        assert batch == sorted(batch)
        assert len(batch) <= 6
        padded = batch[-1] * len(batch)
        assert len(batch) == 1 or padded <= 100
        assert padded - sum(batch) <= 0.25 * padded
    assert not left
    assert engine.stats.num_steps < 45  # batches are formed at all


def test_short_inputs_are_batched_with_short_ones():
    engine = make(max_num_tokens=1000)
    for number, length in enumerate((2, 50, 2, 49, 2, 48)):
        admit(engine, number, length)
    run(engine)
    assert engine._runner.batches == [[2, 2, 2], [48, 49, 50]]


def test_lower_priority_numbers_come_first():
    engine = make(max_num_seqs=1)
    for number, priority in enumerate((5, 0, -1, 5)):
        admit(engine, number, 3 + number, priority=priority)
    run(engine)
    assert engine._runner.batches == [[5], [4], [3], [6]]


def test_users_take_turns():
    """Ten inputs of one user, then one of another and one of the first: the other's is second."""
    engine = make(max_num_seqs=1)
    for number in range(10):
        admit(engine, number, 2, user="a")
    engine.step()
    admit(engine, 10, 3, user="b")
    admit(engine, 11, 4, user="a")
    admit(engine, 12, 3, user="b")
    run(engine)
    lengths = [batch[0] for batch in engine._runner.batches]
    assert lengths[:5].count(3) == 2
    assert lengths[-1] == 4


def test_users_that_are_done_are_forgotten():
    engine = make(max_num_seqs=1)
    for number in range(50):
        admit(engine, number, user=f"user {number % 20}")
    engine.abort((b"w", 3))
    assert len(engine._users) == 20
    run(engine)
    assert not engine._users


def test_an_aborted_input_is_left_out_and_a_dead_workers_too():
    engine = make(max_num_seqs=2)
    for number in range(4):
        admit(engine, number, token=number)
    admit(engine, 0, token=9, worker=b"gone")
    engine.abort((b"w", 1))
    engine.abort((b"w", 77))
    assert engine.abort_worker(b"gone") == 1
    assert engine.snapshot().num_requests_waiting == 3
    ((_, outputs),) = run(engine)
    assert sorted(outputs.ids) == [0, 2, 3]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"length": 61}, "an input has from 1 to 60 tokens, got 61"),
        ({"length": 0}, "an input has from 1 to 60 tokens, got 0"),
        ({"token": 50}, "outside the vocabulary of 50"),
        ({"token": -1}, "outside the vocabulary of 50"),
        ({"pooling": ""}, "an encoder takes requests with pooling"),
        ({"pooling": "magic"}, "an encoder takes requests with pooling"),
        ({"second_start": 4}, "second_start 4 is outside of the 3 tokens"),
    ],
)
def test_an_input_that_cannot_be_served_is_answered_and_others_go_on(fault, message):
    engine = make()
    admit(engine, 0, **fault)
    admit(engine, 1)
    admit(engine, 1)  # an id in use
    ((_, outputs),) = run(engine)
    assert message in outputs.errors[0]
    assert finishes([(b"w", outputs)]) == {0: FINISH_ERROR, 1: FINISH_STOP}


def test_a_cross_encoder_takes_no_other_pooling():
    engine = make(task="score")
    admit(engine, 0, pooling="mean")
    assert "takes requests with pooling model, got 'mean'" in run(engine)[0][1].errors[0]


def test_a_full_queue_refuses():
    engine = make(max_num_seqs=2, max_num_waiting=1)
    for number in range(5):
        admit(engine, number)
    outputs = run(engine)
    assert finishes(outputs) == {0: FINISH_STOP, 1: FINISH_STOP, 2: FINISH_STOP, 3: FINISH_REFUSED, 4: FINISH_REFUSED}


def test_a_failing_batch_fails_its_inputs_and_the_third_in_a_row_ends_the_process():
    engine = make(max_num_seqs=2)
    for number in range(3):
        admit(engine, number)
    engine._runner.error = ZeroDivisionError()
    engine.step()
    engine._runner.error = None
    outputs = run(engine)
    assert finishes(outputs) == {0: FINISH_ERROR, 1: FINISH_ERROR, 2: FINISH_STOP}
    assert outputs[0][1].errors[0] == "the model runner failed: ZeroDivisionError"
    engine._runner.error = ZeroDivisionError()
    for number, length in enumerate((1, 20, 60)):  # three batches
        admit(engine, number, length)
    with pytest.raises(ZeroDivisionError):
        run(engine)


def test_counts():
    engine = make(max_num_seqs=2)
    for number in range(3):
        admit(engine, number, length=4)
    run(engine)
    stats = engine.snapshot()
    assert (stats.num_prompt_tokens, stats.num_steps, stats.num_requests_waiting) == (12, 2, 0)
    assert stats.plugin_seconds["runner encode"] >= 0


def test_inputs_and_batches_are_recorded(tmp_path):
    file = FlightFile.create(tmp_path / "flight-0", FlightSizes(8, 32), msgspec.json.encode(FACTS))
    engine = make(max_num_waiting=2, max_num_seqs=1, flight=FlightRecorder(file, 100))
    for number, length in enumerate((5, 30, 70, 6, 7)):
        admit(engine, number, length)
    engine.abort((b"w", 1))
    run(engine)
    log = FlightLog(tmp_path / "flight-0")
    stories = [RequestStory.of(record, 1e9, 1e9) for record in log.requests()]
    assert [story.finish_reason for story in stories] == ["stop", "abort", "error", "stop", "refused"]
    assert stories[0].times.prefill_s > 0
    assert stories[0].times.decode_s == 0
    assert log.steps()["num_tokens"].tolist() == [5, 6]
