"""The engine's end of the wire, in the test's own event loop: a ROUTER that notes requests and says what it is told."""

import array

import zmq
import zmq.asyncio

from plugserve.core.contracts.engine_facts import EngineInfo, EngineStats
from plugserve.core.wire.messages import (
    AbortRequests,
    GenerateRequest,
    StatsReply,
    StatsRequest,
    StepOutputs,
    decode_to_engine,
    encode,
)

INFO = EngineInfo(
    max_model_len=256,
    vocab_size=300,
    num_blocks=8,
    block_size=16,
    max_num_batched_tokens=64,
    kv_cache_bytes=0,
    weight_bytes=0,
    dtype="float32",
    device="cpu",
    load_seconds=0.1,
)


class EngineSocket:
    """Bound to address. answers: what to say to every request at once, or None to wait for tell."""

    def __init__(self, context, address, *, answers=None, answers_stats=True):
        self.address = address
        self.requests = []  # (identity, GenerateRequest, prompt)
        self.block_hashes = []  # by request, b"" for a request without
        self.aborts = []
        self.stats = EngineStats(num_steps=3, num_free_blocks=8, num_blocks=8)
        self._answers = answers
        self._answers_stats = answers_stats
        self._socket = context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(address)

    async def run(self):
        while True:
            identity, payload, *rest = await self._socket.recv_multipart()
            message = decode_to_engine(payload)
            if isinstance(message, GenerateRequest):
                prompt = array.array("i")
                prompt.frombytes(rest[0])
                self.requests.append((identity, message, list(prompt)))
                self.block_hashes.append(rest[1] if len(rest) > 1 else b"")
                if self._answers is not None:
                    await self.tell(identity, {message.id: self._answers})
            elif isinstance(message, AbortRequests):
                self.aborts += message.ids
            elif isinstance(message, StatsRequest) and self._answers_stats:
                await self._socket.send_multipart(
                    [identity, encode(StatsReply(call_id=message.call_id, stats=self.stats))]
                )

    async def tell(self, identity, outputs, **columns):
        """outputs: request id -> (tokens, FINISH_ code)."""
        tokens = array.array("i", [token for told, _ in outputs.values() for token in told])
        message = StepOutputs(
            ids=list(outputs),
            num_tokens=[len(told) for told, _ in outputs.values()],
            finish=[finish for _, finish in outputs.values()],
            tokens=tokens.tobytes(),
            **columns,
        )
        await self._socket.send_multipart([identity, encode(message)])

    async def send_raw(self, identity, payload):
        await self._socket.send_multipart([identity, payload])

    def close(self):
        self._socket.close(linger=0)
