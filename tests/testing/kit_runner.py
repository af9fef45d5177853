"""Runs a conformance class in this process and says which of its cases fail."""

from __future__ import annotations

import inspect
import itertools
from pathlib import Path

import pytest

_numbers = itertools.count()


def catches(case: type, word: str, *, tmp_path: Path | None = None) -> bool:
    """True as soon as some case fails with word in its first line. tmp_path is for cases that take one."""
    return any(word in message for _, message in _failures(case, tmp_path))


def failures(case: type) -> dict[str, str]:
    """First line of what was raised, by the case's name with its parameters."""
    return dict(_failures(case))


def _failures(case, tmp_path=None):
    for name, function in inspect.getmembers(case, inspect.isfunction):
        if not name.startswith("test_"):
            continue
        for arguments in _argument_sets(function):
            if "tmp_path" in inspect.signature(function).parameters:
                arguments["tmp_path"] = tmp_path / f"case-{next(_numbers)}"
            try:
                getattr(case(), name)(**arguments)
            except pytest.skip.Exception:
                continue
            except (Exception, pytest.fail.Exception) as error:
                yield f"{name}{list(arguments.values()) or ''}", f"{type(error).__name__}: {error}".split("\n")[0]


def _argument_sets(function):
    """Every combination of a test's parametrize marks."""
    marks = [mark for mark in getattr(function, "pytestmark", []) if mark.name == "parametrize"]
    choices = []
    for mark in marks:
        names, values = mark.args
        assert isinstance(names, str)
        choices.append([{names: value} for value in values])
    for combination in itertools.product(*choices):
        yield {name: value for one in combination for name, value in one.items()}
