"""The table of `plugserve`'s commands. A new command is one line here and one module in this folder.

The module has `run(words, environ)`, which returns the exit code, and `HELP`, the text of `plugserve NAME --help`,
which begins with "usage: plugserve NAME". Modules import what is heavy inside run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol, cast

from plugserve.core.settings.settings_help import help_width


class CommandModule(Protocol):
    """What a module of this folder that runs a command has."""

    HELP: str

    def run(self, words: list[str], environ: Mapping[str, str]) -> int:
        """Run the command with the words that follow its name; returns the exit code."""
        ...


@dataclass(frozen=True, slots=True)
class Command:
    """One command: the module of plugserve.commands that runs it, its arguments, and what it does in a line."""

    module: str
    arguments: str
    summary: str

    def load(self) -> CommandModule:
        return cast(CommandModule, import_module(f"plugserve.commands.{self.module}"))


COMMANDS: Mapping[str, Command] = {
    "serve": Command("serve", "[MODEL] [SETTING ...]", "serve models behind the OpenAI HTTP API; the default command"),
    "route": Command("route", "--upstream URL ...", "route requests to several servers by model and prompt"),
    "chat": Command("chat", "[--url URL | --model MODEL]", "chat in a terminal, with a server or one that it starts"),
    "top": Command("top", "[--url URL] [--once] [--json]", "watch what a server does, in a terminal"),
    "batch": Command("batch", "INPUT OUTPUT [--url URL] ...", "answer a file of requests, here or by a server"),
    "plugins": Command("plugin_list", "[--json] [--inspect]", "list plugins: active, installed, broken"),
    "plugin": Command("plugin_new", "new NAME --kind KIND", "write a plugin package that passes its own tests"),
    "models": Command("models_supported", "supported [--markdown]", "list architectures, weight formats, RoPE kinds"),
    "save-sharded": Command("save_sharded", "[MODEL] --output FOLDER", "write a model's weights as sharded_state"),
    "config": Command("config_show", "show | schema", "show the effective settings; print config files' JSON schema"),
    "doctor": Command("doctor", "[MODEL] [--json] [SETTING ...]", "predict a model's memory, and check this machine"),
    "plan": Command("plan", "[MODEL] --gpus N [SETTING ...]", "forecast a model on several GPUs, and choose a split"),
    "replay": Command("replay", "FILE [--show | --url URL] ...", "repeat what an engine recorded before it died"),
    "simulate": Command("simulate", "--trace FILE ...", "compare schedulers on a trace"),
}


def command_lines() -> str:
    """One line for each command, for the page of `plugserve --help`; without arguments where they don't fit."""
    lines = _aligned([f"{name} {command.arguments}" for name, command in COMMANDS.items()])
    if max(map(len, lines)) > help_width():
        lines = _aligned(list(COMMANDS))
    return "\n".join(lines)


def _aligned(usages: Sequence[str]) -> list[str]:
    width = max(map(len, usages))
    return [f"  {usage.ljust(width)}  {one.summary}" for usage, one in zip(usages, COMMANDS.values(), strict=True)]
