"""The command line: finds the command and turns the user's errors into one line.

Starts nothing heavy until a command needs it.

Exit codes: 0, 2 for the user's fault (one line on standard error), 130 after Ctrl-C; any other is a bug.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from plugserve import __version__
from plugserve.commands.command_table import COMMANDS, command_lines
from plugserve.core.errors import UserError
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.settings_docs import help_text
from plugserve.core.settings.settings_reader import read_selection

USAGE = f"""\
usage: plugserve [COMMAND] ...

{command_lines()}

plugserve COMMAND --help shows a command's own arguments; plugserve --version shows the version.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(words, os.environ)
    except UserError as error:
        print(f"plugserve: error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `plugserve plugins | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(words: list[str], environ: Mapping[str, str]) -> int:
    command = words.pop(0) if words and words[0] in COMMANDS else "serve"
    settings_words = words[: words.index("--")] if "--" in words else words
    if "--version" in settings_words:
        print(f"plugserve {__version__}")
        return 0
    asks_for_help = "--help" in settings_words or "-h" in settings_words
    if asks_for_help and command == "serve":
        return _help(words, environ)
    module = COMMANDS[command].load()
    if asks_for_help:
        print(module.HELP, end="")
        return 0
    return module.run(words, environ)


def _help(words: list[str], environ: Mapping[str, str]) -> int:
    """All flags, with the options of the plugins that words select; without those if they can't be loaded."""
    wanted = [word for word in words if word not in ("--help", "-h")]
    try:
        models = PluginHost.load(read_selection(wanted, environ, frozenset({"--json", "--inspect"}))).option_models()
    except UserError as error:
        print(help_text(USAGE, {}))
        print(f"plugserve: error: {error}", file=sys.stderr)
        return 2
    print(help_text(USAGE, models), end="")
    return 0
