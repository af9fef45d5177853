"""Why a request was slow, in a sentence: the one place where the live feed's and the replay's "why" is decided.

A request's time has parts, one after the other: in the server, waiting for the model, for its grammar, for its adapter,
in the queue, computing the prompt, generating, and being read by its client. The longest part that is no work asked
for explains it, if it is long enough to matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_LEAST_S: Final = 0.2
_LEAST_SHARE: Final = 0.2
_SLOW_TOKEN_S: Final = 0.1
_LONG_ANSWER_S: Final = 5.0
_LONG_PROMPT: Final = 512  # tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTimes:
    """A request's parts in seconds, and what it met. A part that has not ended counts up to now; server_s is the time
    before the engine without load_wait_s, unread_s what its client left the answer waiting for, token_s the mean time
    between two tokens."""

    load_wait_s: float = 0.0
    server_s: float = 0.0
    grammar_s: float = 0.0
    adapter_s: float = 0.0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    unread_s: float = 0.0
    token_s: float = 0.0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    num_preemptions: int = 0
    num_ahead: int = 0
    num_beside: int = 0
    num_no_blocks: int = 0
    num_no_rows: int = 0
    adapter: str = ""

    @property
    def total_s(self) -> float:
        parts = (self.load_wait_s, self.server_s, self.grammar_s, self.adapter_s, self.queue_s, self.prefill_s)
        return sum(parts) + self.decode_s + self.unread_s


def why_slow(times: RequestTimes) -> str | None:
    """One sentence, or None for a request that nothing held up."""
    reasons = [
        (times.load_wait_s, f"It waited {_s(times.load_wait_s)} for its model to be loaded."),
        (times.grammar_s, f"It waited {_s(times.grammar_s)} for its grammar to be compiled."),
        (times.adapter_s, f"It waited {_s(times.adapter_s)} for a slot of its LoRA adapter {times.adapter}."),
        (times.queue_s, _why_queued(times)),
        (times.server_s, f"The server took {_s(times.server_s)} for its text before the engine got it."),
        (times.prefill_s, _why_prefill(times)),
        (times.decode_s if times.num_preemptions else 0.0, _why_preempted(times)),
        (_held_up_s(times), _why_slow_tokens(times)),
        (times.unread_s, f"Its client read slowly: {_s(times.unread_s)} of it the answer waited to be read."),
    ]
    part_s, reason = max(reasons, key=lambda one: one[0])
    if part_s >= max(_LEAST_S, _LEAST_SHARE * times.total_s):
        return reason
    if times.decode_s >= _LONG_ANSWER_S and times.num_output_tokens:
        return f"Nothing held it up: it generated {_tokens(times.num_output_tokens)}, {_token_ms(times):.0f} ms each."
    return None


def _why_queued(times: RequestTimes) -> str:
    waited = f"It waited {_s(times.queue_s)}"
    if times.num_no_blocks > times.num_no_rows:
        return f"{waited} for KV blocks, which {_others(times.num_beside)} held."
    if times.num_no_rows:
        others = _others(times.num_beside + 1)  # one had just ended when they were counted
        return f"{waited} for one of {others} to end: no more run at a time (--max-num-seqs)."
    if times.num_ahead:
        return f"{waited} behind {_others(times.num_ahead)} that had arrived before."
    return f"{waited} for steps whose tokens went to {_others(times.num_beside)}."


def _why_prefill(times: RequestTimes) -> str:
    num_computed = times.num_prompt_tokens - times.num_cached_tokens
    cached = f", {times.num_cached_tokens} more were cached" if times.num_cached_tokens else ""
    if num_computed >= _LONG_PROMPT:
        return f"Its prompt is long: computing {_tokens(num_computed)} took {_s(times.prefill_s)}{cached}."
    shared = f", in steps shared with {_others(times.num_beside)}" if times.num_beside else ""
    return f"Computing its prompt of {_tokens(times.num_prompt_tokens)} took {_s(times.prefill_s)}{shared}."


def _why_preempted(times: RequestTimes) -> str:
    often = "once" if times.num_preemptions == 1 else f"{times.num_preemptions} times"
    return f"It was preempted {often} because KV blocks ran short, and had to continue later."


def _held_up_s(times: RequestTimes) -> float:
    """The decoding time of tokens that took long each."""
    is_slow = times.num_output_tokens > 1 and _token_ms(times) >= 1e3 * _SLOW_TOKEN_S
    return times.decode_s if is_slow else 0.0


def _why_slow_tokens(times: RequestTimes) -> str:
    each = f"Each of its {_tokens(times.num_output_tokens)} took {_token_ms(times):.0f} ms"
    return f"{each}, in steps shared with {_others(times.num_beside)}." if times.num_beside else f"{each}."


def _token_ms(times: RequestTimes) -> float:
    return 1e3 * times.token_s


def _s(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1e3 * seconds:.0f} ms"


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count} tokens"


def _others(count: int) -> str:
    return "1 request" if count == 1 else f"{count} requests"
