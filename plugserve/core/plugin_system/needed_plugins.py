"""Settings that only a plugin can follow."""

from __future__ import annotations

from plugserve.core.errors import ConfigError
from plugserve.core.model_files.load_formats import format_used
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.settings import Settings


def check_needed_plugins(settings: Settings, host: PluginHost) -> None:
    """Raises UserError for a setting that no active plugin follows."""
    load_format, _ = format_used(settings.load_format, host.names("weight_formats"))
    if load_format != "auto":
        host.factory("weight_formats", load_format)
    if (settings.lora_modules or settings.lora_dir) and not host.names("lora_managers"):
        given = "--lora-modules" if settings.lora_modules else "--lora-dir"
        raise ConfigError(f"{given} needs a plugin that serves LoRA adapters: add --enable-lora")
