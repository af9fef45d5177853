"""A worker as the supervisor starts it: a process of its own with an inherited socket."""

import asyncio
import json
import os
import signal
import socket
import sys

import httpx
import pytest
import zmq.asyncio

from plugserve.core.model_files.model_source import ModelSource
from plugserve.core.settings.model_entries import ModelEntry
from plugserve.core.settings.settings import Settings
from plugserve.core.wire.handed_settings import as_line
from plugserve.core.wire.messages import (
    FINISH_LENGTH,
    FINISH_NONE,
    FINISH_STOP,
    EngineDown,
    EngineUp,
    ResponseCall,
    StartFailed,
    Stop,
    WorkerHello,
    WorkerReady,
    decode_to_supervisor,
    encode,
)
from plugserve.core.wire.runtime_folder import RuntimeFolder
from plugserve.server.api.responses.response_store import BoundedStore
from tests.server.engine_socket import INFO, EngineSocket
from tests.server.fakes import byte_level_tokenizer

TEMPLATE = "{% for m in messages %}<|user|>{{ m.role }}:{{ m.content }}{% endfor %}>"


class Supervisor:
    """The supervisor's end: starts one worker, hears and tells, never leaves it behind."""

    def __init__(self, tmp_path, **settings):
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 256}))
        (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.3}))
        byte_level_tokenizer().save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
        source = ModelSource("org/tiny", ("tiny",), "folder", folder)
        self.settings = Settings(no_plugin=["request-log"], **settings)
        names = tuple(self.settings.served_model_name)
        entry = ModelEntry("org/tiny", str(folder), names or ("org/tiny",), ("tiny",), True, True)
        self.folder = RuntimeFolder.create(self.settings, [entry])
        self.folder.write_source(0, source)
        self.context = zmq.asyncio.Context()
        self.control = self.context.socket(zmq.ROUTER)
        self.control.bind(self.folder.control_address)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.heard = []
        self.responses = BoundedStore()
        self.tokens = byte_level_tokenizer().encode("hello world").ids
        self.engine = None

    async def start(self):
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "plugserve.server.worker",
            str(self.folder.path),
            "0",
            str(self.listener.fileno()),
            stdin=asyncio.subprocess.PIPE,
            pass_fds=[self.listener.fileno()],
        )
        self.process.stdin.write(as_line(self.settings))
        self.identity = f"worker:0:{self.process.pid}".encode()
        self.hearing = asyncio.create_task(self.hear())
        url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.client = httpx.AsyncClient(base_url=url, timeout=20)

    async def hear(self):
        while True:
            identity, payload = await self.control.recv_multipart()
            assert identity == self.identity
            self.heard.append(decode_to_supervisor(payload))
            if isinstance(self.heard[-1], ResponseCall):
                await self.tell(self.responses.answer(self.heard[-1]))

    async def tell(self, message):
        await self.control.send_multipart([self.identity, encode(message)])

    async def bring_engine_up(self, generation=1, finish=FINISH_STOP):
        address = self.folder.engine_address(0, generation)
        self.engine = EngineSocket(self.context, address, answers=(self.tokens, finish))
        self.serving = asyncio.create_task(self.engine.run())
        await self.tell(EngineUp(model="org/tiny", addresses=[address], info=INFO, num_restarts=generation - 1))

    async def chat(self, **fields):
        body = {"messages": [{"role": "user", "content": "hi"}], **fields}
        return await self.client.post("/v1/chat/completions", json=body)

    async def close(self):
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        self.hearing.cancel()
        if self.engine is not None:
            self.serving.cancel()
            self.engine.close()
        await self.client.aclose()
        self.control.close(linger=0)
        self.context.destroy(linger=0)
        self.listener.close()
        self.folder.remove()


@pytest.fixture
async def supervise(tmp_path, eventually):
    started = []

    async def start(**settings):
        supervisor = Supervisor(tmp_path, **settings)
        started.append(supervisor)
        await supervisor.start()
        await eventually(lambda: any(isinstance(message, WorkerHello) for message in supervisor.heard))
        return supervisor

    yield start
    for supervisor in started:
        await supervisor.close()


