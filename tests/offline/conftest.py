"""A model in this process that answers from a script, through the real engine and the server's whole pipeline."""

import json
from pathlib import Path

import pytest

from plugserve import LLM

SCRIPTED = Path(__file__).parents[2] / "benchmarks" / "clients" / "scripted.py"
SCRIPT = [
    {"when": "capital of France", "say": "Paris, of course. END It is large."},
    {"when": "weather in Rome", "say": '{"name": "weather", "arguments": {"city": "Rome"}}'},
    {"when": "pick a colour", "say": ["a long story", "red", '{"colour": "red"}']},
    {"when": "count for ever", "say": "one two three " * 600},
    {"when": "", "say": "hello world"},
]


@pytest.fixture(scope="session")
def scripted(smollm2_gguf, tmp_path_factory):
    """scripted(**settings) -> settings of a scripted model."""
    script = tmp_path_factory.mktemp("script") / "script.json"
    script.write_text(json.dumps(SCRIPT))

    def settings(**options):
        table = {"script": str(script), **options.pop("table", {})}
        return {"plugin": [str(SCRIPTED)], "runner": "scripted", "plugins": {"scripted": table}, **options}

    return settings


@pytest.fixture(scope="session")
def llm(scripted):
    with LLM(**scripted(max_model_len=2048)) as llm:
        yield llm
