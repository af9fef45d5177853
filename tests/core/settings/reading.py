"""Reads settings for tests, with the options of a plugin called sjf."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from plugserve.core.errors import ConfigError
from plugserve.core.settings.settings_reader import read_settings


class SjfOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    aging_tokens: int = Field(32, ge=0, description="How fast a job ages.")
    loud: bool = False
    words: list[str] = []
    table: dict[str, int] = {}
    api_key: SecretStr | None = None


PLUGINS = {"options": {"sjf": SjfOptions}, "active": ["fcfs", "sjf"], "installed": ["fcfs", "sjf", "prefix-cache"]}


def read(*arguments, environ=None, **more):
    return read_settings(arguments, environ or {}, **(PLUGINS | more))


def settings(*arguments, environ=None, **more):
    return read(*arguments, environ=environ, **more).settings


def message(*arguments, **more):
    with pytest.raises(ConfigError) as caught:
        read(*arguments, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)
