"""What an engine had recorded is kept when it dies: the last ten, by model and time."""

import os

import pytest

from plugserve.core.errors import ConfigError
from plugserve.core.flight.flight_log import FlightLog
from plugserve.server.supervisor.kept_flights import KeptFlights, check_flights_folder, flights_folder
from tests.core.flight.test_flight_recorder import driver


def test_file_is_moved_and_can_be_read(tmp_path):
    engine = driver(tmp_path / "flight-0")
    engine.send([1, 2, 3], 4)
    engine.run()
    kept = KeptFlights(tmp_path / "some" / "folder").keep(tmp_path / "flight-0")
    assert kept.parent == tmp_path / "some" / "folder"
    assert kept.parent.stat().st_mode & 0o77 == 0
    assert kept.name.startswith("m-")
    assert len(FlightLog(kept).requests()) == 1
    assert not (tmp_path / "flight-0").exists()


def test_oldest_are_removed(tmp_path):
    folder = tmp_path / "flights"
    folder.mkdir()
    for number in range(12):
        old = folder / f"m-{number}.flight"
        old.touch()
        os.utime(old, (number, number))
    (folder / "notes.txt").touch()
    driver(tmp_path / "flight-0")
    kept = KeptFlights(folder).keep(tmp_path / "flight-0")
    assert sorted(one.name for one in folder.glob("*.flight")) == sorted(
        [kept.name, *(f"m-{number}.flight" for number in range(3, 12))]
    )
    assert (folder / "notes.txt").exists()


def test_nothing_to_keep_and_no_place_are_no_errors(tmp_path, caplog):
    assert KeptFlights(tmp_path).keep(tmp_path / "flight-0") is None
    assert not caplog.records
    driver(tmp_path / "flight-0")
    (tmp_path / "file").touch()
    assert KeptFlights(tmp_path / "file" / "folder").keep(tmp_path / "flight-0") is None
    assert "flight recorder's file is lost" in caplog.text


def test_default_folder_follows_xdg(tmp_path):
    assert flights_folder(None, {"XDG_STATE_HOME": "/s"}).as_posix() == "/s/plugserve/flights"
    assert flights_folder("/given", {}).as_posix() == "/given"


def test_folder_that_cannot_be_used_is_the_users_fault(tmp_path):
    check_flights_folder(None)
    check_flights_folder(str(tmp_path / "new" / "one"))
    assert (tmp_path / "new" / "one").stat().st_mode & 0o77 == 0
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--flight-recorder-dir .*file can't be used: File exists"):
        check_flights_folder(str(tmp_path / "file"))
