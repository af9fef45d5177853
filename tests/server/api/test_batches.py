"""/v1/batches: files of requests, run in the background, behind interactive requests."""

import asyncio
import collections
import json
import time

import openai
import pytest

from plugserve.core.contracts.engine_facts import EngineStats
from plugserve.core.contracts.requests import Refusal
from plugserve.server.batches.file_store import StorageLimits
from plugserve.server.batches.service import LEAST_URGENT, BatchService
from plugserve.server.operations.access import Access
from tests.server.conftest import running
from tests.server.fakes import FakeEngine, NoHooks, says, served

KEYS = {"ada": {"Authorization": "Bearer ada"}, "bob": {"Authorization": "Bearer bob"}}
ENDED = ("completed", "failed", "cancelled", "expired")


def line(number, content="hello", **body):
    messages = [{"role": "user", "content": content}]
    return {
        "custom_id": f"r{number}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"messages": messages, **body},
    }


def jsonl(lines):
    return "\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines).encode()


class Server:
    """A server of one worker; another one with the same store is what a restart, or a sibling, would be."""

    def __init__(self, live, engine, service):
        self.live, self.engine, self.service = live, engine, service
        self.client = live.client

    async def create(self, lines, who="ada", **fields):
        form = {"files": {"file": ("in.jsonl", jsonl(lines))}, "data": {"purpose": "batch"}}
        file = (await self.client.post("/v1/files", headers=KEYS[who], **form)).json()
        body = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h", **fields}
        return await self.client.post("/v1/batches", json=body, headers=KEYS[who])

    async def get(self, path, who="ada"):
        return await self.client.get(path, headers=KEYS[who])

    async def until(self, id, *statuses, who="ada"):
        async with asyncio.timeout(15):
            while (batch := (await self.get(f"/v1/batches/{id}", who)).json())["status"] not in statuses:
                await asyncio.sleep(0.02)
        return batch

    async def lines_of(self, file_id, who="ada"):
        return [json.loads(one) for one in (await self.get(f"/v1/files/{file_id}/content", who)).text.splitlines()]


@pytest.fixture
def start(tokenizer, make_state, tmp_path, monkeypatch):
    """async with start() as server."""
    monkeypatch.setattr("plugserve.server.batches.batch_job._SAVE_S", 0.05)
    monkeypatch.setattr("plugserve.server.batches.service._LOOK_S", 0.05)
    monkeypatch.setattr("plugserve.server.batches.service._ENGINE_S", 0.05)

    class Starting:
        def __init__(self, concurrency=4, limits=None, hooks=None, **engine):
            self.engine = FakeEngine(says(tokenizer, "hello world!"), **{"max_model_len": 100_000, **engine})
            options = {} if hooks is None else {"hooks": hooks}
            state = make_state(served(self.engine, tokenizer), access=Access(keys=list(KEYS)), **options)
            self.service = BatchService(state, tmp_path / "store", limits or StorageLimits(), concurrency)
            state.batches = self.service
            self.running = running(state)

        async def __aenter__(self):
            return Server(await self.running.__aenter__(), self.engine, self.service)

        async def __aexit__(self, *exc):
            await self.service.stop()
            return await self.running.__aexit__(*exc)

    return Starting


