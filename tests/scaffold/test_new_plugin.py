"""`plugserve plugin new` writes packages that install, run and pass their own tests."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from plugserve.cli import main
from plugserve.scaffold.new_plugin import KINDS
from tests.package_on_path import register


def run(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, stdin=subprocess.DEVNULL, **options
    )


def new(tmp_path, kind, name):
    assert main(["plugin", "new", name, "--kind", kind, "--into", str(tmp_path)]) == 0
    return tmp_path / f"plugserve-{name}"


def test_packages_pass_their_own_tests(tmp_path, capsys):
    folders = [new(tmp_path, kind, f"my-{kind}2") for kind in KINDS]
    printed = capsys.readouterr().out
    assert all(str(folder) in printed for folder in folders)
    for folder in folders:
        env = register(folder, tmp_path / "site")
    paths = os.pathsep.join([env["PYTHONPATH"], *map(str, folders)])
    words = ["pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", *map(str, folders)]
    done = run(*words, cwd=tmp_path, env=env | {"PYTHONPATH": paths})
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout or "[100%]" in done.stdout


def test_packages_are_plugins_that_can_be_activated(tmp_path):
    folders = [new(tmp_path, kind, f"my-{kind}") for kind in KINDS]
    for folder in folders:
        env = register(folder, tmp_path / "site")
    paths = os.pathsep.join([env["PYTHONPATH"], *map(str, folders)])
    words = [word for kind in KINDS for word in ("--plugin", f"my-{kind}")]
    done = run("plugserve", "plugins", "--json", *words, env=env | {"PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr
    assert "imports torch" not in done.stderr
    reports = {report["name"]: report for report in json.loads(done.stdout)}
    for kind in KINDS:
        report = reports[f"my-{kind}"]
        assert report["state"] == "active"
        assert report["provides"] or report["hooks"]


@pytest.mark.parametrize("kind", KINDS)
def test_package_is_clean(kind, tmp_path):
    folder = new(tmp_path, kind, "my-own")
    for file in folder.rglob("*"):
        if file.is_file():
            assert not re.search(r"@[A-Z_]+@", file.read_text()), file
        if file.suffix == ".py":
            compile(file.read_text(), str(file), "exec")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "plugserve plugin new needs one name, got none. usage: "),
        (["a", "b", "--kind", "server"], "needs one name, got a b"),
        (["mine"], "--kind is needed. Kinds: scheduler, "),
        (["mine", "--kind", "schedular"], "--kind schedular: no such kind. Did you mean 'scheduler'? Kinds: "),
        (["mine", "--kind"], "--kind needs a value"),
        (["mine", "--knd", "server"], "unknown flag '--knd'. Did you mean '--kind'?"),
        (["My_Own", "--kind", "server"], "'My_Own' can't be a plugin's name"),
        (["fcfs", "--kind", "scheduler"], "a plugin named 'fcfs' is installed already"),
        (["plugserve-fcfs", "--kind", "scheduler"], "a plugin named 'fcfs' is installed already"),
        (["mine", "--kind", "server", "--into", "nowhere"], "--into nowhere: no such folder"),
    ],
)
def test_failures_are_reported_in_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["plugin", "new", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path, capsys):
    folder = new(tmp_path, "server", "mine")
    (folder / "README.md").write_text("my words")
    assert main(["plugin", "new", "mine", "--kind=scheduler", "--into", str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert (folder / "README.md").read_text() == "my words"
