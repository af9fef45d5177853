"""The one-file examples load and behave as README.md describes."""

from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from transformers import SeedOssConfig, SeedOssForCausalLM

from plugserve import Identity, RequestError, RequestTimings, RequestUsage, RequestView
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.selection import Selection
from plugserve.testing import ServerPluginConformance
from tests.core.harness import LocalEngine, hugging_face_greedy, randomise

FOLDER = Path(__file__).parents[2] / "examples" / "one_file"


def import_file(name):
    spec = spec_from_file_location(name, FOLDER / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def request(body=None, **headers):
    return RequestView(id="r", path="/v1/completions", method="POST", headers=headers, client="c", body=body)


@pytest.fixture
def house_rules():
    return PluginHost.load(Selection(plugin=(str(FOLDER / "house_rules.py"),)))


def test_house_rules_fit_into_30_lines():
    assert len((FOLDER / "house_rules.py").read_text().splitlines()) <= 30


class TestHouseRulesConform(ServerPluginConformance):
    def make_plugin(self):
        return import_file("house_rules")


async def test_house_rules_accept_known_keys(house_rules):
    assert await house_rules.authorize(request(authorization="Bearer ada-key")) == Identity("ada")
    assert (await house_rules.authorize(request(authorization="Bearer eve-key"))).status == 401
    assert (await house_rules.authorize(request())).status == 401


@pytest.mark.parametrize(("asked", "granted"), [(9, 9), (200, 200), (999, 200)])
async def test_house_rules_cap_the_answer(house_rules, asked, granted):
    params = await house_rules.sampling_params(request(), SamplingParams(max_tokens=asked, seed=0), 1, 1)
    assert params == SamplingParams(max_tokens=granted, seed=0)


async def test_house_rules_cap_the_number_of_answers(house_rules):
    with pytest.raises(RequestError, match="at most 4 answers in one request, got 5"):
        await house_rules.sampling_params(request(), SamplingParams(max_tokens=9, seed=0), 5, 1)


def test_readme_shows_the_house_rules_as_they_are():
    assert (FOLDER / "house_rules.py").read_text() in (FOLDER.parents[1] / "README.md").read_text()


async def test_house_rules_log_each_users_tokens(house_rules, caplog):
    caplog.set_level("INFO", "plugserve.house_rules")
    await house_rules.observe_async(
        "plugserve_request_finished",
        request=replace(request(), identity=Identity("bob")),
        usage=RequestUsage(num_prompt_tokens=1, num_generated_tokens=7),
        timings=RequestTimings(total_s=1),
    )
    assert "bob used 7 tokens" in caplog.text
    assert not house_rules.errors


class TestEngineEventsConform(ServerPluginConformance):
    def make_plugin(self):
        return import_file("engine_events")


def test_engine_events_hook_into_engine_and_routes():
    host = PluginHost.load(Selection(plugin=(str(FOLDER / "engine_events.py"),)))
    hooks = {report.name: report.hooks for report in host.report()}["engine-events"]
    assert hooks == ["engine_started", "engine_stopping", "register_routes"]


def test_seed_oss_equals_transformers():
    """The architecture goes from the plugin through the builder into the runner; tokens equal Hugging Face's."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "attention_out_bias": True}
    config = SeedOssConfig(**shape, **heads, max_position_embeddings=256, eos_token_id=None, pad_token_id=0)
    model = randomise(SeedOssForCausalLM(config))
    host = PluginHost.load(Selection(plugin=(str(FOLDER / "seed_oss.py"),)))
    describe, plugin = host.factory("architectures", "SeedOssForCausalLM")
    assert plugin == "seed-oss"
    raw = {**config.to_dict(), "architectures": ["SeedOssForCausalLM"]}
    architectures = {"SeedOssForCausalLM": describe}
    prompt = list(range(1, 40))
    with LocalEngine(raw, model.state_dict(), architectures=architectures) as local:
        assert local.generate([prompt], max_tokens=12) == [hugging_face_greedy(model, prompt, 12)]