async def test_500_lines_are_answered_and_bad_ones_are_in_the_error_file(start):
    lines = [line(number) for number in range(500)]
    for number in range(0, 500, 50):
        bad = ["{", line(number, max_tokens=-1), line(7), {**line(number), "url": "/v1/embeddings"}]
        lines[number] = bad[number // 50 % 4]
    async with start(concurrency=16) as server:
        created = (await server.create(lines, metadata={"a": "b"})).json()
        assert (created["object"], created["status"], created["metadata"]) == ("batch", "validating", {"a": "b"})
        assert (created["output_file_id"], created["completed_at"]) == (None, None)
        batch = await server.until(created["id"], *ENDED)
        assert batch["status"] == "completed"
        assert batch["request_counts"] == {"total": 500, "completed": 490, "failed": 10}
        assert batch["created_at"] <= batch["in_progress_at"] <= batch["finalizing_at"] <= batch["completed_at"]
        answers = await server.lines_of(batch["output_file_id"])
        assert {one["custom_id"] for one in answers} == {f"r{number}" for number in range(500) if number % 50}
        assert {one["response"]["body"]["choices"][0]["message"]["content"] for one in answers} == {"hello world!"}
        errors = await server.lines_of(batch["error_file_id"])
        assert len(errors) == 10
        codes = collections.Counter((one["error"] or {}).get("code") for one in errors)
        assert codes == {"invalid_json": 3, None: 3, "duplicate_custom_id": 2, "mismatched_url": 2}
        files = (await server.get("/v1/files")).json()["data"]
        assert {one["purpose"] for one in files} == {"batch", "batch_output"}


async def test_another_key_finds_no_batch_and_no_file(start):
    async with start() as server:
        id = (await server.create([line(1)])).json()["id"]
        batch = await server.until(id, "completed")
        for path in (f"/v1/batches/{id}", f"/v1/files/{batch['output_file_id']}/content"):
            assert (await server.get(path, "bob")).status_code == 404
        cancelled = await server.client.post(f"/v1/batches/{id}/cancel", headers=KEYS["bob"])
        assert cancelled.status_code == 404
        assert (await server.get("/v1/batches", "bob")).json()["data"] == []
        body = {
            "input_file_id": batch["input_file_id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        }
        assert (await server.client.post("/v1/batches", json=body, headers=KEYS["bob"])).status_code == 404


async def test_requests_of_a_batch_are_the_least_urgent_and_bounded(start):
    async with start(concurrency=3, step_s=0.002) as server:
        generate, seen = server.engine.generate, []

        def counted(*args, **options):
            stream = generate(*args, **options)
            seen.append(sum(not task.done() for task in server.engine._tasks.values()))
            return stream

        server.engine.generate = counted
        batches = [(await server.create([line(number, priority=-5) for number in range(9)])).json() for _ in range(2)]
        for batch in batches:
            await server.until(batch["id"], "completed")
        assert {call.priority for call in server.engine.calls} == {LEAST_URGENT}
        assert {call.user.partition("-")[0] for call in server.engine.calls} == {"key"}
        assert max(seen) == 3


async def test_no_line_starts_while_requests_wait_in_the_engine(start):
    async with start() as server:
        server.engine.snapshot = EngineStats(num_requests_waiting=1)
        created = (await server.create([line(number) for number in range(3)])).json()
        await server.until(created["id"], "in_progress")
        await asyncio.sleep(0.2)
        assert server.engine.calls == []
        answer = await server.client.post("/v1/chat/completions", json=line(0)["body"], headers=KEYS["bob"])
        assert answer.status_code == 200
        assert len(server.engine.calls) == 1
        server.engine.snapshot = EngineStats()
        assert (await server.until(created["id"], "completed"))["request_counts"]["completed"] == 3


async def test_a_cancelled_batch_ends_and_keeps_its_results(start):
    async with start(concurrency=2, step_s=0.01) as server:
        created = (await server.create([line(number) for number in range(400)])).json()
        while (await server.get(f"/v1/batches/{created['id']}")).json()["request_counts"]["completed"] < 3:
            await asyncio.sleep(0.01)
        assert (
            await server.client.delete(f"/v1/files/{created['input_file_id']}", headers=KEYS["ada"])
        ).status_code == 409
        cancelling = await server.client.post(f"/v1/batches/{created['id']}/cancel", headers=KEYS["ada"])
        assert cancelling.json()["status"] == "cancelling"
        batch = await server.until(created["id"], "cancelled")
        assert 3 <= batch["request_counts"]["completed"] < 400
        assert len(await server.lines_of(batch["output_file_id"])) == batch["request_counts"]["completed"]
        again = await server.client.post(f"/v1/batches/{created['id']}/cancel", headers=KEYS["ada"])
        assert (again.status_code, again.json()["error"]["code"]) == (409, "batch_has_ended")
        deleted = await server.client.delete(f"/v1/files/{created['input_file_id']}", headers=KEYS["ada"])
        assert deleted.status_code == 200
        num_calls = len(server.engine.calls)
        await asyncio.sleep(0.1)
        assert len(server.engine.calls) == num_calls


async def test_a_batch_goes_on_after_a_restart_without_repeating_answers(start):
    async with start(concurrency=2, step_s=0.01) as server:
        created = (await server.create([*(line(number) for number in range(40)), "{"])).json()
        while (await server.get(f"/v1/batches/{created['id']}")).json()["request_counts"]["completed"] < 5:
            await asyncio.sleep(0.01)
    async with start() as server:
        await server.service.resume()
        batch = await server.until(created["id"], *ENDED)
        assert batch["status"] == "completed"
        assert batch["request_counts"] == {"total": 41, "completed": 40, "failed": 1}
        assert len(server.engine.calls) <= 35
        answers = await server.lines_of(batch["output_file_id"])
        assert sorted(one["custom_id"] for one in answers) == sorted(f"r{number}" for number in range(40))


async def test_one_worker_runs_batches_and_a_sibling_takes_over(start):
    async with start(step_s=0.01, concurrency=1) as first:
        await first.until((await first.create([line(0)])).json()["id"], "completed")
        running_one = (await first.create([line(number) for number in range(30)])).json()
        await first.until(running_one["id"], "in_progress")
        async with start() as second:
            other = (await second.create([line(number) for number in range(3)], who="bob")).json()
            await first.until(other["id"], "in_progress", "completed", who="bob")
            assert second.engine.calls == []
            await first.service.stop()
            batch = await second.until(running_one["id"], *ENDED)
            assert batch["request_counts"] == {"total": 30, "completed": 30, "failed": 0}
            assert (await second.until(other["id"], *ENDED, who="bob"))["status"] == "completed"
            assert second.engine.calls


@pytest.mark.parametrize(("lines", "code"), [([], "empty_file"), (["", "  "], "empty_file")])
async def test_a_file_without_lines_fails_as_a_whole(lines, code, start):
    async with start() as server:
        batch = await server.until((await server.create(lines)).json()["id"], *ENDED)
        assert (batch["status"], batch["errors"]["data"][0]["code"]) == ("failed", code)
        assert batch["failed_at"] is not None
        assert batch["output_file_id"] is None


async def test_results_beyond_the_tenants_limit_fail_the_batch(start):
    async with start(limits=StorageLimits(max_bytes=60_000)) as server:
        batch = await server.until((await server.create([line(number) for number in range(300)])).json()["id"], *ENDED)
        assert (batch["status"], batch["errors"]["data"][0]["code"]) == ("failed", "storage_limit_reached")
        assert 0 < batch["request_counts"]["completed"] < 300


async def test_an_expired_batch_gives_every_line_that_is_left_an_error(start, monkeypatch):
    async with start(stops_after=0) as server:
        created = (await server.create([line(number) for number in range(6)])).json()
        await server.until(created["id"], "in_progress")
    monkeypatch.setattr("plugserve.server.batches.batch_job.time.time", lambda: time.monotonic() + 2e9 + 86400 * 40000)
    async with start() as server:
        await server.service.resume()
        batch = await server.until(created["id"], *ENDED)
        assert batch["status"] == "expired"
        errors = await server.lines_of(batch["error_file_id"])
        assert [one["error"]["code"] for one in errors] == ["batch_expired"] * 6


async def test_a_line_waits_for_an_engine_that_is_started_again(start):
    async with start(stops_after=2, concurrency=2) as server:
        created = (await server.create([line(number) for number in range(4)])).json()
        while len(server.engine.calls) < 2:
            await asyncio.sleep(0.01)
        server.engine.die()
        await asyncio.sleep(0.1)
        server.engine.stops_after, server.engine.state = None, "up"
        batch = await server.until(created["id"], *ENDED)
        assert batch["request_counts"] == {"total": 4, "completed": 4, "failed": 0}


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"endpoint": "/v1/files"}, 400, "endpoint"),
        ({"completion_window": "1h"}, 400, "completion_window"),
        ({"input_file_id": "file-" + "0" * 32}, 404, "input_file_id"),
        ({"input_file_id": "../lock"}, 404, "input_file_id"),
        ({"input_file_id": None}, 400, "input_file_id"),
        ({"metadata": {"a": 5}}, 400, "metadata"),
        ({"metadata": {str(number): "x" for number in range(17)}}, 400, "metadata"),
    ],
)
async def test_a_wrong_field_is_refused(fields, status, param, start):
    async with start() as server:
        answer = await server.create([line(1)], **fields)
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
        assert (await server.get("/v1/batches")).json()["data"] == []


