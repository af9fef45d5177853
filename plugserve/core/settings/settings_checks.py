"""Checks of settings beyond the type of a single value."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plugserve.core.errors import ConfigError
from plugserve.core.settings.model_entries import check_model_table
from plugserve.core.settings.setting_names import flag
from plugserve.core.settings.settings import Settings, default_of, setting_facts
from plugserve.core.settings.settings_sources import Given

_TRACES_SCHEMES = ("http", "https", "grpc", "grpcs")


class SettingsChecks:
    """Checks beyond the type of a single value. Each raises ConfigError, or adds to warnings."""

    def __init__(self, settings: Settings, places: Sequence[Given]) -> None:
        self._settings = settings
        self._places = places
        self.warnings: list[str] = []

    def run(self) -> None:
        self._unsupported()
        self._tls_files()
        self._chat_template()
        self._served_names()
        self._tokenizer()
        self._traces_endpoint()
        self._record_trace()
        self._origins()
        self._lora()
        self._pipeline()
        check_model_table(self._settings, self._place("models"))
        self._prompt_log()
        self._socket()
        self._executor()

    def _place(self, setting: str) -> str:
        return next((given.places[setting] for given in self._places if setting in given.places), flag(setting))

    def _unsupported(self) -> None:
        for setting, facts in setting_facts().items():
            value = getattr(self._settings, setting)
            if value == default_of(setting):
                continue
            shown = self._place(setting) if value is True else f"{self._place(setting)} {_plain(value)}"
            if facts.no_effect and (not facts.no_effect_values or value in facts.no_effect_values):
                self.warnings.append(f"{shown} has no effect: {facts.no_effect}")
            if facts.refused and (not facts.refused_values or value in facts.refused_values):
                raise ConfigError(f"{shown} is not supported: {facts.refused}")

    def _executor(self) -> None:
        settings, name = self._settings, "distributed_executor_backend"
        if settings.worker_use_ray and settings.distributed_executor_backend not in (None, "ray"):
            raise ConfigError(
                f"{self._place('worker_use_ray')} and {self._place(name)} {settings.distributed_executor_backend} "
                "contradict each other; leave the first out"
            )
        if settings.worker_use_ray:
            self.warnings.append(f"{self._place('worker_use_ray')} is taken as {flag(name)} ray")

    def _tls_files(self) -> None:
        both = ("ssl_keyfile", "ssl_certfile")
        given = [setting for setting in both if getattr(self._settings, setting)]
        if len(given) == 1:
            other = both[1 - both.index(given[0])]
            raise ConfigError(
                f"{self._place(given[0])} needs {flag(other)} as well: HTTPS takes a key and a certificate"
            )
        for setting in given:
            self._must_be_file(setting, getattr(self._settings, setting))

    def _chat_template(self) -> None:
        template = self._settings.chat_template
        if template and "{" not in template:
            self._must_be_file("chat_template", template)

    def _must_be_file(self, setting: str, path: str) -> None:
        if Path(path).is_dir():
            raise ConfigError(f"{self._place(setting)} {path} is a folder; name the file in it")
        if not Path(path).is_file():
            raise ConfigError(f"{self._place(setting)} {path}: no such file (looked in {Path(path).absolute().parent})")

    def _served_names(self) -> None:
        num_models, num_names = len(self._settings.model), len(self._settings.served_model_name)
        if num_models > 1 and num_names not in (0, num_models):
            place = self._place("served_model_name")
            raise ConfigError(f"{place} names {num_names} of {num_models} models; give one for each model, or none")
        for name in self._settings.served_model_name:
            if not name.strip():
                raise ConfigError(f"{self._place('served_model_name')} must be a name, got {name!r}")
            if num_models > 1 and self._settings.served_model_name.count(name) > 1:
                raise ConfigError(f"{self._place('served_model_name')} {name} names two models; give each its own name")

    def _tokenizer(self) -> None:
        models = [*self._settings.model, *self._settings.models]
        if self._settings.tokenizer is not None and len(models) > 1:
            self.warnings.append(
                f"{self._place('tokenizer')} {self._settings.tokenizer} is the tokenizer of all {len(models)} models; "
                "models: in a --config file sets one for one model"
            )

    def _traces_endpoint(self) -> None:
        endpoint = self._settings.otlp_traces_endpoint
        if not endpoint:
            return
        scheme, colon, rest = endpoint.rpartition("://")
        if (colon and scheme not in _TRACES_SCHEMES) or not rest.strip("/") or re.search(r"\s|^/", rest):
            place = self._place("otlp_traces_endpoint")
            raise ConfigError(
                f"{place} must be an URL such as http://localhost:4318/v1/traces or grpc://localhost:4317, "
                f"got {endpoint!r}"
            )

    def _record_trace(self) -> None:
        path = self._settings.record_trace
        if not path:
            return
        folder = Path(path).parent
        if not folder.is_dir():
            raise ConfigError(f"{self._place('record_trace')} {path}: there is no folder {folder}")
        try:
            is_writable = not Path(path).is_dir() and os.access(path if Path(path).exists() else folder, os.W_OK)
        except (OSError, ValueError):  # too long a name, a null byte
            is_writable = False
        if not is_writable:
            raise ConfigError(f"{self._place('record_trace')} {path} can't be written")

    def _origins(self) -> None:
        if not self._settings.allow_credentials:
            return
        place = self._place("allow_credentials")
        if not self._settings.allowed_origins:
            raise ConfigError(f"{place} needs --allowed-origins: no page may call this server otherwise")
        if "*" in self._settings.allowed_origins:
            raise ConfigError(f"{place} can't go with --allowed-origins *: name the origins that are trusted")

    def _socket(self) -> None:
        if self._settings.uds is None:
            return
        given = [setting for setting in ("host", "port") if any(setting in place.places for place in self._places)]
        if given:
            places = " and ".join(map(self._place, given))
            uds = self._place("uds")
            self.warnings.append(f"{places}: no effect with {uds}, the server listens on that socket alone")

    def _prompt_log(self) -> None:
        if self._settings.max_log_len is not None and not self._settings.log_prompts:
            self.warnings.append(
                f"{self._place('max_log_len')} has no effect without --log-prompts: no prompt is logged"
            )
        if self._settings.log_prompts and self._settings.disable_log_requests:
            place, other = self._place("log_prompts"), self._place("disable_log_requests")
            raise ConfigError(f"{place} can't go with {other}; leave one of them out")

    def _pipeline(self) -> None:
        num_stages = self._settings.pipeline_parallel_size
        for setting in ("speculative_model", "cpu_offload_gb"):
            value = getattr(self._settings, setting)
            if num_stages > 1 and value:
                raise ConfigError(
                    f"{self._place(setting)} {_plain(value)} can't go with {self._place('pipeline_parallel_size')} "
                    f"{num_stages}: leave one of the two out"
                )

    def _lora(self) -> None:
        names = [module["name"] for module in self._settings.lora_modules]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"{self._place('lora_modules')} names {name!r} twice; give each adapter its own name")
        folder = self._settings.lora_dir
        if folder and not Path(os.path.expanduser(folder)).is_dir():
            raise ConfigError(f"{self._place('lora_dir')} {folder}: no such folder")


def _plain(value: Any) -> str:
    """A value as the user would write it: 1, not 1.0."""
    return f"{value:g}" if isinstance(value, float) else str(value)
