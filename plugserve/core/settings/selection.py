"""The settings that select plugins, as the plugin host reads them."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_PLUGINS = ("request-log", "torch", "tool-parsers", "reasoning-parsers")
"""Active without being named, beside the defaults of the required slots. torch also reads models for other runners."""


@dataclass(frozen=True, slots=True)
class Selection:
    """plugin holds names and paths of one-file plugins, in the order of activation. executor is None where no model is
    shared."""

    plugin: tuple[str, ...] = ()
    no_plugin: tuple[str, ...] = ()
    scheduler: str = "fcfs"
    attention: str = "auto"
    runner: str = "auto"
    executor: str | None = None


def is_plugin_file(plugin: str) -> bool:
    """True for what --plugin takes as a one-file plugin rather than as an installed plugin's name."""
    return plugin.endswith(".py")


def selected_plugins(
    named: list[str], enable_prefix_caching: bool, enable_lora: bool, has_draft_model: bool
) -> tuple[str, ...]:
    """What --plugin, --enable-prefix-caching, --enable-lora and --speculative-model name, each once, in order."""
    names = [*named, *["prefix-cache"] * enable_prefix_caching, *["lora"] * enable_lora]
    names += ["draft-model"] * has_draft_model
    return tuple(dict.fromkeys(names))
