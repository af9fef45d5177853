"""Tables of what can be served, for `plugserve models supported` and docs/models.md. Torch-free.

Architectures and weight formats are those that active plugins provide, the rest is core's.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

from plugserve.backends.torch.weights.gguf_blocks import SUPPORTED_TYPES
from plugserve.commands.active_formats import active_formats
from plugserve.core.contracts.model import ACTIVATIONS, ROPE_KINDS
from plugserve.core.model_files.checkpoint_folder import QUANTISATIONS
from plugserve.core.model_files.encoder_files import ENCODER_TYPES
from plugserve.core.model_files.gguf_config import GGUF_ARCHITECTURES
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.settings import Settings

Row = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under a title; the first row names the columns."""

    title: str
    rows: Sequence[Row]


def support_tables(host: PluginHost) -> list[Table]:
    """Architectures, encoders, weight formats, quantised checkpoints, GGUF and RoPE kinds."""
    by_class: dict[str, list[str]] = {}
    for name, one in GGUF_ARCHITECTURES.items():
        by_class.setdefault(one.class_name, []).append(name)
    by_class.setdefault("MistralForCausalLM", []).append("llama")
    architectures = [
        (name, _line(host.factory("architectures", name)[0]), ", ".join(by_class.get(name, ["-"])), owner)
        for name in host.names("architectures")
        for owner in [host.factory("architectures", name)[1]]
    ]
    return [
        Table("Architectures", [("architecture", "models", "GGUF architecture", "plugin"), *architectures]),
        Table("Encoders (through transformers)", [("model_type",), (", ".join(sorted(ENCODER_TYPES)),)]),
        Table("Weight formats", [("--load-format", "reads", "plugin"), *_formats(host)]),
        Table(
            "Quantised checkpoints (dequantised at load)", [("quant_method", "what is read"), *QUANTISATIONS.items()]
        ),
        Table("Tensor types in GGUF files", [("types",), (", ".join(SUPPORTED_TYPES),)]),
        Table("RoPE kinds", [("rope_type", "what it is"), *ROPE_KINDS.items()]),
        Table("Activations", [("hidden_act",), (", ".join(ACTIVATIONS),)]),
    ]


def _formats(host: PluginHost) -> list[Row]:
    return [(name, _line(type(one)), owner) for name, (one, owner) in active_formats(host, Settings()).items()]


def _line(thing: object) -> str:
    """The first line of a docstring."""
    text = (inspect.getdoc(thing) or "").strip()
    return text.splitlines()[0].rstrip(".") if text else "-"


def as_text(tables: Sequence[Table]) -> str:
    """The tables as text for a terminal."""
    blocks = []
    for table in tables:
        widths = [max(len(row[column]) for row in table.rows) for column in range(len(table.rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table.rows]
        blocks.append("\n".join([table.title.upper(), *(f"  {line}".rstrip() for line in lines)]))
    return "\n\n".join(blocks) + "\n"


def as_markdown(tables: Sequence[Table]) -> str:
    """The tables in Markdown, for docs/models.md."""
    blocks = []
    for table in tables:
        head, *rows = [[cell.replace("|", "\\|") for cell in row] for row in table.rows]
        lines = [head, ["---"] * len(head), *rows]
        blocks.append(f"## {table.title}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in lines))
    return "\n\n".join(blocks) + "\n"
