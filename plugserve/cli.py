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
from plugserve.core.errors import ConfigError, UserError
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.selection import Selection
from plugserve.core.settings.setting_hints import is_slip
from plugserve.core.settings.setting_names import OptionModels
from plugserve.core.settings.settings_help import help_on, help_page
from plugserve.core.settings.settings_reader import read_selection


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
    command = "serve"
    is_named = bool(words) and words[0] in COMMANDS
    if is_named:
        command = words.pop(0)
    elif words and not words[0].startswith("-"):
        _check_command(words[0])
    settings_words = words[: words.index("--")] if "--" in words else words
    if "--version" in settings_words:
        print(f"plugserve {__version__}")
        return 0
    topics = [word.removeprefix("--help") for word in settings_words if _is_help(word)]
    if topics and (command == "serve" or topics[0].startswith("=")):
        usage = COMMANDS["serve"].load().HELP if is_named else f"usage: plugserve [COMMAND] ...\n\n{command_lines()}"
        return _help(topics[0].lstrip("="), usage, [word for word in words if not _is_help(word)], environ)
    module = COMMANDS[command].load()
    if topics:
        print(module.HELP, end="")
        return 0
    return module.run(words, environ)


def _check_command(word: str) -> None:
    """Raises ConfigError for a first word that is a misspelt command, and no model that is here."""
    meant = next((name for name in COMMANDS if word != name and is_slip(word, name)), None)
    if meant and not os.path.exists(word):
        raise ConfigError(f"{word!r} is no command. Did you mean `plugserve {meant}`? A model is named with --model")


def _is_help(word: str) -> bool:
    return word in ("--help", "-h") or word.startswith("--help=")


def _help(topic: str, usage: str, words: list[str], environ: Mapping[str, str]) -> int:
    """The page, which begins with usage, or one topic, with the options of the plugins that words select; without those
    if they can't be loaded."""
    problem: UserError | None = None
    options: OptionModels = {}
    try:
        switches = frozenset({"--json", "--inspect"})
        options = PluginHost.load(read_selection(words, environ, switches)).option_models()
    except UserError as error:
        problem = error
    print(help_on(topic, options) if topic not in ("", "-h") else help_page(usage, _chosen(options)), end="")
    if problem is not None:
        raise problem
    return 0


def _chosen(options: OptionModels) -> OptionModels:
    """Options of the plugins that are not active by default."""
    usual = PluginHost.load(Selection()).option_models()
    return {plugin: model for plugin, model in options.items() if plugin not in usual}
