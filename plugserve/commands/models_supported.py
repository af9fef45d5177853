"""`plugserve models supported`: architectures, weight formats and RoPE kinds."""

from __future__ import annotations

from collections.abc import Mapping

from plugserve.commands.reading import read_all
from plugserve.commands.support_tables import as_markdown, as_text, support_tables
from plugserve.core.errors import ConfigError
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.settings_reader import read_selection

HELP = """\
usage: plugserve models supported [--markdown] [SETTING ...]

Lists the architectures, weight formats, quantised checkpoints, tensor types of GGUF files, RoPE kinds and activations
that can be served; a setting such as --plugin adds those of a plugin. No model is loaded.

  --markdown   as tables in Markdown, as docs/models.md has them

Settings are those of serve: plugserve --help.
"""
SWITCHES = frozenset({"--markdown"})


def run(words: list[str], environ: Mapping[str, str]) -> int:
    if words[:1] != ["supported"]:
        raise ConfigError("plugserve models needs a subcommand: plugserve models supported")
    words = words[1:]
    host = PluginHost.load(read_selection(words, environ, SWITCHES))
    reading = read_all(words, environ, host, SWITCHES)
    render = as_markdown if "--markdown" in reading.switches else as_text
    print(render(support_tables(host)), end="")
    return 0
