"""Logprobs of tokens under the model's raw distribution, in numpy. Torch-free."""

from __future__ import annotations

import numpy as np

from plugserve.core.contracts.forward_pass import Floats
from plugserve.core.contracts.sampling import TokenLogprobs


def describe(logits: Floats, token: int, num_top: int) -> TokenLogprobs:
    """Of a token under logits [V], with the num_top most likely ones, equal ones by id."""
    values = logits.astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    rank = int((values > values[token]).sum()) + 1
    num_top = min(num_top, len(values))
    if not num_top:
        return TokenLogprobs(token, float(values[token]), rank, [], [])
    least = np.partition(values, len(values) - num_top)[len(values) - num_top]
    ids = np.flatnonzero(values >= least)
    ids = ids[np.argsort(-values[ids], kind="stable")][:num_top]
    return TokenLogprobs(token, float(values[token]), rank, ids.tolist(), values[ids].tolist())
