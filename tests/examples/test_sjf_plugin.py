"""examples/plugserve-sjf as a plugin of the real host and engine, without pip: its folder is on sys.path."""

import random
import sys
import tomllib
from array import array
from pathlib import Path

import pytest

from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.engine.engine import Engine
from plugserve.core.engine.engine_state import EngineLimits
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.selection import Selection
from plugserve.core.settings.settings_reader import read_settings
from plugserve.testing.contexts import scheduler_context
from plugserve.testing.fake_runner import FakeRunner, expected_tokens

PACKAGE = Path(__file__).parents[2] / "examples" / "plugserve-sjf"


@pytest.fixture
def host(tmp_path, monkeypatch):
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    ((name, target),) = project["entry-points"]["plugserve"].items()
    info = tmp_path / "plugserve_sjf-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    (info / "entry_points.txt").write_text(f"[plugserve]\n{name} = {target}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(PACKAGE))
    yield PluginHost.load(Selection(scheduler="sjf"))
    for module in [module for module in sys.modules if module.startswith("plugserve_sjf")]:
        del sys.modules[module]


def read(host, *arguments):
    return read_settings(arguments, {}, options=host.option_models(), active=host.active_names).settings


def make_scheduler(host, *arguments):
    factory, plugin = host.factory("schedulers", "sjf")
    settings = read(host, *arguments)
    return factory(scheduler_context(host.options(plugin, settings)))


def test_option_reaches_the_scheduler(host):
    assert host.options("sjf", read(host, "--sjf.aging-tokens", "64")).aging_tokens == 64
    assert str(host.slots(read(host, "--scheduler", "sjf"))["scheduler"]) == "sjf (plugserve-sjf 0.1.0)"


def collect(engine, max_steps=5000):
    """Run all requests to their end; the tokens by request id."""
    tokens: dict[int, list[int]] = {}
    for _ in range(max_steps):
        if not engine.has_work:
            return tokens
        engine.step()
        engine.check_integrity()
        for _, message in engine.take_outputs():
            new = iter(array("i", message.tokens))
            for id, count in zip(message.ids, message.num_tokens, strict=True):
                tokens.setdefault(id, []).extend(next(new) for _ in range(count))
    raise AssertionError("the engine never finished")


@pytest.mark.parametrize("num_blocks", [10, 64])
def test_engine_makes_the_same_tokens_with_and_without_memory_pressure(host, num_blocks):
    runner = FakeRunner(num_blocks=num_blocks, block_size=16, max_model_len=128)
    engine = Engine(
        runner=runner,
        info=runner.load(),
        scheduler=make_scheduler(host),
        scheduler_name="sjf",
        limits=EngineLimits(32, 6),
    )
    draw = random.Random(0)
    prompts = [[draw.randrange(1000) for _ in range(draw.randrange(1, 70))] for _ in range(12)]
    for id, prompt in enumerate(prompts):
        engine.admit((b"w", id), array("i", prompt), SamplingParams(max_tokens=30, seed=0))
    tokens = collect(engine)
    assert [tokens[id] for id in range(12)] == [expected_tokens(prompt, 30) for prompt in prompts]
    assert engine.stats.num_plan_errors == 0
    assert engine.kv.num_free == num_blocks
    assert (engine.stats.num_preemptions > 0) == (num_blocks == 10)
