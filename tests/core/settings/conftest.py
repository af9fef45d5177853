"""Fixtures of the tests of settings."""

from __future__ import annotations

import pytest


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write serve.yaml (or another name) in the working directory of the test."""
    monkeypatch.chdir(tmp_path)

    def write(text, name="serve.yaml"):
        (tmp_path / name).write_text(text)
        return name

    return write