class OnlyFiles(NoHooks):
    """Plugins that refuse every chat request."""

    async def authorize(self, request):
        await super().authorize(request)
        return Refusal(403, "no chats for you") if request.path == "/v1/chat/completions" else None


async def test_a_plugin_that_refuses_the_endpoint_refuses_the_batch(start):
    async with start(hooks=(hooks := OnlyFiles())) as server:
        answer = await server.create([line(1)])
        assert (answer.status_code, answer.json()["error"]["message"]) == (403, "no chats for you")
        [asked] = [request for request in hooks.authorized if request.path == "/v1/chat/completions"]
        assert asked.headers["authorization"] == "Bearer ada"
        assert [outcome.status for request, outcome in hooks.ended if request.key == asked.key] == [403]


async def test_hooks_are_called_for_each_line_with_the_batchs_identity(start):
    async with start(hooks=(hooks := NoHooks())) as server:
        created = (await server.create([line(1), line(2, max_tokens=-1)])).json()
        await server.until(created["id"], "completed")
        finished = [(name, arguments["request"]) for name, arguments in hooks.told]
        assert sorted(name for name, _ in finished) == ["plugserve_error", "plugserve_request_finished"]
        assert {request.identity.name for _, request in finished} == {hooks.authorized[0].identity.name}
        assert {(request.path, len(request.headers)) for _, request in finished} == {("/v1/chat/completions", 0)}
        assert len({request.key for _, request in finished}) == 2
        assert all(request.key in {one.key for one in hooks.authorized} for request, _ in hooks.ended)


async def test_openais_client_runs_a_batch(start):
    async with start() as server:
        base = f"http://127.0.0.1:{server.live.port}/v1"
        async with openai.AsyncOpenAI(base_url=base, api_key="ada") as client:
            file = await client.files.create(file=("in.jsonl", jsonl([line(1), line(2)])), purpose="batch")
            batch = await client.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
            while (batch := await client.batches.retrieve(batch.id)).status not in ENDED:
                await asyncio.sleep(0.02)
            assert batch.request_counts.completed == 2
            text = (await client.files.content(batch.output_file_id)).text
            assert [json.loads(one)["response"]["status_code"] for one in text.splitlines()] == [200, 200]
            assert [one.id async for one in client.batches.list()] == [batch.id]


async def test_without_batches_nothing_runs(start):
    async with start() as server:
        await server.service.resume()
        await server.create([line(1)], input_file_id="file-x")
        assert [task.get_name() for task in asyncio.all_tasks() if "batch" in task.get_name()] == []
