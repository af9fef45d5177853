"""The sentence that says why a request was slow, cause by cause."""

import pytest

from plugserve.core.flight.slowness import RequestTimes, why_slow

FAST = {"queue_s": 0.01, "prefill_s": 0.1, "decode_s": 0.8, "num_prompt_tokens": 100, "num_output_tokens": 40}


@pytest.mark.parametrize(
    ("times", "sentence"),
    [
        ({"load_wait_s": 8.04}, "It waited 8.0 s for its model to be loaded."),
        ({"grammar_s": 0.75}, "It waited 750 ms for its grammar to be compiled."),
        ({"adapter_s": 2.0, "adapter": "law"}, "It waited 2.0 s for a slot of its LoRA adapter law."),
        ({"server_s": 3.0}, "The server took 3.0 s for its text before the engine got it."),
        (
            {"queue_s": 2.3, "num_no_blocks": 9, "num_no_rows": 1, "num_beside": 12},
            "It waited 2.3 s for KV blocks, which 12 requests held.",
        ),
        (
            {"queue_s": 2.3, "num_no_rows": 9, "num_beside": 1},
            "It waited 2.3 s for one of 2 requests to end: no more run at a time (--max-num-seqs).",
        ),
        ({"queue_s": 2.3, "num_ahead": 7}, "It waited 2.3 s behind 7 requests that had arrived before."),
        ({"queue_s": 2.3, "num_beside": 3}, "It waited 2.3 s for steps whose tokens went to 3 requests."),
        (
            {"prefill_s": 3.1, "num_prompt_tokens": 8192, "num_cached_tokens": 192},
            "Its prompt is long: computing 8000 tokens took 3.1 s, 192 more were cached.",
        ),
        (
            {"prefill_s": 3.1, "num_beside": 40},
            "Computing its prompt of 100 tokens took 3.1 s, in steps shared with 40 requests.",
        ),
        ({"prefill_s": 3.1}, "Computing its prompt of 100 tokens took 3.1 s."),
        (
            {"decode_s": 4.0, "num_preemptions": 2, "num_output_tokens": 400},
            "It was preempted 2 times because KV blocks ran short, and had to continue later.",
        ),
        (
            {"decode_s": 8.0, "token_s": 0.2, "num_output_tokens": 41, "num_beside": 63},
            "Each of its 41 tokens took 200 ms, in steps shared with 63 requests.",
        ),
        ({"unread_s": 5.0}, "Its client read slowly: 5.0 s of it the answer waited to be read."),
        (
            {"decode_s": 20.0, "token_s": 0.02, "num_output_tokens": 1001},
            "Nothing held it up: it generated 1001 tokens, 20 ms each.",
        ),
    ],
)
def test_cause_is_named(times, sentence):
    assert why_slow(RequestTimes(**FAST | times)) == sentence


@pytest.mark.parametrize("times", [{}, {"queue_s": 0.19}, {"grammar_s": 0.1}, {"decode_s": 4.0, "queue_s": 0.5,
                                   "num_output_tokens": 400}])  # fmt: skip
def test_request_that_nothing_held_up_has_no_cause(times):
    assert why_slow(RequestTimes(**FAST | times)) is None
