"""The worker's end of the wire: deltas arrive, aborts are sent once, a lost engine is told at once."""

import asyncio

import pytest
import zmq.asyncio

from plugserve.core.contracts.engine_facts import EngineStats
from plugserve.core.contracts.sampling import SamplingParams, TokenLogprobs
from plugserve.core.errors import EngineUnavailableError, GrammarError, QueueFullError, RequestFailedError
from plugserve.core.wire.messages import (
    FINISH_ABORT,
    FINISH_BAD_GRAMMAR,
    FINISH_ERROR,
    FINISH_LENGTH,
    FINISH_NONE,
    FINISH_REFUSED,
    FINISH_STOP,
)
from plugserve.core.wire.sequence_times import SequenceTimes
from plugserve.server.worker.engine_client import ZmqEngineClient
from tests.server.engine_socket import INFO, EngineSocket

PARAMS = SamplingParams(max_tokens=5, seed=1)
ME = b"worker:0:1"


@pytest.fixture
async def context():
    context = zmq.asyncio.Context()
    yield context
    context.destroy(linger=0)


@pytest.fixture
async def engine(context, tmp_path):
    engine = EngineSocket(context, f"ipc://{tmp_path}/engine-0-1.ipc")
    task = asyncio.create_task(engine.run())
    yield engine
    task.cancel()
    engine.close()


@pytest.fixture
async def client(context, engine):
    client = ZmqEngineClient("m", context, ME)
    client.connect([engine.address], INFO)
    yield client
    await client.close()


class Reader:
    """Reads one sequence as a request does."""

    def __init__(self, client, prompt, params, **options):
        self._waker = asyncio.Event()
        self._is_finished = False
        self.stream = client.generate(prompt, params, waker=self._waker, **options)
        self.close = self.stream.close

    def __aiter__(self):
        return self

    async def __anext__(self):
        if self._is_finished:
            raise StopAsyncIteration
        while (delta := self.stream.take()) is None:
            self._waker.clear()
            await self._waker.wait()
        self._is_finished = delta.finish_reason is not None
        return delta


async def requested(engine, eventually, count=1):
    await eventually(lambda: len(engine.requests) == count)
    return [request.id for _, request, _ in engine.requests]


async def test_request_arrives_whole(client, engine, eventually):
    prompt = list(range(200_000))
    Reader(client, prompt, PARAMS, priority=2, user="ann", cache_salt="s")
    await requested(engine, eventually)
    identity, request, received = engine.requests[0]
    assert identity == ME
    assert received == prompt
    assert (request.params, request.priority, request.user, request.cache_salt) == (PARAMS, 2, "ann", "s")


async def test_block_hashes_travel_beside_the_prompt(client, engine, eventually):
    Reader(client, [1] * 32, PARAMS, block_hashes=b"x" * 32)
    Reader(client, [1], PARAMS)
    await requested(engine, eventually, 2)
    assert engine.block_hashes == [b"x" * 32, b""]


async def test_deltas_of_one_step_reach_their_streams(client, engine, eventually):
    streams = [Reader(client, [1], PARAMS) for _ in range(3)]
    first, second, third = await requested(engine, eventually, 3)
    await engine.tell(
        ME,
        {first: ([5, 6], FINISH_NONE), third: ([], FINISH_NONE), second: ([7], FINISH_STOP)},
        started={first: (0.5, 16)},
        logprobs={second: [TokenLogprobs(7, -0.5, 1, [7], [-0.5])]},
        prompt_logprobs={first: [None]},
        ended={second: SequenceTimes(1.0, 2.0, 4.0, 8.0)},
    )
    delta = await anext(streams[0])
    assert (delta.token_ids, delta.finish_reason, delta.queue_s, delta.num_cached_tokens) == ([5, 6], None, 0.5, 16)
    assert delta.prompt_logprobs == [None]
    (delta,) = [delta async for delta in streams[1]]
    times = streams[1].stream.times
    assert (times.queue_s, times.prefill_s, times.decode_s) == (1.0, 2.0, 4.0)
    assert (delta.token_ids, delta.finish_reason, delta.logprobs[0].token_id) == ([7], "stop", 7)


async def test_what_waits_is_handed_out_as_one_delta(client, engine, eventually):
    stream = Reader(client, [1], PARAMS)
    (id,) = await requested(engine, eventually)
    for token in (5, 6):
        await engine.tell(ME, {id: ([token], FINISH_NONE)}, logprobs={id: [TokenLogprobs(token, -1, 1, [], [])]})
    await engine.tell(ME, {id: ([7], FINISH_LENGTH)}, logprobs={id: [TokenLogprobs(7, -1, 1, [], [])]})
    await asyncio.sleep(0.05)
    (delta,) = [delta async for delta in stream]
    assert (delta.token_ids, delta.finish_reason) == ([5, 6, 7], "length")
    assert [entry.token_id for entry in delta.logprobs] == [5, 6, 7]


async def test_early_close_aborts_exactly_once(client, engine, eventually):
    stream = Reader(client, [1], PARAMS)
    (id,) = await requested(engine, eventually)
    stream.close()
    stream.close()
    await client.stats()  # an answer to a later message: the abort has been read
    assert engine.aborts == [id]


async def test_finished_stream_is_not_aborted(client, engine, eventually):
    stream = Reader(client, [1], PARAMS)
    (id,) = await requested(engine, eventually)
    await engine.tell(ME, {id: ([7], FINISH_STOP)})
    assert [delta.finish_reason async for delta in stream] == ["stop"]
    stream.close()
    unread = Reader(client, [1], PARAMS)
    await requested(engine, eventually, 2)
    await engine.tell(ME, {unread.stream.id: ([7], FINISH_STOP)})
    await client.stats()
    unread.close()
    await client.stats()
    assert engine.aborts == []


