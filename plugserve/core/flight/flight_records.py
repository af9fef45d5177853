"""The layout of a flight recorder's file: records of fixed size, as one process packs them and others read them.

A record begins and ends with the same serial number. A reader that finds two different ones, or another one in a second
look, has met a record that is being written, or that its writer never finished, and leaves it out.

Times are seconds on the engine's clock (time.monotonic, which all processes of a host share); 0 for what has not
happened. The facts of the file have the offset to seconds since 1970.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any, Final

import numpy as np

MAGIC: Final = b"PSFLIGHT"
VERSION: Final = 1

# ---- states of a request

ALIVE: Final = 1
ENDED: Final = 2

# ---- what a request uses (bits of flags)

HAS_GRAMMAR: Final = 1
HAS_ADAPTER: Final = 2
IS_POOLED: Final = 4
IGNORES_EOS: Final = 8
HAS_PREFIX: Final = 16

PREFIX_BLOCKS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
"""The lengths, in blocks, of the beginnings of a prompt whose names a record holds."""

Field = tuple[str, str]
"""A field's name and struct code; "40s" is text of 40 bytes, "22I" 22 numbers."""


class Layout:
    """Consecutive fields without padding: a struct to write them, a dtype to read them."""

    def __init__(self, fields: Iterable[Field]) -> None:
        self.fields = tuple(fields)
        self.struct = struct.Struct("<" + "".join(code for _, code in self.fields))
        self.dtype = np.dtype([(name, *_numpy_type(code)) for name, code in self.fields])
        self.size = self.struct.size
        self.names = tuple(name for name, _ in self.fields)
        assert self.size == self.dtype.itemsize

    def offset(self, name: str) -> int:
        """Where a field begins."""
        fields: Any = self.dtype.fields
        return int(fields[name][1])


_NUMPY: Final = {"I": "<u4", "i": "<i4", "Q": "<u8", "q": "<i8", "d": "<f8", "f": "<f4", "H": "<u2", "h": "<i2"}


def _numpy_type(code: str) -> tuple[Any, ...]:
    count, letter = code[:-1], code[-1]
    if letter == "s":
        return (f"S{count}",)
    return (_NUMPY[letter], int(count)) if count else (_NUMPY[letter],)


_ARRIVAL: Final[tuple[Field, ...]] = (
    ("ordinal", "Q"),  # of this request, counted from 1
    ("worker_id", "q"),  # the worker's own id of it
    ("worker", "24s"),
    ("id", "48s"),
    ("route", "24s"),
    ("adapter", "40s"),
    ("arrival_s", "d"),  # in the engine
    ("before_s", "f"),  # spent in the server before that
    ("load_wait_s", "f"),  # of that, waiting for the model to be loaded
    ("num_ahead", "I"),  # requests that waited when it arrived
    ("num_prompt_tokens", "I"),
    ("max_tokens", "I"),
    ("priority", "i"),
    ("flags", "I"),
    ("seed", "Q"),
    ("temperature", "f"),
    ("top_p", "f"),
    ("min_p", "f"),
    ("presence_penalty", "f"),
    ("frequency_penalty", "f"),
    ("repetition_penalty", "f"),
    ("top_k", "i"),
    ("min_tokens", "I"),
    ("num_logprobs", "i"),  # -1 for none
    ("prompt_at", "q"),  # where its token ids are, in tokens since the start; -1 where they are not kept
    ("prefix", f"{len(PREFIX_BLOCKS)}I"),  # names of its beginnings, 0 for none
)
_PROGRESS: Final[tuple[Field, ...]] = (
    ("state", "I"),
    ("finish", "I"),  # a FINISH_ code
    ("ready_s", "d"),  # its grammar is compiled
    ("entered_s", "d"),  # the scheduler may run it
    ("scheduled_s", "d"),
    ("first_token_s", "d"),
    ("end_s", "d"),
    ("first_step", "Q"),
    ("last_step", "Q"),
    ("num_cached_tokens", "I"),
    ("num_output_tokens", "I"),
    ("num_preemptions", "I"),
    ("num_beside", "I"),  # requests that ran when it was first in a step, or when it arrived
    ("num_no_blocks", "I"),  # steps that left some request waiting, while it waited, for lack of blocks
    ("num_no_rows", "I"),  # likewise, for lack of a row
)

REQUEST: Final = Layout([("serial", "Q"), *_ARRIVAL, *_PROGRESS, ("serial_end", "Q")])
ARRIVAL: Final = Layout(_ARRIVAL)
PROGRESS: Final = Layout(_PROGRESS)

STEP: Final = Layout(
    [
        ("serial", "Q"),
        ("step_id", "Q"),
        ("end_s", "d"),
        ("duration_s", "f"),  # of the runner
        ("interval_s", "f"),  # since the step before ended, or the duration where nothing ran before
        ("num_rows", "I"),
        ("num_tokens", "I"),  # computed, drafts included
        ("num_prompt_tokens", "I"),
        ("num_decoding", "I"),
        ("num_pairs", "Q"),  # the sum over the tokens of how many tokens each attends to
        ("num_draft_tokens", "I"),
        ("num_generated_tokens", "I"),
        ("num_preempted", "I"),
        ("num_running", "I"),
        ("num_waiting", "I"),
        ("num_free_blocks", "I"),
        ("longest_chunk", "I"),  # the most prompt tokens of one request
        ("longest_chunk_of", "Q"),  # that request's ordinal
        ("serial_end", "Q"),
    ]
)

GAUGES: Final = Layout(
    [
        ("serial", "Q"),
        ("updated_s", "d"),
        ("epoch_offset_s", "d"),  # to be added to the clock for seconds since 1970
        ("num_running", "I"),
        ("num_waiting", "I"),
        ("num_blocks", "Q"),
        ("num_used_blocks", "Q"),
        ("num_cached_blocks", "Q"),
        ("num_steps", "Q"),
        ("num_prompt_tokens", "Q"),
        ("num_generated_tokens", "Q"),
        ("num_preemptions", "Q"),
        ("num_prefix_queried_tokens", "Q"),
        ("num_prefix_hit_tokens", "Q"),
        ("num_draft_tokens", "Q"),
        ("num_accepted_draft_tokens", "Q"),
        ("num_requests", "Q"),  # so far; those that found no slot are among them
        ("num_without_slot", "Q"),
        ("tokens_end", "q"),  # of prompts kept, since the start
        ("has_left", "Q"),  # 1: the engine was stopped in order
        ("serial_end", "Q"),
    ]
)
