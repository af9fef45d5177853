"""Grammars in the step: what comes out matches, whatever else runs; a bad one hurts nobody else."""

from __future__ import annotations

import json
import time
from array import array

import pytest
from llguidance import LLMatcher
from tokenizers import Tokenizer, decoders, models

from plugserve.core.engine.acceptance import DraftPolicy
from plugserve.core.engine.engine import Engine
from plugserve.core.engine.engine_state import EngineLimits
from plugserve.core.engine.structured_output import ConstraintCompiler
from plugserve.core.wire.messages import FINISH_BAD_GRAMMAR, FINISH_COMPLETE, FINISH_LENGTH, FINISH_STOP
from plugserve.plugins.schedulers.fcfs import FcfsScheduler
from plugserve.testing.fake_runner import FakeRunner, expected_tokens
from tests.core.engine.test_engine import Client

EOS = 256
VOCAB = 320  # bytes, EOS, and ids that the tokenizer doesn't know


def byte_tokenizer():
    """Token b is the byte b (byte-level alphabet)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    letters = [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(letters)}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>"])
    return tokenizer.to_str()


def make_engine(**options):
    fake = FakeRunner(
        vocab_size=VOCAB, num_blocks=options.pop("num_blocks", 200), num_stages=options.pop("num_stages", 1)
    )
    engine = Engine(
        runner=fake,
        info=fake.load(),
        scheduler=FcfsScheduler(),
        scheduler_name="test",
        limits=EngineLimits(max_num_batched_tokens=64, max_num_seqs=8),
        eos_ids=[EOS],
        compiler=ConstraintCompiler(byte_tokenizer, VOCAB, [EOS]),
        **options,
    )
    return engine, Client(engine)


def wait_for_grammars(engine):
    deadline = time.monotonic() + 30
    while engine.is_compiling and time.monotonic() < deadline:
        engine.admit_compiled()
        time.sleep(0.001)
    assert not engine.is_compiling


def text(tokens):
    return bytes(token for token in tokens if token != EOS).decode()


SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["ab", "cd"]}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["kind", "n"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("policy", "num_stages"),
    [(None, 1), (DraftPolicy(4, is_adaptive=False), 1), (None, 2), (None, 3)],
    ids=["plain", "others speculate", "2 stages", "3 stages"],
)
def test_answers_match_their_grammars_beside_free_ones(policy, num_stages):
    engine, client = make_engine(draft_policy=policy, num_stages=num_stages)
    schema = LLMatcher.grammar_from_json_schema(json.dumps(SCHEMA), overrides={"whitespace_flexible": False})
    regex = LLMatcher.grammar_from_regex("[a-f]{3}-[0-9]{2}")
    client.send(0, [1, 2], 200, grammar=schema)
    client.send(1, [3] * 90, 200, grammar=regex)
    client.send(2, [4, 5], 40, ignore_eos=True)
    client.send(3, [6], 200, grammar=schema, temperature=0.5)
    wait_for_grammars(engine)
    client.run()
    for id in (0, 3):
        answer = json.loads(text(client.tokens[id]))
        assert answer["kind"] in ("ab", "cd")
        assert 0 <= answer["n"] <= 99
        assert client.finish[id] == FINISH_COMPLETE
    left, right = text(client.tokens[1]).split("-")
    assert len(left) == 3
    assert right.isdigit()
    assert client.tokens[2] == expected_tokens([4, 5], 40, VOCAB)
    assert engine.kv.num_free == 200


@pytest.mark.parametrize("num_stages", [1, 2])
def test_preemption_keeps_a_sequences_place_in_its_grammar(num_stages):
    engine, client = make_engine(num_blocks=20, num_stages=num_stages)
    regex = LLMatcher.grammar_from_regex("(abc){30}")
    for id in range(6):
        client.send(id, [id] * 40, 120, grammar=regex)
    wait_for_grammars(engine)
    client.run()
    assert engine.stats.num_preemptions > 0
    assert [text(client.tokens[id]) for id in range(6)] == ["abc" * 30] * 6


def test_bad_grammar_fails_its_request_alone():
    engine, client = make_engine()
    client.send(0, [1], 9, grammar=LLMatcher.grammar_from_regex("[.*"))
    client.send(1, [1], 9, grammar="no grammar at all")
    client.send(2, [7, 8], 9, ignore_eos=True)
    wait_for_grammars(engine)
    client.run()
    assert client.finish[0] == client.finish[1] == FINISH_BAD_GRAMMAR
    assert "grammar" in client.errors[0]
    assert "\n" not in client.errors[0]
    assert client.tokens[2] == expected_tokens([7, 8], 9, VOCAB)


def test_length_limit_cuts_a_constrained_answer():
    engine, client = make_engine()
    client.send(0, [1], 5, grammar=LLMatcher.grammar_from_regex("[ab]*"))
    wait_for_grammars(engine)
    client.run()
    assert client.finish[0] in (FINISH_LENGTH, FINISH_STOP)
    assert set(text(client.tokens[0])) <= {"a", "b"}


@pytest.mark.parametrize("when", ["compiling", "running"])
def test_abort_leaves_nothing_behind(when):
    engine, client = make_engine()
    client.send(0, [1] * 50, 400, grammar=LLMatcher.grammar_from_regex("(ab)*c"))
    if when == "running":
        wait_for_grammars(engine)
        for _ in range(4):
            engine.step()
    engine.abort((b"worker:0", 0))
    client.run()
    assert not engine.is_compiling
    assert engine.kv.num_free == 200


def test_others_run_while_a_grammar_is_compiled():
    """A grammar is compiled while other requests run: nothing waits for it."""
    engine, client = make_engine()
    client.send(0, [1, 2, 3], 30, ignore_eos=True)
    engine.admit((b"worker:0", 1), array("i", [4]), params_with_grammar())
    while 0 not in client.finish:
        engine.step()
        client.receive()
    assert client.tokens[0] == expected_tokens([1, 2, 3], 30, VOCAB)
    wait_for_grammars(engine)
    client.run()
    assert text(client.tokens[1]) == "xyz"


def params_with_grammar():
    from plugserve.core.contracts.sampling import SamplingParams

    return SamplingParams(max_tokens=20, seed=0, grammar=LLMatcher.grammar_from_regex("xyz"))