async def test_worker_goes_from_loading_to_answers_and_survives_its_engine(supervise, eventually):
    supervisor = await supervise()
    loading = await supervisor.client.get("/health")
    assert (loading.status_code, loading.json()["status"]) == (503, "loading")
    await supervisor.tell(EngineDown(model="org/tiny", state="loading", reason=""))
    assert (await supervisor.chat()).status_code == 503
    await supervisor.bring_engine_up(finish=FINISH_LENGTH)
    await eventually(lambda: any(isinstance(message, WorkerReady) for message in supervisor.heard))
    assert (await supervisor.client.get("/health")).json() == {"status": "ok"}
    ready = next(message for message in supervisor.heard if isinstance(message, WorkerReady))
    assert ready == WorkerReady("org/tiny", "chat", needs_key=False, is_guarded=False)

    answer = (await supervisor.chat(model="tiny")).json()
    assert answer["choices"][0]["message"]["content"] == "hello world"
    _, request, prompt = supervisor.engine.requests[0]
    assert byte_level_tokenizer().decode(prompt, skip_special_tokens=False) == "<|user|>user:hi>"
    assert request.params.temperature == 0.3
    assert request.params.max_tokens == 256 - len(prompt)

    supervisor.engine._answers = None
    waiting = asyncio.create_task(supervisor.chat())
    await eventually(lambda: len(supervisor.engine.requests) == 2)
    await supervisor.tell(EngineDown(model="org/tiny", state="dead", reason="killed by SIGKILL"))
    assert (await waiting).status_code == 503
    assert (await supervisor.client.get("/health")).json()["status"] == "dead"
    supervisor.serving.cancel()
    supervisor.engine.close()
    await supervisor.bring_engine_up(generation=2, finish=FINISH_LENGTH)

    async def answers():
        return (await supervisor.chat()).status_code == 200

    async with asyncio.timeout(60):
        while not await answers():
            await asyncio.sleep(0.01)
    metrics = (await supervisor.client.get("/metrics")).text
    assert 'plugserve_engine_restarts_total{model_name="org/tiny"} 1.0' in metrics
    assert 'plugserve_prompt_tokens_total{model_name="org/tiny"}' in metrics
    assert len([message for message in supervisor.heard if isinstance(message, WorkerReady)]) == 1

    supervisor.process.send_signal(signal.SIGINT)  # the supervisor's business
    assert (await supervisor.chat()).status_code == 200
    supervisor.process.stdin.close()  # the supervisor has died
    async with asyncio.timeout(60):
        await supervisor.process.wait()


async def test_request_to_a_worker_that_just_started_waits_for_its_first_word(supervise):
    supervisor = await supervise()
    early = asyncio.create_task(supervisor.chat())
    assert (await supervisor.client.get("/health")).json()["status"] == "loading"
    await supervisor.bring_engine_up(finish=FINISH_LENGTH)
    assert (await early).status_code == 200


async def test_sigterm_without_grace_aborts_and_leaves(supervise, eventually):
    supervisor = await supervise(served_model_name=["mine", "also"], shutdown_timeout=0)
    await supervisor.bring_engine_up()
    supervisor.engine._answers = None
    async with asyncio.timeout(60):
        while (await supervisor.client.get("/health")).status_code != 200:
            await asyncio.sleep(0.01)
    models = (await supervisor.client.get("/v1/models")).json()["data"]
    assert [model["id"] for model in models] == ["mine", "also"]
    waiting = asyncio.create_task(supervisor.chat(model="also"))
    await eventually(lambda: supervisor.engine.requests)
    identity, request, _ = supervisor.engine.requests[0]
    await supervisor.engine.tell(identity, {request.id: (supervisor.tokens[:1], FINISH_NONE)})
    await asyncio.sleep(0.05)
    supervisor.process.send_signal(signal.SIGTERM)
    answer = await waiting
    assert answer.status_code == 503
    assert "shut down before this request was finished" in answer.json()["error"]["message"]
    async with asyncio.timeout(60):
        assert await supervisor.process.wait() == 0
    await eventually(lambda: supervisor.engine.aborts == [request.id])


