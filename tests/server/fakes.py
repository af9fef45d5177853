"""Stand-ins for what a worker talks to: an engine with scripted tokens, tokenizers made on the spot, empty hooks."""

import array
import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from plugserve.core.contracts.engine_facts import EngineInfo, EngineStats
from plugserve.core.contracts.memory import MemoryLedger
from plugserve.core.contracts.sampling import SamplingParams, TokenLogprobs
from plugserve.core.errors import EngineUnavailableError, RequestFailedError
from plugserve.server.sandbox.fair_queue import ANONYMOUS
from plugserve.server.text.answer_parsers import AnswerParsers
from plugserve.server.text.detokenizer import Vocabulary
from plugserve.server.text.grammars import GrammarCompiler
from plugserve.server.worker.engine_client import STOPPED, unavailable_message
from plugserve.server.worker.served_models import ServedModel, TextSide
from plugserve.server.worker.token_stream import OutputDelta, TokenStream

BOS, EOS, USER = "<|bos|>", "<|eos|>", "<|user|>"


def byte_level_tokenizer() -> Tokenizer:
    """GPT-2's way: 256 bytes, a few merged words, three special tokens (ids 0 to 2)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, "he", "ll", "hell", "hello", "Ġw", "or", "Ġwor", "ld", "Ġworld"]
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w"), ("o", "r"), ("Ġw", "or"), ("l", "d")]
    merges.append(("Ġwor", "ld"))
    vocab = {piece: index + 3 for index, piece in enumerate(pieces)}
    vocab |= {BOS: 0, EOS: 1, USER: 2}
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (BOS, EOS, USER)])
    return tokenizer


def sentencepiece_tokenizer() -> Tokenizer:
    """Llama 2's way: pieces with ▁ for spaces, <0xXX> for bytes, one leading space dropped."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "▁hello", "▁world", "hello", "s", "!", "é", "▁the", "<0x"]
    tokenizer = Tokenizer(
        models.BPE({piece: index for index, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<s>", "</s>")])
    return tokenizer


@dataclass
class Call:
    """One sequence that the fake engine was asked for."""

    id: int
    prompt: list[int]
    params: SamplingParams
    priority: int
    user: str
    cache_salt: str
    stream: TokenStream
    block_hashes: bytes = b""
    num_told: int = 0


Script = Callable[[Call], Sequence[int]]


@dataclass
class FakeEngine:
    """EngineClient with scripted tokens, delivered one a step (tokens_per_step to change that).

    stops_after: so many tokens into a sequence it says nothing more. fails_after: ... it fails.
    """

    script: Script
    model: str = "fake/model"
    eos_id: int = 1
    max_model_len: int = 128
    vocab_size: int = 300
    state: str = "up"
    tokens_per_step: int = 1
    step_s: float = 0.0
    stops_after: int | None = None
    fails_after: int | None = None
    cached_tokens: int | list[int] = 0  # of every call, or call by call
    prefix_salt: str = ""
    num_restarts: int = 0
    memory: MemoryLedger | None = None
    calls: list[Call] = field(default_factory=list)
    aborted: list[int] = field(default_factory=list)

    def __post_init__(self):
        self._ids = itertools.count(1)
        self._tasks = {}
        self.snapshot = EngineStats(num_blocks=8, num_free_blocks=6, num_steps=5)

    @property
    def info(self):
        if self.state == "loading":
            return None
        return EngineInfo(
            max_model_len=self.max_model_len,
            vocab_size=self.vocab_size,
            num_blocks=8,
            block_size=16,
            max_num_batched_tokens=64,
            kv_cache_bytes=0,
            weight_bytes=0,
            dtype="float32",
            device="cpu",
            load_seconds=0.0,
            prefix_salt=self.prefix_salt,
            memory=self.memory,
        )

    def generate(
        self,
        prompt_token_ids,
        params,
        *,
        priority=0,
        user="",
        cache_salt="",
        block_hashes=b"",
        adapter_id=0,
        origin=None,
        waker=None,
    ):
        if self.state != "up":
            raise EngineUnavailableError(unavailable_message(self.model, self.state))
        id = next(self._ids)
        stream = TokenStream(id, self.abort, waker)
        call = Call(id, list(prompt_token_ids), params, priority, user, cache_salt, stream, block_hashes)
        self.calls.append(call)
        self._tasks[id] = asyncio.get_running_loop().create_task(self._run(call))
        return stream

    def abort(self, id):
        self.aborted.append(id)
        self._tasks.pop(id).cancel()

    def abort_all(self):
        for id, task in list(self._tasks.items()):
            if not task.done():
                self.abort(id)
                self.calls[id - 1].stream.fail(EngineUnavailableError(STOPPED))

    def die(self):
        """The engine process goes away."""
        self.state = "dead"
        for id, task in self._tasks.items():
            task.cancel()
            self.calls[id - 1].stream.fail(EngineUnavailableError("The engine stopped while this request was running."))

    async def _run(self, call):
        if call.params.pooling:
            delta = OutputDelta([], "stop", pooled=array.array("f", [3.0, 4.0, len(call.prompt)]).tobytes())
            delta.queue_s, delta.num_cached_tokens = 0.25, 0
            await asyncio.sleep(self.step_s)
            if self.stops_after is not None:
                await asyncio.Event().wait()
            call.stream.deliver(delta)
            return
        tokens = list(self.script(call))
        for start in range(0, len(tokens) + 1, self.tokens_per_step):
            await asyncio.sleep(self.step_s)
            if self.fails_after is not None and call.num_told >= self.fails_after:
                call.stream.fail(RequestFailedError("the sampler saw NaN"))
                return
            if self.stops_after is not None and call.num_told >= self.stops_after:
                await asyncio.Event().wait()
            if self._tell(call, tokens[start : start + self.tokens_per_step]):
                return

    def _tell(self, call, tokens):
        params = call.params
        told, finish = [], None
        for token in tokens:
            told.append(token)
            call.num_told += 1
            stops = set(params.stop_token_ids) | (set() if params.ignore_eos else {self.eos_id})
            if token in stops and call.num_told > params.min_tokens:
                finish = "stop"
            elif call.num_told == params.max_tokens:
                finish = "length"
            if finish:
                break
        delta = OutputDelta(told, finish, ends_with_stop_token=finish == "stop")
        if params.num_logprobs is not None:
            delta.logprobs = [self.logprob(token, params.num_logprobs) for token in told]
        if call.num_told == len(told):
            cached = self.cached_tokens
            delta.queue_s, delta.num_cached_tokens = 0.25, cached if isinstance(cached, int) else cached[call.id - 1]
            if params.num_prompt_logprobs is not None:
                later = [self.logprob(token, params.num_prompt_logprobs) for token in call.prompt[1:]]
                delta.prompt_logprobs = [None, *later]
        call.stream.deliver(delta)
        return finish is not None

    def logprob(self, token, count):
        """The chosen token is the second likeliest; the likeliest has id 40, further ones follow with -inf last."""
        tops = [40, token, 41, 42, 43, *range(44, 64)][:count]
        values = [-0.25, -1.5, -2.0, -3.0, float("-inf"), *[float("-inf")] * 20][:count]
        return TokenLogprobs(token, -1.5, 2, tops, values)

    async def stats(self):
        return self.snapshot

    def last_stats(self):
        return self.snapshot

    async def close(self):
        for task in self._tasks.values():
            task.cancel()


class FakeTemplate:
    """Writes a conversation as <|user|>ROLE:CONTENT with a mark where the answer goes."""

    def __init__(self):
        self.renders = []
        self.answer_head = ">"
        self.takes_tools = True
        self.is_given = True
        self.tools = []

    async def render(
        self,
        messages,
        *,
        add_generation_prompt=True,
        continue_final_message=False,
        tools=None,
        kwargs=None,
        sender=ANONYMOUS,
    ):
        self.renders.append((messages, add_generation_prompt, continue_final_message, kwargs))
        text = "".join(f"{USER}{message['role']}:{message['content']}" for message in messages)
        self.tools.append(tools)
        return text + (self.answer_head if add_generation_prompt else "")

    async def render_with(self, template, messages, **arguments):
        return template + await self.render(messages, **arguments)

    async def close(self):
        pass


class NoHooks:
    """A plugin host without plugins that notes what it is told."""

    def __init__(self):
        self.errors = Counter()
        self.seconds = Counter()
        self.calls = Counter()
        self.told = []
        self.refusal = None
        self.replacement = None
        self.authorized = []
        self.asked = []
        self.ended = []

    def report(self, inspect=False):
        return []

    def watch(self, listener):
        self.listener = listener

    async def authorize(self, request):
        self.authorized.append(request)
        return self.refusal

    async def request_received(self, request):
        return None if self.replacement is None else self.replacement(request)

    async def observe_async(self, hook_name, **arguments):
        self.told.append((hook_name, arguments))

    async def sampling_params(self, request, params, num_choices, num_prompts):
        self.asked.append((request, params, num_choices, num_prompts))
        return params

    async def request_ended(self, request, outcome):
        self.ended.append((request, outcome))


def says(tokenizer: Tokenizer, text: str, *, eos: int | None = 1) -> Script:
    """A script that answers text whatever the question."""
    tokens = tokenizer.encode(text, add_special_tokens=False).ids + ([] if eos is None else [eos])
    return lambda call: tokens


def served(
    engine: FakeEngine,
    tokenizer: Tokenizer,
    *,
    names=("fake/model",),
    aliases=("model",),
    defaults=None,
    tool_parser=None,
    reasoning_parser=None,
    special_tokens=(),
    reads_json=False,
    report=lambda plugin, hook, error: None,
):
    """A model whose text side is ready."""
    model = ServedModel(names, engine, aliases)

    def encode(text, *, add_special_tokens=True):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        return [0, *ids] if add_special_tokens else ids

    grammars = GrammarCompiler(tokenizer.to_str())
    parsers = AnswerParsers(tool_parser, reasoning_parser, "tools", "thoughts", special_tokens, reads_json, report)
    model.text = TextSide(encode, Vocabulary(tokenizer), FakeTemplate(), defaults or {}, grammars, parsers)
    return model
