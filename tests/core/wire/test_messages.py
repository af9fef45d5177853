"""Messages arrive as they were sent."""

from __future__ import annotations

from msgspec.structs import asdict

from plugserve.core.contracts.runner import LengthRule, RunnerInfo
from plugserve.core.engine.build import engine_info
from plugserve.core.wire.messages import EngineReady, decode_to_supervisor, encode


def test_other_processes_learn_all_that_the_runner_reports():
    reported = RunnerInfo(
        vocab_size=100,
        max_model_len=200,
        max_num_batched_tokens=64,
        num_blocks=10,
        block_size=16,
        kv_cache_bytes=1,
        weight_bytes=2,
        dtype="float32",
        device="cpu",
        length_rule=LengthRule(border=50, restarts=True),
        num_host_slots=3,
        max_num_drafts=4,
    )
    info = engine_info(reported, {"runner": "torch"}, 1.5, "salt")
    received = decode_to_supervisor(encode(EngineReady(info=info)))
    assert received == EngineReady(info=info)
    assert asdict(received.info).items() >= asdict(reported).items()
    assert (info.load_seconds, info.slots, info.prefix_salt) == (1.5, {"runner": "torch"}, "")
