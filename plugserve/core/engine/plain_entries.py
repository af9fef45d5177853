"""The usual entry of a collected step, made short: a decoding sequence that gets one token and goes on.

Every such row pays for this once a step, so it takes no call for what its request doesn't use.
"""

from __future__ import annotations

from collections.abc import Sequence as Entries

from plugserve.core.contracts.runner import StepResult
from plugserve.core.engine.batch import Batch
from plugserve.core.engine.delivery import Delivery


def advance_plain(batch: Batch, result: StepResult, delivery: Delivery) -> Entries[int]:
    """Confirm and deliver the tokens of batch's plain entries, and return the entries left to do: those that start or
    end, failed, or use drafts, logprobs, a constraint, pooling or a length rule."""
    if batch.num_drafts or result.failed or result.logprobs:
        return range(len(batch.sequences))
    rest: list[int] = []
    entries = zip(batch.sequences, batch.num_tokens, batch.samples, result.tokens, strict=True)
    for b, (sequence, count, samples, new_tokens) in enumerate(entries):
        tokens = sequence.tokens
        if (
            count == 1
            and samples
            and len(new_tokens) == 1
            and sequence.num_delivered
            and sequence.has_plain_steps
            and sequence.constraint is None
            and new_tokens[0] not in sequence.stop_ids
            and len(tokens) + 1 < sequence.max_num_tokens
            and not sequence.is_finished
        ):
            tokens.append(new_tokens[0])
            sequence.num_computed += 1
            sequence.num_in_flight -= 1
            sequence.num_sampling -= 1
            sequence.num_delivered += 1
            delivery.add_token(sequence.key, new_tokens[0])
        else:
            rest.append(b)
    return rest