async def test_failed_request_raises_the_engines_reason_after_its_tokens(client, engine, eventually):
    stream = Reader(client, [1], PARAMS)
    (id,) = await requested(engine, eventually)
    await engine.tell(ME, {id: ([7], FINISH_ERROR)}, errors={id: "NaN in the logits"})
    assert (await anext(stream)).token_ids == [7]
    with pytest.raises(RequestFailedError, match="NaN in the logits"):
        await anext(stream)
    stream.close()
    await client.stats()
    assert engine.aborts == []


async def test_failure_without_tokens_is_told_without_an_empty_delta_before_it(client, engine, eventually):
    """A reader that expects a vector would take the delta for the answer's end."""
    stream = Reader(client, [1], PARAMS)
    (id,) = await requested(engine, eventually)
    await engine.tell(ME, {id: ([], FINISH_ERROR)}, errors={id: "no vectors here"})
    with pytest.raises(RequestFailedError, match="no vectors here"):
        await anext(stream)


async def test_refused_request_raises_at_once(client, engine, eventually):
    stream = Reader(client, [1], PARAMS)
    (id,) = await requested(engine, eventually)
    await engine.tell(ME, {id: ([], FINISH_REFUSED)}, errors={id: "3 requests wait already"})
    with pytest.raises(QueueFullError, match="3 requests wait already"):
        await anext(stream)
    stream.close()
    await client.stats()
    assert engine.aborts == []


async def test_grammar_that_cannot_be_used_is_the_clients_fault(client, engine, eventually):
    stream = Reader(client, [1], PARAMS)
    (id,) = await requested(engine, eventually)
    await engine.tell(ME, {id: ([], FINISH_BAD_GRAMMAR)}, errors={id: "the grammar can't go on"})
    with pytest.raises(GrammarError, match="the grammar can't go on"):
        await anext(stream)
    stream.close()
    await client.stats()
    assert engine.aborts == []


async def test_abort_by_the_engine_is_a_finish_reason(client, engine, eventually):
    stream = Reader(client, [1], PARAMS)
    (id,) = await requested(engine, eventually)
    await engine.tell(ME, {id: ([], FINISH_ABORT)})
    assert [delta.finish_reason async for delta in stream] == ["abort"]


async def test_engine_down_fails_everything_in_flight_at_once(client, engine, eventually):
    streams = [Reader(client, [1], PARAMS) for _ in range(2)]
    await requested(engine, eventually, 2)
    client.disconnect("dead", "killed by SIGKILL")
    for stream in streams:
        with pytest.raises(EngineUnavailableError):
            await anext(stream)
    assert client.state == "dead"
    with pytest.raises(EngineUnavailableError, match="down"):
        Reader(client, [1], PARAMS)


async def test_before_the_first_engine_the_model_is_loading(context):
    client = ZmqEngineClient("m", context, ME)
    assert client.info is None
    with pytest.raises(EngineUnavailableError, match="loading"):
        Reader(client, [1], PARAMS)
    assert await client.stats() == EngineStats()


async def test_new_address_takes_new_requests_and_old_ones_are_not_resent(
    client, context, engine, tmp_path, eventually
):
    old = Reader(client, [1], PARAMS)
    await requested(engine, eventually)
    later = EngineSocket(context, f"ipc://{tmp_path}/engine-0-2.ipc")
    task = asyncio.create_task(later.run())
    client.connect([later.address], INFO, num_restarts=1)
    client.connect([later.address], INFO, num_restarts=1)
    with pytest.raises(EngineUnavailableError):
        await anext(old)
    new = Reader(client, [2], PARAMS)
    (id,) = await requested(later, eventually)
    await later.tell(ME, {id: ([9], FINISH_LENGTH)})
    assert [delta.token_ids async for delta in new] == [[9]]
    assert [prompt for _, _, prompt in later.requests] == [[2]]
    assert client.num_restarts == 1
    task.cancel()
    later.close()


async def test_hearing_of_the_same_engine_again_disturbs_nothing(client, engine, eventually):
    stream = Reader(client, [1], PARAMS)
    (id,) = await requested(engine, eventually)
    client.connect([engine.address], INFO)
    await engine.tell(ME, {id: ([7], FINISH_STOP)})
    assert [delta.token_ids async for delta in stream] == [[7]]
    assert client.num_restarts == 0


async def test_unreadable_messages_are_survived(client, engine, eventually):
    stream = Reader(client, [1], PARAMS)
    (id,) = await requested(engine, eventually)
    await engine.send_raw(ME, b"\xc1nonsense")
    await engine.tell(ME, {id: ([7], FINISH_STOP), 999: ([8], FINISH_NONE)})
    assert [delta.token_ids async for delta in stream] == [[7]]


async def test_stats_are_fresh_or_the_newest_known(client, engine, monkeypatch):
    monkeypatch.setattr("plugserve.server.worker.engine_client._STATS_TIMEOUT_S", 0.05)
    assert (await client.stats()).num_steps == 3
    engine._answers_stats = False
    engine.stats = EngineStats(num_steps=4)
    assert (await client.stats()).num_steps == 3
    assert client.last_stats().num_steps == 3


async def test_abort_all_fails_streams_and_tells_the_engine(client, engine, eventually):
    streams = [Reader(client, [1], PARAMS) for _ in range(2)]
    ids = await requested(engine, eventually, 2)
    client.abort_all()
    for stream in streams:
        with pytest.raises(EngineUnavailableError, match="shut down"):
            [delta async for delta in stream]
    await client.stats()
    assert engine.aborts == ids
