"""Values of --load-format that other servers take and no plugin here provides: those that name files which another
format reads, and those whose files nothing reads."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Final

from plugserve.core.errors import ConfigError

SAME_AS: Final[Mapping[str, tuple[str, str]]] = {
    "hf": ("auto", "it names the files of a Hugging Face folder"),
    "npcache": ("pt", "it reads the same files and keeps a numpy copy of them, which this server doesn't need"),
    "fastsafetensors": ("safetensors", "it reads the same files by another library"),
    "runai_streamer": ("safetensors", "it reads the same files by another library"),
    "runai_streamer_sharded": ("sharded_state", "it reads the same files by another library"),
}
"""Name: the format that is used for it, and why it is the same."""

NOT_READ: Final[Mapping[str, str]] = {
    "bitsandbytes": "this server doesn't quantise weights while it loads them; use a GGUF file, or a checkpoint "
    "quantised as fp8, awq, gptq or compressed-tensors, with --load-format auto",
    "tensorizer": "files serialised by tensorizer need that library; save the model as safetensors and use "
    "--load-format auto",
    "mistral": "consolidated.safetensors with params.json has names of its own; use the repository's Hugging Face "
    "files (config.json and model*.safetensors) with --load-format auto",
}
"""Name: why it is refused, and what to use instead."""


def format_used(name: str, provided: Container[str]) -> tuple[str, str]:
    """The format that name stands for, and a warning where it is another one ("" otherwise). provided are the formats
    of active plugins, which come first. Raises ConfigError for a format whose files nothing reads."""
    if name == "auto" or name in provided:
        return name, ""
    if name in NOT_READ:
        raise ConfigError(f"--load-format {name} is not supported: {NOT_READ[name]}")
    if name in SAME_AS:
        used, why = SAME_AS[name]
        return used, f"--load-format {name} is read as {used}: {why}"
    return name, ""
