"""The hint for an unknown name is a setting that does the same thing, or none."""

import pytest

from plugserve.core.settings.setting_hints import SAME_THING
from plugserve.core.settings.settings import setting_facts
from tests.core.settings.reading import message

WRONG = {
    # misspelt, or put together differently
    "--max-num-seq": "--max-num-seqs",
    "--max-num-sequences": "--max-num-seqs",
    "--maxmodellen": "--max-model-len",
    "--max-model-length": "--max-model-len",
    "--model-max-len": "--max-model-len",
    "--enforce-eagr": "--enforce-eager",
    "--no-enforce-eagr": "--enforce-eager",
    "--prot": "--port",
    "--hots": "--host",
    "--dtpye": "--dtype",
    "--devcie": "--device",
    "--log-levels": "--log-level",
    "--ssl-keyfle": "--ssl-keyfile",
    "--api-keys": "--api-key",
    "--enable-loras": "--enable-lora",
    "--max-lora": "--max-loras",
    "--shutdown-time-out": "--shutdown-timeout",
    "--num-speculative-token": "--num-speculative-tokens",
    "--speculative-confg": "--speculative-config",
    "--api-server-cout": "--api-workers",
    "--enable-log-request": "--enable-log-requests",
    # shortened
    "--gpu-memory": "--gpu-memory-utilization",
    "--gpu-mem": "--gpu-memory-utilization",
    "--trust-remote": "--trust-remote-code",
    "--enable-prefix": "--enable-prefix-caching",
    # names of other servers
    "-m": "--model",
    "-p": "--port",
    "--ctx-size": "--max-model-len",
    "--context-length": "--max-model-len",
    "--mem-fraction-static": "--gpu-memory-utilization",
    "--max-running-requests": "--max-num-seqs",
    "--tp-size": "--tensor-parallel-size",
    "--num-shard": "--tensor-parallel-size",
    "--workers": "--api-workers",
    "--timeout": "--request-timeout",
    "--draft-model": "--speculative-model",
    "--lora-paths": "--lora-modules",
    "--disable-cuda-graph": "--enforce-eager",
    "--cors-origins": "--allowed-origins",
    "--ssl-cert": "--ssl-certfile",
    "--config-file": "--config",
    # nothing does the same thing
    "--min-model-len": None,
    "--disable-lora": None,
    "--max-tokens": None,
    "--temperature": None,
    "--top-p": None,
    "--tool-choice": None,
    "--num-gpus": None,
    "--n-gpu-layers": None,
    "--log": None,
    "--max-num": None,
    "--api": None,
    "--batch-size": None,
    "--quantise": None,
    "--disable-plugin": None,
    "--output-dir": None,
    "--verbose": None,
    "--max-images": None,
    "--cache": None,
    "-x": None,
}


@pytest.mark.parametrize(("wrong", "right"), WRONG.items())
def test_hint_is_a_setting_that_does_the_same_thing_or_none(wrong, right):
    hint = f" Did you mean {right!r}?" if right else ""
    assert message(wrong, "3") == f"unknown setting {wrong!r} on the command line.{hint}"


def test_hint_has_the_spelling_of_its_place(write):
    assert message("--config", write("tls_key: x")).endswith("Did you mean 'ssl_keyfile'?")
    assert message(environ={"PLUGSERVE_WORKERS": "2"}).endswith("Did you mean 'PLUGSERVE_API_WORKERS'?")
    assert message(environ={"PLUGSERVE_TEMPERATURE": "2"}).endswith("in the environment.")


def test_names_of_other_servers_lead_to_settings_and_are_none():
    assert set(SAME_THING.values()) <= set(setting_facts())
    assert not set(SAME_THING) & set(setting_facts())
