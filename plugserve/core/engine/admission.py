"""Admits requests: refuses them, or makes sequences that wait for their grammar and adapter."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterable
from concurrent.futures import Future

import numpy as np

from plugserve.core.contracts.sampling import POOLINGS, SamplingParams
from plugserve.core.engine.adapter_pool import Adapter
from plugserve.core.engine.engine_state import EngineState
from plugserve.core.engine.kv.kv_manager import SequencePrefix
from plugserve.core.engine.live_sequences import LiveSequences
from plugserve.core.engine.sequence import RequestKey, Sequence
from plugserve.core.engine.speculation import Speculation
from plugserve.core.engine.structured_output import Constraint, ConstraintCompiler
from plugserve.core.engine.switched_off import NoSpeculation
from plugserve.core.errors import GrammarError, RequestFailedError
from plugserve.core.wire.messages import (
    FINISH_ABORT,
    FINISH_BAD_GRAMMAR,
    FINISH_ERROR,
    FINISH_NO_ADAPTER,
    FINISH_REFUSED,
)
from plugserve.core.wire.request_origin import NO_ORIGIN, RequestOrigin

log = logging.getLogger(__name__)


class Admission:
    """Makes sequences and hands them to live. eos_ids end a sequence unless its request ignores them. compiling are the
    requests whose grammars are being compiled."""

    def __init__(
        self,
        state: EngineState,
        live: LiveSequences,
        speculation: Speculation | NoSpeculation,
        compiler: ConstraintCompiler | None,
        eos_ids: Iterable[int],
    ) -> None:
        self.compiling: dict[RequestKey, tuple[Sequence, Future[Constraint]]] = {}
        self.has_left_behind = False  # after the last plan some sequence still waited
        self._live = live
        self._speculation = speculation
        self._compiler = compiler
        self._info = state.info
        self._eos_ids = self._known(eos_ids)
        self._kv = state.kv
        self._rows = state.rows
        self._adapters = state.adapters
        self._delivery = state.delivery
        self._stats = state.stats
        self._clock = state.clock
        self._flight = state.flight
        self._max_num_waiting = state.limits.max_num_waiting
        self._next_id = 0

    @property
    def num_waiting(self) -> int:
        """Requests that are not running: in the scheduler's queue, for a grammar or for an adapter's slot."""
        return self._live.num_waiting + len(self.compiling) + len(self._adapters.waiting)

    def admit(
        self,
        key: RequestKey,
        prompt: array[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        user: str = "",
        cache_salt: str = "",
        block_hashes: bytes = b"",
        adapter_id: int = 0,
        origin: RequestOrigin = NO_ORIGIN,
    ) -> None:
        """Take a request in. One that can't be served gets an error; other requests are not affected.

        block_hashes are those of the prompt's full blocks under block_hash.salt_of, where the server has made them.
        adapter_id is that of a loaded LoRA adapter, 0 for none. origin is for the flight recorder alone."""
        refusal = self._refusal(key, prompt, params, adapter_id)
        adapter = self._adapters.find(adapter_id) if adapter_id else None
        arrival_s = self._clock()
        flight = self._flight.arrived(
            key,
            prompt,
            params,
            arrival_s,
            origin=origin,
            priority=priority,
            adapter=adapter.name if adapter is not None else "",
            block_hashes=block_hashes,
        )
        if refusal is not None:
            self._delivery.add_error(key, *refusal)
            self._flight.ended(flight, refusal[1])
            return
        prefix = self._kv.prefix(
            prompt, params, block_hashes=block_hashes, adapter_id=adapter_id, cache_salt=cache_salt
        )
        sequence = self._sequence(key, prompt, params, prefix, adapter)
        sequence.arrival_s, sequence.priority, sequence.user, sequence.flight = arrival_s, priority, user, flight
        self._compile_or_enter(sequence)

    def _sequence(
        self,
        key: RequestKey,
        prompt: array[int],
        params: SamplingParams,
        prefix: SequencePrefix,
        adapter: Adapter | None,
    ) -> Sequence:
        """The sequence of an admitted request, without what it arrived with."""
        stop_ids = self._known(params.stop_token_ids)
        self._next_id += 1
        self._stats.num_prompt_tokens += len(prompt)
        return Sequence(
            id=self._next_id - 1,
            key=key,
            params=params,
            tokens=prompt,
            num_prompt_tokens=len(prompt),
            arrival_s=0.0,
            stop_ids=stop_ids if params.ignore_eos else stop_ids | self._eos_ids,
            kv=self._kv,
            block_size=self._info.block_size,
            prefix=prefix,
            adapter=adapter,
            length_rule=self._info.length_rule,
            acceptance=self._speculation.acceptance(params),
        )

    def _refusal(
        self, key: RequestKey, prompt: array[int], params: SamplingParams, adapter_id: int
    ) -> tuple[str, int] | None:
        """The reason why a request is refused, and the FINISH_ code; None for an admitted one."""
        fault = self._fault(key, prompt, params)
        if fault is not None:
            return fault, FINISH_ERROR
        if adapter_id and self._adapters.find(adapter_id) is None:
            return "The LoRA adapter has just been unloaded.", FINISH_NO_ADAPTER
        if self._is_full():
            message = f"The server is busy: {self._max_num_waiting} requests wait already; try again in a moment."
            return message, FINISH_REFUSED
        return None

    def _fault(self, key: RequestKey, prompt: array[int], params: SamplingParams) -> str | None:
        """The fault of a request, independently of the engine's load; None for a valid one."""
        total = len(prompt) + params.max_tokens
        if key in self._live.by_key or key in self.compiling or key in self._adapters.waiting:
            return f"request id {key[1]} is in use"
        if params.pooling and (params.pooling not in POOLINGS or params.max_tokens or params.grammar):
            return f"pooling is one of {', '.join(POOLINGS)}, with max_tokens 0 and no grammar"
        if not prompt or (params.max_tokens < 1 and not params.pooling):
            return "a request needs at least one prompt token and max_tokens of at least 1"
        if total > self._info.max_model_len:
            limit = self._info.max_model_len
            return f"prompt ({len(prompt)}) + max_tokens ({params.max_tokens}) is over {limit} tokens"
        # One pass without a Python object a token. As unsigned numbers, negative ids are above any vocabulary.
        if np.frombuffer(prompt, dtype=np.uint32).max() >= self._info.vocab_size:
            return f"the prompt holds a token id outside the vocabulary of {self._info.vocab_size}"
        if params.grammar and self._compiler is None:
            return "this engine has no grammar compiler"
        return self._stray_parameter(params)

    def _known(self, token_ids: Iterable[int]) -> frozenset[int]:
        """The token_ids that the model has logits for; other ids are never sampled and can't be stored on a
        device."""
        return frozenset(token_id for token_id in token_ids if 0 <= token_id < self._info.vocab_size)

    def _stray_parameter(self, params: SamplingParams) -> str | None:
        """The fault of params' token ids, which a plugin may have changed after the server's checks."""
        given: dict[str, Iterable[int]] = {
            "logit_bias": params.logit_bias or (),
            "allowed_token_ids": params.allowed_token_ids,
            "bad_words": (token_id for word in params.bad_words for token_id in word),
        }
        for name, token_ids in given.items():
            for token_id in token_ids:
                if not 0 <= token_id < self._info.vocab_size:
                    return f"{name} holds token id {token_id}, outside the vocabulary of {self._info.vocab_size}"
        return None

    def _is_full(self) -> bool:
        """True if the queue is full. Those that free rows will take in the next step don't count as waiting, unless
        the last plan left some behind."""
        if self._max_num_waiting is None:
            return False
        is_behind = self.has_left_behind and self.num_waiting > 0
        room = 0 if is_behind else self._rows.num_free
        return self.num_waiting - room >= self._max_num_waiting

    def _compile_or_enter(self, sequence: Sequence) -> None:
        params = sequence.params
        if not params.grammar or self._compiler is None:
            self._enter(sequence)
            return
        is_narrowed = params.allowed_token_ids or params.bad_words  # they may prevent the answer's end
        compiled = self._compiler.submit(params.grammar, 0 if is_narrowed else params.max_tokens)
        self.compiling[sequence.key] = (sequence, compiled)

    def _enter(self, sequence: Sequence) -> None:
        """The scheduler may run it, once its adapter has a slot."""
        if sequence.adapter is None or self._adapters.enter(sequence):
            self._live.add(sequence)

    def admit_compiled(self) -> None:
        """Let in the requests whose grammars are ready; answer those whose grammars are not usable."""
        for key, (sequence, compiled) in list(self.compiling.items()):
            if not compiled.done():
                continue
            del self.compiling[key]
            try:
                sequence.constraint = compiled.result()
            except Exception as error:
                if not isinstance(error, RequestFailedError):
                    log.exception("grammar compiler failed")
                finish = FINISH_BAD_GRAMMAR if isinstance(error, GrammarError) else FINISH_ERROR
                self._delivery.add_error(key, str(error) or type(error).__name__, finish)
                self._flight.ended(sequence.flight, finish)
                continue
            self._flight.ready(sequence.flight)
            self._enter(sequence)

    def admit_with_adapters(self) -> None:
        """Let in the requests whose adapters have got a slot."""
        for sequence in self._adapters.admissible():
            self._live.add(sequence)

    def refuse_adapter(self, adapter_id: int, reason: str) -> None:
        """Answer the requests that wait for an adapter that can't be read."""
        for sequence in self._adapters.give_up(adapter_id):
            self._delivery.add_error(sequence.key, reason, FINISH_NO_ADAPTER)
            self._flight.ended(sequence.flight, FINISH_NO_ADAPTER)

    def abort(self, key: RequestKey) -> None:
        """Abort a request; its blocks are freed when the step in flight is collected. Unknown keys are ignored."""
        sequence = self._live.by_key.get(key)
        if sequence is not None:
            self._live.finish(sequence)
        elif key in self.compiling:
            waiting, compiled = self.compiling.pop(key)
            compiled.cancel()
            self._flight.ended(waiting.flight, FINISH_ABORT)
        elif key in self._adapters.waiting:
            self._flight.ended(self._adapters.waiting[key].flight, FINISH_ABORT)
            self._adapters.abandon(key)

    def abort_worker(self, identity: bytes) -> int:
        """Forget every request of one server worker; returns how many."""
        keys = [*self._live.by_key, *self.compiling, *self._adapters.waiting]
        gone = [key for key in keys if key[0] == identity]
        for key in gone:
            self.abort(key)
        return len(gone)
