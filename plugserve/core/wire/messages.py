"""All messages between the processes.

Three conversations, all msgpack over ZMQ:

    worker -> engine        GenerateRequest (+ one raw int32 frame of prompt tokens, one of block hashes),
                            AbortRequests, StatsRequest
    engine -> worker        StepOutputs (one message a step and worker, columnar), StatsReply
    supervisor <-> both     WorkerHello, EngineReady, StartFailed, WorkerReady,
                            EngineUp, EngineDown, WorkerGone, Stop, ResponseCall, ResponseReply,
                            AdapterCall, AdapterReply, Adapters, AdaptersNoted,
                            LoadAdapter, UnloadAdapter, AdapterLoaded,
                            WantModel, ModelCall, ModelReply, ModelAdded, ModelsUsed,
                            ReleaseModel, ModelReleased, TextFailed

Request ids are integers that the worker chooses; they are unique within that worker's life only.
Token ids travel as raw little-endian int32.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from plugserve.core.contracts.engine_facts import EngineInfo, EngineStats
from plugserve.core.contracts.sampling import SamplingParams, TokenLogprobs
from plugserve.core.wire.request_origin import NO_ORIGIN, RequestOrigin
from plugserve.core.wire.sequence_times import SequenceTimes

FINISH_NONE: Final = 0
FINISH_STOP: Final = 1
FINISH_LENGTH: Final = 2
FINISH_ABORT: Final = 3
FINISH_ERROR: Final = 4
FINISH_COMPLETE: Final = 5
FINISH_REFUSED: Final = 6
FINISH_NO_ADAPTER: Final = 7
FINISH_BAD_GRAMMAR: Final = 8

ASIDE: Final = b":aside"
"""Follows an engine's identity on a second connection of its process to the supervisor, for its last words."""


# ---- worker -> engine


class GenerateRequest(msgspec.Struct, tag="generate", kw_only=True, omit_defaults=True):
    """Ask for tokens. The prompt's ids follow in a second frame as raw int32; in a third one, where the engine has a
    prefix cache, the hashes of the prompt's full blocks (16 bytes each, see block_hash). adapter_id is that of a loaded
    LoRA adapter, 0 for none."""

    id: int
    params: SamplingParams
    priority: int = 0
    cache_salt: str = ""
    user: str = ""
    adapter_id: int = 0
    origin: RequestOrigin = NO_ORIGIN


class AbortRequests(msgspec.Struct, tag="abort"):
    """Abort these requests and free their blocks. Unknown ids are ignored (they may have just finished)."""

    ids: list[int]


class StatsRequest(msgspec.Struct, tag="stats"):
    """Ask for one StatsReply with the same call_id."""

    call_id: int


# ---- engine -> worker


class StepOutputs(msgspec.Struct, tag="outputs", kw_only=True, omit_defaults=True):
    """The outputs of one step for one worker's requests, in columns; entry i of each column belongs to ids[i].

    num_tokens[i] ids of new tokens lie in tokens (raw int32, concatenated in order). finish[i] is a FINISH_ code; after
    anything but FINISH_NONE the request is gone. FINISH_STOP: its last token is the stop token; FINISH_COMPLETE: its
    grammar allows nothing more, and the last token belongs to the answer. FINISH_REFUSED: it was refused, because the
    queue is full. FINISH_NO_ADAPTER: it was refused, because its LoRA adapter is not loaded. FINISH_BAD_GRAMMAR: its
    grammar can't be compiled, or can't continue.

    The sparse columns are keyed by request id: started gives (seconds waited in the queue, cached prompt tokens) with a
    request's first tokens; logprobs has one entry for each new token; prompt_logprobs arrives once, with the first
    tokens, its first entry None; pooled gives the vector (raw little-endian float32) of a request for pooling, which
    ends with FINISH_STOP and no tokens; errors gives the one-line reason of what was
    not taken in or failed; ended gives the times of every sequence that was taken in and ends with this message.
    """

    ids: list[int]
    num_tokens: list[int]
    finish: list[int]
    tokens: bytes
    started: dict[int, tuple[float, int]] = {}
    logprobs: dict[int, list[TokenLogprobs]] = {}
    prompt_logprobs: dict[int, list[TokenLogprobs | None]] = {}
    pooled: dict[int, bytes] = {}
    errors: dict[int, str] = {}
    ended: dict[int, SequenceTimes] = {}


class StatsReply(msgspec.Struct, tag="stats_reply"):
    call_id: int
    stats: EngineStats


# ---- supervisor <-> engines and workers


