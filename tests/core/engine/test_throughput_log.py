"""The engine's line about its throughput."""

import logging

from plugserve.core.contracts.engine_facts import EngineStats
from plugserve.core.engine.throughput_log import PERIOD_S, NoThroughputLog, ThroughputLog


def test_rates_are_those_since_the_last_line_and_an_idle_engine_logs_none(caplog):
    stats = EngineStats(num_blocks=10, num_free_blocks=10, num_prompt_tokens=7)
    line = ThroughputLog("m", lambda: stats, 100.0)
    assert line.due_s == 100.0 + PERIOD_S
    with caplog.at_level(logging.INFO, "plugserve"):
        line.write(110.0)
        stats = EngineStats(
            num_blocks=10,
            num_free_blocks=4,
            num_prompt_tokens=107,
            num_generated_tokens=50,
            num_requests_running=2,
            num_requests_waiting=1,
            num_prefix_queried_tokens=80,
            num_prefix_hit_tokens=20,
            num_preemptions=3,
        )
        line.write(130.0)
        stats = EngineStats(num_blocks=10, num_free_blocks=10, num_prompt_tokens=107, num_generated_tokens=50)
        line.write(140.0)
    assert [record.getMessage() for record in caplog.records] == [
        "throughput model=m prompt_tokens_per_s=0.7 generation_tokens_per_s=0.0 running=0 waiting=0 "
        "kv_cache_usage_percent=0.0 prefix_cache_hit_percent=0.0 preemptions=0",
        "throughput model=m prompt_tokens_per_s=5.0 generation_tokens_per_s=2.5 running=2 waiting=1 "
        "kv_cache_usage_percent=60.0 prefix_cache_hit_percent=25.0 preemptions=3",
    ]
    assert line.due_s == 150.0
    assert NoThroughputLog().due_s == float("inf")
