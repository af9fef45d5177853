"""Adapters are read one after another beside the engine; none of them can hold up the others for ever."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from plugserve.core.engine.adapter_loading import MOST_ABANDONED, READ_LIMIT_S, AdapterLoader
from plugserve.core.engine.adapter_pool import Adapter
from plugserve.core.errors import AdapterError
from plugserve.core.wire.messages import LoadAdapter


class _Pool:
    def __init__(self):
        self.added = []
        self.unloaded = set()

    def add(self, id, name, weights, path):
        self.added.append((id, name, weights))

    def find(self, id):
        return None if id in self.unloaded else "an adapter"

    def note_read(self, id, weights):
        self.added.append((id, "again", weights))


class Scene:
    """A loader whose clock the test moves, and whose reads of "hang" wait until release."""

    def __init__(self):
        self.now_s = 0.0
        self.release = threading.Event()
        self.pool = _Pool()
        self.loader = AdapterLoader(self.read, self.pool, clock=lambda: self.now_s)

    def read(self, path):
        if path.name == "hang":
            self.release.wait(30)
        if path.name == "exit":
            raise SystemExit(3)
        if path.name == "bad":
            raise AdapterError("no\ngood")
        return f"weights of {path.name}"

    def load(self, id, name):
        self.loader.submit(LoadAdapter(id=id, name=name, path=str(Path("/adapters") / name)))

    def outcome(self):
        """What finished reports once something is done."""
        deadline = time.monotonic() + 10
        while not (done := self.loader.finished()) and time.monotonic() < deadline:
            time.sleep(0.001)
        return [(one.id, one.error) for one in done]


@pytest.fixture
def scene():
    made = Scene()
    yield made
    made.release.set()


def test_good_adapters_are_added_in_order(scene):
    scene.load(1, "a")
    scene.load(2, "b")
    assert scene.outcome() + scene.outcome() == [(1, ""), (2, "")]
    assert scene.pool.added == [(1, "a", "weights of a"), (2, "b", "weights of b")]
    assert not scene.loader.is_busy


def test_what_read_raises_is_one_line_even_when_it_means_to_end_the_process(scene):
    scene.load(1, "bad")
    assert scene.outcome() == [(1, "no good")]
    scene.load(2, "exit")
    assert scene.outcome() == [(2, "the LoRA manager failed to read it: SystemExit")]


def test_one_that_hangs_is_given_up_and_the_next_is_read(scene):
    scene.load(1, "hang")
    scene.load(2, "a")
    assert scene.loader.finished() == []
    scene.now_s = READ_LIMIT_S + 1
    done = scene.outcome()
    assert done[:1] == [(1, "it was not read in 60 s")]
    assert (done[1:] or scene.outcome()) == [(2, "")]
    scene.release.set()
    assert scene.pool.added == [(2, "a", "weights of a")]


def test_threads_that_never_end_are_bounded(scene):
    for id in range(MOST_ABANDONED):
        scene.load(id, "hang")
        scene.now_s += READ_LIMIT_S + 1
        assert scene.outcome() == [(id, "it was not read in 60 s")]
    scene.load(99, "a")
    assert "still being read" in scene.outcome()[0][1]
    scene.release.set()


def test_without_a_lora_manager_adapters_are_refused():
    loader = AdapterLoader(None, _Pool())
    loader.submit(LoadAdapter(id=1, name="a", path="/a"))
    assert [one.error for one in loader.finished()] == ["this engine serves no LoRA adapters"]


def test_folder_that_has_changed_is_not_read_again(scene, tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    adapter = Adapter(1, "a", None, str(folder))
    scene.loader.submit(LoadAdapter(id=1, name="a", path=str(folder)))
    assert scene.outcome() == [(1, "")]
    scene.loader.read_again([adapter])
    assert scene.outcome() == [(1, "")]
    assert scene.pool.added == [(1, "a", "weights of a"), (1, "again", "weights of a")]
    (folder / "adapter_config.json").write_text("{ }")
    scene.loader.read_again([adapter])
    [(_, error)] = scene.outcome()
    assert "its files have changed since it was loaded" in error
    scene.loader.forget(1)  # unloaded, and loaded anew under the next id
    scene.loader.submit(LoadAdapter(id=2, name="a", path=str(folder)))
    assert scene.outcome() == [(2, "")]


def test_deferred_adapter_is_known_at_once_and_read_later(scene):
    scene.loader.submit(LoadAdapter(id=1, name="a", path="/adapters/a", is_deferred=True))
    assert scene.loader.is_busy
    assert scene.outcome() == [(1, "")]
    assert scene.pool.added == [(1, "a", None)]
    scene.loader.read_again([Adapter(1, "a", None, "/adapters/a")])
    assert scene.outcome() == [(1, "")]
    assert scene.pool.added[1:] == [(1, "again", "weights of a")]


def test_nothing_is_kept_of_an_adapter_that_is_unloaded_while_it_is_read(scene):
    scene.load(1, "a")
    assert scene.outcome() == [(1, "")]
    scene.loader.read_again([Adapter(1, "a", None, "/adapters/a")])
    scene.pool.unloaded.add(1)
    scene.loader.forget(1)
    assert scene.outcome() == [(1, "")]
    assert scene.loader._folders == {}
