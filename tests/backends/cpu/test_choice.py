"""--runner auto takes the native backend where it covers model and settings, else torch; by name it refuses."""

from __future__ import annotations

import json

import pytest

from plugserve.backends.cpu import library
from plugserve.core.engine.memory_check import predicted
from plugserve.core.engine.strategies import EngineStrategies
from plugserve.core.errors import ConfigError
from plugserve.core.model_files.model_source import resolve
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.settings_reader import read_settings
from tests.backends.cpu.native_models import needs_library

pytestmark = needs_library
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 64, "hidden_size": 64,
    "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
}  # fmt: skip


@pytest.fixture
def make_runner(tmp_path):
    """make_runner(arguments, config changes) -> the runner's name and the runner, as the command line asks."""

    def make(*words, options=None, **changes):
        (tmp_path / "config.json").write_text(json.dumps(CONFIG | changes))
        settings = read_settings(["--load-format", "dummy", "--device", "cpu", *words], {}).settings
        settings = settings.model_copy(update={"plugins": {"native-cpu": options or {}}})
        host = PluginHost.load(settings.selection())
        host.configure(settings)
        strategies = EngineStrategies(settings, host, resolve(str(tmp_path), load_format="dummy"))
        runner = strategies.make_runner()
        return strategies.slots["runner"], runner

    return make


COVERED = [((), {}), (("--dtype", "bfloat16"), {}), ((), {"options": {"quantization": "int4"}}), ((), {"head_dim": 48})]
NOT_COVERED = [
    (("--dtype", "float32"), {}, "--dtype float32"),
    (("--plugin", "ngram"), {}, "speculation"),
    (("--enable-lora",), {}, "LoRA adapters"),
    ((), {"head_dim": 24}, "heads of 24 dimensions"),
    ((), {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "RoPE of kind dynamic"),
]


@pytest.mark.parametrize(("words", "changes"), COVERED)
def test_what_is_covered_runs_natively(make_runner, words, changes):
    assert make_runner(*words, **changes)[0] == "native-cpu"


@pytest.mark.parametrize(("words", "changes", "reason"), NOT_COVERED)
def test_what_is_not_covered_runs_with_torch_and_is_refused_by_name(make_runner, words, changes, reason):
    assert make_runner(*words, **changes)[0] == "torch"
    with pytest.raises(ConfigError) as caught:
        make_runner(*words, "--runner", "native-cpu", **changes)
    assert reason in str(caught.value)
    assert "use --runner torch" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_attention_of_a_plugin_is_torchs(make_runner):
    assert make_runner("--attention", "torch-sdpa")[0] == "torch"


def test_without_the_library_torch_serves(make_runner, monkeypatch):
    monkeypatch.setattr(library, "find_library", lambda: "its library was not built")
    assert make_runner()[0] == "torch"
    with pytest.raises(ConfigError, match=r"can't be used: its library was not built; or use --runner torch"):
        make_runner("--runner", "native-cpu")


def test_an_instruction_set_that_the_cpu_lacks_is_refused(make_runner, monkeypatch):
    found = library.find_library()
    monkeypatch.setattr(found, "ps_levels", lambda: b"avx2")
    with pytest.raises(ConfigError, match=r"--native-cpu.instructions amx: this CPU has avx2; use auto"):
        make_runner(options={"instructions": "amx"})


def test_predicted_memory_is_that_of_the_loaded_model(make_runner):
    _, runner = make_runner("--num-gpu-blocks-override", "40", options={"quantization": "int8"})
    ledger = predicted(runner)
    info = runner.load()
    items = {item.name: item.size_bytes for item in ledger.places[0].items}
    assert items["KV cache"] == info.kv_cache_bytes == 40 * info.block_size * ledger.kv_bytes_per_token
    assert abs(items["weights"] - info.weight_bytes) < 0.5 * info.weight_bytes, "tables and alignment of a tiny model"
    runner.close()
