"""Forecasts against what was measured (docs/performance.md, docs/parallel.md), and the rules of splits."""

from dataclasses import replace

import pytest

from plugserve.plan.forecast import Workload, choose, forecast, splits
from plugserve.plan.model_shape import ModelShape
from plugserve.plan.parts import MEASURED, LinkParts
from plugserve.plan.split import Cluster, Split, SplitCosts

QWEN_7B = ModelShape(
    num_layers=28, hidden_size=3584, intermediate_size=18944, num_heads=28, num_kv_heads=4, head_dim=128,
    layer_parameters=2 * 3584 * (3584 + 512) + 3 * 3584 * 18944, head_parameters=152064 * 3584, has_own_head=True,
    weight_size=2, kv_size=2,
)  # fmt: skip
QWEN_1B5 = ModelShape(
    num_layers=28, hidden_size=1536, intermediate_size=8960, num_heads=12, num_kv_heads=2, head_dim=128,
    layer_parameters=2 * 1536 * (1536 + 256) + 3 * 1536 * 8960, head_parameters=151936 * 1536, has_own_head=False,
    weight_size=2, kv_size=2,
)  # fmt: skip
NVLINK, ETHERNET = MEASURED.links["nvlink"], MEASURED.links["ethernet"]
NODE = Cluster(MEASURED.gpus["h100"], NVLINK, ETHERNET, gpus_per_node=8)


def costs(shape, split):
    return SplitCosts(shape, split, NODE)


@pytest.mark.parametrize(
    ("shape", "tp", "rows", "context", "measured_ms"),
    [
        (QWEN_7B, 1, 1, 256, 5.18), (QWEN_7B, 1, 8, 256, 5.88), (QWEN_7B, 1, 64, 256, 6.42),
        (QWEN_7B, 1, 64, 8192, 15.56), (QWEN_7B, 1, 64, 4096, 11.19),
        (QWEN_1B5, 1, 1, 256, 1.53), (QWEN_1B5, 1, 8, 256, 1.92), (QWEN_1B5, 1, 64, 256, 2.22),
        (QWEN_7B, 2, 1, 160, 3.49), (QWEN_7B, 2, 8, 160, 3.95), (QWEN_7B, 2, 64, 160, 4.44),
    ],
)  # fmt: skip
def test_decode_steps_are_within_a_tenth_of_what_was_measured(shape, tp, rows, context, measured_ms):
    assert 1e3 * costs(shape, Split(tp, 1, 1)).decode_s(rows, context) == pytest.approx(measured_ms, rel=0.1)


@pytest.mark.parametrize(
    ("tp", "work", "measured"),
    [
        (1, Workload(128, 2048, 16), 44_300),
        (1, Workload(512, 1024, 128), 41_300),
        (1, Workload(512, 512, 512), 2 * 16_750),
        (2, Workload(128, 2048, 16), 57_900),
    ],
)
def test_throughput_is_within_a_tenth_of_what_was_measured(tp, work, measured):
    assert forecast(QWEN_7B, Split(tp, 1, 1), NODE, work).total_rate == pytest.approx(measured, rel=0.1)


def test_every_split_of_a_number_of_gpus():
    assert {str(one) for one in splits(4)} == {
        "TP 1 x PP 1 x DP 4", "TP 1 x PP 2 x DP 2", "TP 1 x PP 4 x DP 1", "TP 2 x PP 1 x DP 2", "TP 2 x PP 2 x DP 1",
        "TP 4 x PP 1 x DP 1",
    }  # fmt: skip


def test_two_engines_give_twice_the_throughput_of_one_for_twice_the_requests():
    one = forecast(QWEN_7B, Split(1, 1, 1), NODE, Workload(64, 512, 128))
    two = forecast(QWEN_7B, Split(1, 1, 2), NODE, Workload(128, 512, 128))
    assert two.output_rate == pytest.approx(2 * one.output_rate)
    assert two.step_ms == one.step_ms


def test_stages_hold_their_layers_and_a_token_passes_all_of_them():
    whole, half = costs(QWEN_7B, Split(1, 1, 1)), costs(QWEN_7B, Split(1, 2, 1))
    assert half.kv_bytes_per_token == whole.kv_bytes_per_token / 2
    assert half.weight_bytes == pytest.approx(whole.weight_bytes / 2)
    assert half.decode_s(1, 256) > whole.decode_s(1, 256)
    assert half.num_kv_tokens(0.9) > 2 * whole.num_kv_tokens(0.9)


def test_a_split_that_cannot_be_used_says_why():
    work = Workload(1, 8000, 192)
    assert "TP 8 does not divide" in forecast(QWEN_7B, Split(8, 1, 1), NODE, work).problem
    assert "29 stages for 28 layers" in forecast(QWEN_7B, Split(1, 29, 1), NODE, work).problem
    large = replace(QWEN_7B, layer_parameters=10 * QWEN_7B.layer_parameters)
    assert "weights don't fit" in forecast(large, Split(1, 1, 1), NODE, work).problem
    assert "no room for one request" in forecast(QWEN_7B, Split(1, 1, 1), NODE, Workload(1, 2_000_000, 1)).problem


def test_key_heads_are_repeated_on_more_gpus_than_there_are():
    assert QWEN_7B.divides(4)
    assert not QWEN_7B.divides(8)
    shape = replace(QWEN_7B, num_heads=32)
    assert shape.divides(8)
    assert shape.kv_bytes(1, 8) == shape.kv_bytes(1, 4) == 2 * 128 * 2


def test_latency_and_throughput_choose_differently():
    work = Workload(64, 1024, 256)
    forecasts = [forecast(QWEN_7B, split, NODE, work) for split in splits(4)]
    assert choose(forecasts, wants_latency=True).split == Split(4, 1, 1)
    assert choose(forecasts, wants_latency=False).split.dp > 1
    assert choose([one for one in forecasts if one.problem], wants_latency=True) is None


def test_sums_across_nodes_take_the_slow_link():
    near = SplitCosts(QWEN_7B, Split(2, 1, 1), NODE)
    far = SplitCosts(QWEN_7B, Split(2, 1, 1), replace(NODE, gpus_per_node=1))
    assert far.decode_s(64, 256) > 1.5 * near.decode_s(64, 256)
    # stages cross nodes at less cost
    stages = SplitCosts(QWEN_7B, Split(1, 2, 1), replace(NODE, gpus_per_node=1))
    assert stages.decode_s(64, 256) < far.decode_s(64, 256) * 1.5


def test_the_sum_of_more_gpus_takes_longer():
    link = LinkParts(all_reduce_us=((0, 10.0), (1e6, 20.0)), send_us=5, send_gb_s=50)
    assert link.all_reduce_s(1e6, 1) == 0
    assert link.all_reduce_s(1e6, 2) == pytest.approx(20e-6)
    assert link.all_reduce_s(2e6, 2) == pytest.approx(40e-6)
    assert link.all_reduce_s(1e6, 8) == pytest.approx(30e-6 + 17.5e-6)
    assert link.send_s(1e6) == pytest.approx(25e-6)
