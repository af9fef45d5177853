"""Each of a model's engines sees GPUs of its own."""

import pytest

from plugserve.core.engine import own_devices
from plugserve.core.engine.own_devices import take_own_devices
from plugserve.core.errors import ConfigError
from plugserve.core.settings.settings import Settings


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A machine with four GPUs."""
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidia3", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.setattr(own_devices, "_DEVICES", tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # so that what a test sets is undone
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    return tmp_path


def seen(monkeypatch, replica, visible=None, **settings):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    take_own_devices(Settings(**settings), replica)
    return own_devices.os.environ.get("CUDA_VISIBLE_DEVICES")


def test_engines_take_gpus_in_turn(monkeypatch):
    assert seen(monkeypatch, 1, data_parallel_size=2) == "1"


def test_ranks_of_an_engine_stay_together(monkeypatch):
    assert seen(monkeypatch, 1, data_parallel_size=2, tensor_parallel_size=2) == "2,3"


def test_names_of_the_users_choice_are_kept(monkeypatch):
    assert seen(monkeypatch, 1, "7,GPU-a,3", data_parallel_size=2) == "GPU-a"


@pytest.mark.parametrize(
    ("visible", "settings"),
    [
        (None, {}),
        (None, {"device": "cpu", "data_parallel_size": 9}),
        ("", {"data_parallel_size": 2}),
        ("-1", {"data_parallel_size": 2}),
    ],
)
def test_nothing_changes_with_one_engine_or_without_gpus(monkeypatch, visible, settings):
    assert seen(monkeypatch, 0, visible, **settings) == visible


def test_too_few_gpus_are_one_line(monkeypatch):
    message = "--data-parallel-size 3 needs 6 GPUs, 2 for each engine; there are 4"
    with pytest.raises(ConfigError, match=message):
        seen(monkeypatch, 2, data_parallel_size=3, tensor_parallel_size=2)


def test_a_machine_without_gpus(monkeypatch, machine):
    for path in machine.iterdir():
        path.unlink()
    assert seen(monkeypatch, 1, data_parallel_size=2) is None