class EngineReady(msgspec.Struct, tag="engine_ready"):
    info: EngineInfo


class StartFailed(msgspec.Struct, tag="start_failed"):
    """An engine or worker can't start, or an engine has to end. is_user_error: the message names what the user has to
    change."""

    message: str
    is_user_error: bool


class WorkerHello(msgspec.Struct, tag="worker_hello"):
    """A server worker listens; the supervisor answers with one EngineUp or EngineDown for each model."""

    pid: int


class WorkerReady(msgspec.Struct, tag="worker_ready"):
    """The worker can serve every model; sent once. model is the one that serves requests which name none, example the
    kind of request that it answers, "models" for none. is_guarded: a plugin decides who is let in, if no key does."""

    model: str = ""
    example: Literal["chat", "completions", "embeddings", "models"] = "chat"
    needs_key: bool = False
    is_guarded: bool = False


class ModelCounts(msgspec.Struct, omit_defaults=True):
    """What happened to a model since the server started: loads, seconds that they took in all and the last one,
    unloads by reason; and the bytes that it takes now (0 while it is not loaded)."""

    num_loads: int = 0
    load_s: float = 0.0
    last_load_s: float = 0.0
    unloads: dict[str, int] = {}
    size_bytes: int = 0


class EngineUp(msgspec.Struct, tag="engine_up", omit_defaults=True):
    """A model's engines answer at addresses (ZMQ endpoints), in their order; "" for one that is down. Every start of an
    engine has a new address. num_restarts: how often one of the model's engines came up again after it had died."""

    model: str
    addresses: list[str]
    info: EngineInfo
    num_restarts: int = 0
    counts: ModelCounts = msgspec.field(default_factory=ModelCounts)


class EngineDown(msgspec.Struct, tag="engine_down", omit_defaults=True):
    """No engine for this model.

    state: "unloaded" (the next request loads it); "loading"; "failed" (the load failed for reason, and is not tried
    again before retry_at_s, on time.monotonic's clock); "dead" (its engine died and is started again). While it loads,
    stage says what is done, and is_found is True once its files are known (RuntimeFolder.read_source). waits: requests
    wait for the model; otherwise they are refused while it loads.
    """

    model: str
    state: str
    reason: str
    stage: str = ""
    is_found: bool = True
    waits: bool = False
    retry_at_s: float = 0.0
    counts: ModelCounts = msgspec.field(default_factory=ModelCounts)


# ---- the model pool


class WantModel(msgspec.Struct, tag="want_model"):
    """A worker has requests for a model that is not loaded; EngineUp or EngineDown follows."""

    model: str


class ModelUse(msgspec.Struct, omit_defaults=True):
    """A worker's use of one model: requests in progress, when the last one began or ended (time.monotonic), and the
    keep_alive of the last one that gave one: seconds, negative for ever."""

    model: str
    num_requests: int
    last_used_s: float
    keep_alive_s: float | None = None


class ModelsUsed(msgspec.Struct, tag="models_used"):
    """A worker's use of the models whose use has changed since it last reported."""

    uses: list[ModelUse]


class ReleaseModel(msgspec.Struct, tag="release_model"):
    """The model is about to be unloaded: new requests wait, and the worker answers with ModelReleased once none that
    began before uses it. EngineUp cancels it."""

    model: str
    number: int


class ModelReleased(msgspec.Struct, tag="model_released"):
    model: str
    number: int


class TextFailed(msgspec.Struct, tag="text_failed"):
    """A worker can't read the tokenizer or template of a model that is being loaded."""

    model: str
    message: str


class ModelCall(msgspec.Struct, tag="model_call", omit_defaults=True):
    """A client's explicit call, which a worker forwards: "load" or "unload" a model of the table, or "add" a Hugging
    Face id that is not in it. One ModelReply follows. keep_alive_s as in ModelUse."""

    call_id: int
    action: str
    model: str
    keep_alive_s: float | None = None


class ModelReply(msgspec.Struct, tag="model_reply", omit_defaults=True):
    """status is HTTP's: 200, or with an error 4xx or 503, then retry_s says when to try again."""

    call_id: int
    status: int = 200
    error: str = ""
    code: str = ""
    retry_s: float = 1.0


class ModelAdded(msgspec.Struct, tag="model_added"):
    """A model joins the table (entry as RuntimeFolder.read_entries gives it) or, with entry None, leaves it."""

    index: int
    name: str
    entry: dict[str, Any] | None = None


