"""The log file of several processes: whole lines, rotation by size, and files that others move."""

import logging
import subprocess
import sys

import pytest

from plugserve.core.errors import ConfigError
from plugserve.core.settings.log_file import LogFile, LogFileHandler, log_file_of
from plugserve.core.settings.log_setup import set_up_logging
from plugserve.core.settings.settings import Settings


@pytest.fixture
def log():
    """A logger that pytest doesn't follow: a report with a line that is no UTF-8 ends a run with several processes."""
    logger = logging.Logger("plugserve.test_log_file", logging.INFO)
    yield logger
    for handler in [*logger.handlers]:
        logger.removeHandler(handler)
        handler.close()


def test_old_files_are_renamed_and_the_oldest_dropped(tmp_path, log):
    path = tmp_path / "server.log"
    log.addHandler(LogFileHandler(LogFile(path, max_bytes=100, count=2)))
    for number in range(20):
        log.info("line %02d %s", number, "x" * 30)  # two fit
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        "server.log", "server.log.1", "server.log.2", "server.log.lock",
    ]  # fmt: skip
    kept = [
        one.split()[1] for name in (".2", ".1", "") for one in (tmp_path / f"server.log{name}").read_text().splitlines()
    ]
    assert kept == [f"{number:02d}" for number in range(20 - len(kept), 20)]
    assert all(one.stat().st_size <= 100 for one in tmp_path.iterdir())


def test_a_line_that_is_longer_than_the_file_is_written(tmp_path, log):
    path = tmp_path / "server.log"
    log.addHandler(LogFileHandler(LogFile(path, max_bytes=10, count=1)))
    log.info("a" * 50)
    log.info("b" * 50)
    assert path.read_text() == "b" * 50 + "\n"
    assert (tmp_path / "server.log.1").read_text() == "a" * 50 + "\n"


def test_a_file_that_was_moved_or_removed_is_opened_anew(tmp_path, log):
    path = tmp_path / "server.log"
    log.addHandler(LogFileHandler(LogFile(path, max_bytes=10, count=0)))
    log.info("first, longer than the limit that doesn't hold")
    path.rename(tmp_path / "moved")
    log.info("second")
    path.unlink()
    log.info("third \ud800")
    assert (tmp_path / "moved").read_text().startswith("first")
    assert path.read_text() == "third \\ud800\n"


def test_lines_of_several_processes_are_whole_and_none_is_lost(tmp_path):
    program = """
import logging, sys
from pathlib import Path
from plugserve.core.settings.log_file import LogFile, LogFileHandler
log = logging.getLogger("x"); log.setLevel(logging.INFO)
log.addHandler(LogFileHandler(LogFile(Path(sys.argv[1]), max_bytes=4000, count=99)))
sys.stdin.readline()
for number in range(200):
    log.info("%s %d %s", sys.argv[2], number, sys.argv[2] * 60)
"""
    path = tmp_path / "server.log"
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(path), name], stdin=subprocess.PIPE) for name in "abc"
    ]
    for process in processes:
        process.stdin.write(b"\n")
        process.stdin.close()
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    lines = [line for one in tmp_path.glob("server.log*") for line in one.read_text().splitlines()]
    assert sorted(lines) == sorted(f"{name} {number} {name * 60}" for name in "abc" for number in range(200))
    assert len(list(tmp_path.glob("server.log.*"))) > 5


def test_logging_is_set_up_with_the_settings_file(tmp_path, capsys):
    settings = Settings(log_file=str(tmp_path / "server.log"), log_file_size=1 << 20)
    for _ in range(2):  # a second call replaces the first one's file
        set_up_logging("info", "text", log_file_of(settings))
    logging.getLogger("plugserve.x").info("two\nlines")
    set_up_logging("info")
    logging.getLogger("plugserve.x").info("to standard error alone")
    (line,) = (tmp_path / "server.log").read_text().splitlines()
    assert line.endswith("INFO plugserve.x: two\\nlines")
    assert line in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    assert log_file_of(Settings()) is None
    with pytest.raises(ConfigError, match=r"--log-file .*/nowhere/server.log: No such file or directory"):
        set_up_logging("info", "text", LogFile(tmp_path / "nowhere/server.log", 1000, 1))
