"""Records the arrival, size and user of requests in a file, for `plugserve simulate` (--record-trace).

It holds sizes, times and users; of prompts only keyed hashes of their blocks (core/wire/trace_file.py).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from hashlib import blake2b

from plugserve.core.wire.trace_file import TraceRequest, TraceWriter, hash_ids
from plugserve.server.operations.observers import RecordedSequence

logger = logging.getLogger(__name__)


class FileTraceRecorder:
    """Appends to path; all workers of a server write to the same file. key is random for each start of the server, so
    that hashes of equal prompts are equal within one run only."""

    def __init__(self, path: str, key: bytes) -> None:
        self._writer = TraceWriter(path)
        self._key = key
        self._epoch_s = time.time() - time.perf_counter()
        self._has_failed = False

    def note(self, sequences: Sequence[RecordedSequence]) -> None:
        try:
            self._writer.write([self._line(sequence) for sequence in sequences])
        except OSError as error:
            if not self._has_failed:
                self._has_failed = True
                logger.error("the trace can't be written, requests are missing in it from now on: %s", error)

    def _line(self, sequence: RecordedSequence) -> TraceRequest:
        first_token_s = sequence.first_token_s
        return TraceRequest(
            arrival_s=round(self._epoch_s + sequence.sent_s, 4),
            prompt_tokens=len(sequence.prompt),
            output_tokens=sequence.num_tokens,
            max_tokens=max(sequence.max_tokens, sequence.num_tokens),
            priority=sequence.priority,
            user=self._pseudonym(sequence.user),
            model=sequence.model,
            hash_ids=hash_ids(sequence.prompt, self._key),
            ttft_s=None if first_token_s is None else round(first_token_s - sequence.sent_s, 4),
            total_s=round(sequence.end_s - sequence.sent_s, 4),
            finish=sequence.finish,
        )

    def _pseudonym(self, user: str) -> str:
        """The key's name as it is; the user field, which may be a name or an address, as a hash that stays the same
        while the server runs."""
        key, slash, rest = user.rpartition("/") if user.startswith("key-") else ("", "", user)
        if user.startswith("key-") and not slash:
            return user
        name = "user-" + blake2b(rest.encode(), digest_size=4, key=self._key).hexdigest() if rest else ""
        return f"{key}{slash}{name}"