async def test_stop_with_grace_lets_requests_finish_and_refuses_new_ones(supervise, eventually):
    supervisor = await supervise()
    await supervisor.bring_engine_up()
    supervisor.engine._answers = None
    async with asyncio.timeout(60):
        while (await supervisor.client.get("/health")).status_code != 200:
            await asyncio.sleep(0.01)
    waiting = asyncio.create_task(supervisor.chat())
    await eventually(lambda: supervisor.engine.requests)
    await supervisor.tell(Stop(grace_s=30))
    async with asyncio.timeout(60):
        while (await supervisor.client.get("/health")).json()["status"] != "stopping":
            await asyncio.sleep(0.01)
    assert (await supervisor.chat()).status_code == 503
    identity, request, _ = supervisor.engine.requests[0]
    await supervisor.engine.tell(identity, {request.id: ([*supervisor.tokens, 1], FINISH_STOP)})
    assert (await waiting).json()["choices"][0]["finish_reason"] == "stop"
    async with asyncio.timeout(60):
        assert await supervisor.process.wait() == 0


async def test_unreadable_tokenizer_is_one_line_and_exit_code_2(tmp_path):
    supervisor = Supervisor(tmp_path)
    (tmp_path / "model" / "tokenizer.json").write_text("{")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "plugserve.server.worker",
        str(supervisor.folder.path),
        "0",
        str(supervisor.listener.fileno()),
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        pass_fds=[supervisor.listener.fileno()],
    )
    process.stdin.write(as_line(supervisor.settings))
    try:
        async with asyncio.timeout(60):
            _, payload = await supervisor.control.recv_multipart()
            printed = await process.stderr.read()
            assert await process.wait() == 2
    finally:
        if process.returncode is None:
            os.kill(process.pid, signal.SIGKILL)
        supervisor.control.close(linger=0)
        supervisor.context.destroy(linger=0)
        supervisor.listener.close()
        supervisor.folder.remove()
    failure = decode_to_supervisor(payload)
    assert isinstance(failure, StartFailed)
    assert failure.is_user_error
    assert "tokenizer.json" in failure.message
    assert "\n" not in failure.message
    assert printed == b"", "the supervisor says it, once"


async def test_responses_are_stored_with_the_supervisor(supervise):
    supervisor = await supervise()
    await supervisor.bring_engine_up()
    client = supervisor.client
    first = (await client.post("/v1/responses", json={"input": "hi"})).json()
    assert len(supervisor.responses) == 1
    assert (await client.get(f"/v1/responses/{first['id']}")).json() == first
    second = await client.post("/v1/responses", json={"input": "ho", "previous_response_id": first["id"]})
    assert second.json()["usage"]["input_tokens"] > first["usage"]["input_tokens"]
    assert (await client.delete(f"/v1/responses/{first['id']}")).json()["deleted"] is True
    assert (await client.get(f"/v1/responses/{first['id']}")).status_code == 404


async def test_worker_keeps_to_the_settings_for_access_and_limits(supervise, eventually):
    supervisor = await supervise(
        api_key=["one", "two"],
        allowed_origins=["https://page.example"],
        request_timeout=0.2,
        max_body_size=2000,
        max_prompt_tokens=30,
    )
    await supervisor.bring_engine_up(finish=FINISH_LENGTH)
    await eventually(lambda: any(isinstance(message, WorkerReady) for message in supervisor.heard))
    assert (await supervisor.client.get("/health")).status_code == 200
    assert (await supervisor.chat()).status_code == 401
    assert (await supervisor.client.get("/metrics")).status_code == 401
    assert not supervisor.engine.requests

    supervisor.client.headers["Authorization"] = "Bearer two"
    assert (await supervisor.chat()).status_code == 200
    assert (await supervisor.client.get("/metrics", headers={"Origin": "https://page.example"})).headers[
        "access-control-allow-origin"
    ] == "https://page.example"
    assert (await supervisor.chat(user="x" * 2000)).status_code == 413
    long = await supervisor.client.post("/v1/completions", json={"prompt": [5] * 31})
    assert long.status_code == 400
    supervisor.engine._answers = None
    late = await supervisor.chat()
    assert (late.status_code, late.json()["error"]["code"]) == (504, "request_timeout")
    await eventually(lambda: len(supervisor.engine.aborts) == 1)