class WorkerGone(msgspec.Struct, tag="worker_gone"):
    """A server worker died: the engine aborts every request of that identity."""

    identity: bytes


class Stop(msgspec.Struct, tag="stop"):
    """Shut down. grace_s: how long requests in flight may still run."""

    grace_s: float = 0.0


class ResponseCall(msgspec.Struct, tag="response_call"):
    """A worker asks for a stored response, to keep one (record given) or to delete it; one ResponseReply follows."""

    call_id: int
    id: str
    record: bytes | None = None
    is_deletion: bool = False


class ResponseReply(msgspec.Struct, tag="response_reply"):
    call_id: int
    is_found: bool
    record: bytes | None = None


# ---- LoRA adapters


class AdapterInfo(msgspec.Struct, kw_only=True):
    """A loaded adapter as requests and lists know it. id is never used again, not even by the same adapter loaded anew;
    path is as the user gave it, model the name of its base model, created in seconds since 1970."""

    id: int
    name: str
    path: str
    model: str
    created: int


class AdapterCall(msgspec.Struct, tag="adapter_call", kw_only=True, omit_defaults=True):
    """A worker asks the supervisor to load an adapter (path given) or to unload one; one AdapterReply follows. model is
    the base model's name, "" where there is but one. is_replacement: one of that name may be loaded already."""

    call_id: int
    name: str
    path: str = ""
    model: str = ""
    is_replacement: bool = False


class AdapterReply(msgspec.Struct, tag="adapter_reply", kw_only=True, omit_defaults=True):
    """status is HTTP's: 200, or with an error 4xx or 503."""

    call_id: int
    status: int = 200
    error: str = ""
    code: str = ""
    param: str = ""


class Adapters(msgspec.Struct, tag="adapters"):
    """Every adapter that requests may name from now on; a worker answers with AdaptersNoted of the same version."""

    version: int
    adapters: list[AdapterInfo]


class AdaptersNoted(msgspec.Struct, tag="adapters_noted"):
    version: int


class LoadAdapter(msgspec.Struct, tag="load_adapter"):
    """The engine reads an adapter from the folder path and answers with AdapterLoaded. is_deferred: it was served
    before; it answers at once and reads when a request needs it."""

    id: int
    name: str
    path: str
    is_deferred: bool = False


class UnloadAdapter(msgspec.Struct, tag="unload_adapter"):
    """No new requests will name this adapter; those that run end with it."""

    id: int


class AdapterLoaded(msgspec.Struct, tag="adapter_loaded"):
    """Requests may name the adapter, unless error holds one line on why it can't be used."""

    id: int
    error: str = ""


ToEngine = GenerateRequest | AbortRequests | StatsRequest | WorkerGone | Stop | LoadAdapter | UnloadAdapter
FromEngine = StepOutputs | StatsReply
ToSupervisor = (
    EngineReady
    | StartFailed
    | WorkerHello
    | WorkerReady
    | ResponseCall
    | AdapterCall
    | AdaptersNoted
    | AdapterLoaded
    | WantModel
    | ModelsUsed
    | ModelReleased
    | TextFailed
    | ModelCall
)
ToWorker = (
    EngineUp | EngineDown | Stop | ResponseReply | AdapterReply | Adapters | ReleaseModel | ModelReply | ModelAdded
)

_encoder = msgspec.msgpack.Encoder()
_to_engine: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(ToEngine)
_from_engine: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(FromEngine)
_to_supervisor: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(ToSupervisor)
_to_worker: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(ToWorker)


def encode(message: msgspec.Struct) -> bytes:
    """Any message as msgpack."""
    return _encoder.encode(message)


def decode_to_engine(frame: bytes) -> ToEngine:
    """Read a message that a worker or the supervisor sent to an engine. Raises msgspec.DecodeError."""
    return _to_engine.decode(frame)  # type: ignore[no-any-return]


def decode_from_engine(frame: bytes) -> FromEngine:
    """Read a message that an engine sent to a worker. Raises msgspec.DecodeError."""
    return _from_engine.decode(frame)  # type: ignore[no-any-return]


def decode_to_supervisor(frame: bytes) -> ToSupervisor:
    """Read a message that an engine or a worker sent to the supervisor. Raises msgspec.DecodeError."""
    return _to_supervisor.decode(frame)  # type: ignore[no-any-return]


def decode_to_worker(frame: bytes) -> ToWorker:
    """Read a message that the supervisor sent to a worker. Raises msgspec.DecodeError."""
    return _to_worker.decode(frame)  # type: ignore[no-any-return]
