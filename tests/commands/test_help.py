"""What `plugserve --help` and each command's --help print."""

import pytest

from plugserve import cli
from plugserve.commands.command_table import COMMANDS


def out(capsys, *words):
    assert cli.main(list(words)) == 0
    return capsys.readouterr().out


def test_help_names_every_command_with_its_summary(capsys):
    text = out(capsys, "--help")
    for name, command in COMMANDS.items():
        line = next(line for line in text.splitlines() if line.startswith(f"  {name} "))
        assert line.endswith(command.summary)


@pytest.mark.parametrize(("columns", "most_lines"), [(80, 70), (110, 60)])
def test_help_is_one_page_within_the_terminals_width(capsys, monkeypatch, columns, most_lines):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = out(capsys, "--help").splitlines()
    assert max(map(len, lines)) <= columns
    assert len(lines) <= most_lines


def test_help_of_serve_has_its_settings_and_no_other_command(capsys):
    text = out(capsys, "serve", "--help")
    assert text.startswith("usage: plugserve [serve] [MODEL] [SETTING ...]\n")
    assert text.partition("Most used settings")[2] == out(capsys, "--help").partition("Most used settings")[2]
    assert "doctor" not in text


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "serve"])
def test_each_command_has_help_of_its_own(capsys, name):
    text = out(capsys, name, "--help")
    assert text.startswith(f"usage: plugserve {name} ")
    assert text == out(capsys, name, "-h")
    assert text.endswith("\n")
    assert max(map(len, text.splitlines())) <= 120
