"""The plugin: its options and its attention backend, by name. The factory imports torch, not this module."""

from collections.abc import Callable, Mapping

from plugserve import AttentionBackend, AttentionContext, hookimpl
from plugserve_attention_sinks.options import SinkOptions


def make_attention_sinks(context: AttentionContext) -> AttentionBackend:
    """Called in the engine process, once the model is known."""
    from plugserve_attention_sinks.attention import SinkAttention

    return SinkAttention(context.block_size, context.options or SinkOptions())


@hookimpl
def plugserve_options() -> type[SinkOptions]:
    return SinkOptions


@hookimpl
def plugserve_attention_backends() -> Mapping[str, Callable[[AttentionContext], AttentionBackend]]:
    return {"attention-sinks": make_attention_sinks}
