"""Contexts for factories in tests, with small defaults. Keyword arguments settings are plugserve's settings by name."""

from __future__ import annotations

from typing import Any

from plugserve.core.contracts.attention import AttentionSpec
from plugserve.core.contracts.factories import AttentionContext, LoraContext, PrefixCacheContext, SchedulerContext
from plugserve.core.contracts.lora import LoraSpec
from plugserve.core.contracts.settings_view import SettingsView
from plugserve.core.settings.settings import Settings


def settings_view(**settings: Any) -> SettingsView:
    """The settings that plugins may read; settings that aren't given have their defaults."""
    return Settings(**settings).view()


def scheduler_context(options: Any = None, *, block_size: int = 16, **settings: Any) -> SchedulerContext:
    """For a scheduler's factory."""
    return SchedulerContext(options, settings_view(**settings), "cpu", "float32", block_size, max_model_len=2048)


def prefix_cache_context(options: Any = None, *, block_size: int = 16, **settings: Any) -> PrefixCacheContext:
    """For a prefix cache's factory."""
    return PrefixCacheContext(options, settings_view(**settings), "cpu", "float32", block_size, max_model_len=2048)


def attention_context(
    spec: AttentionSpec, options: Any = None, *, block_size: int = 16, **settings: Any
) -> AttentionContext:
    """For an attention backend's factory."""
    return AttentionContext(options, settings_view(**settings), spec, block_size)


def lora_context(spec: LoraSpec, options: Any = None, **settings: Any) -> LoraContext:
    """For a LoRA manager's factory."""
    return LoraContext(options, settings_view(**settings), spec)
