"""No key lies on a disk: settings travel over pipes, and what a killed server left behind goes."""

import os
import signal
import stat
import subprocess
import sys
import tempfile

import pytest

from plugserve.core.settings.settings import Settings
from plugserve.core.wire.handed_settings import as_line, receive_settings
from plugserve.core.wire.runtime_folder import RuntimeFolder, remove_leftovers

KEY = "sk-the-secret-key"
OWNER = """
import sys, time
from plugserve.core.settings.settings import Settings
from plugserve.core.wire.runtime_folder import RuntimeFolder
print(RuntimeFolder.create(Settings(api_key=["sk-the-secret-key"]), []).path, flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path, monkeypatch):
    place = tempfile.mkdtemp(prefix="pr-", dir="/tmp")
    monkeypatch.setenv("TMPDIR", place)
    monkeypatch.setattr(tempfile, "tempdir", place)
    yield
    subprocess.run(["rm", "-rf", place], check=True)


def test_no_key_lies_in_the_folder_and_only_its_user_reads_it():
    folder = RuntimeFolder.create(Settings(api_key=[KEY]), [])
    files = [path for path in folder.path.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    for name in ("trace.key", "models.json", "owner.lock"):
        assert stat.S_IMODE((folder.path / name).stat().st_mode) == 0o600
    folder.remove()
    assert not folder.path.exists()


def test_settings_travel_over_a_pipe_whole():
    settings = Settings(api_key=[KEY, "line\nbreak"], served_model_name=["x" * 50_000])
    reading, writing = os.pipe()
    os.write(writing, as_line(settings))
    assert receive_settings(reading) == settings
    os.close(writing)
    with pytest.raises(EOFError):
        receive_settings(reading)
    os.close(reading)


def test_folder_of_a_killed_server_is_removed_at_the_next_start_and_that_of_a_living_one_is_not():
    owners = [subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        killed, living = [owner.stdout.readline().strip() for owner in owners]
        owners[0].send_signal(signal.SIGKILL)
        owners[0].wait()
        assert os.path.isdir(killed)
        own = RuntimeFolder.create(Settings(), [])
        assert not os.path.exists(killed)
        assert os.path.isdir(living)
        assert remove_leftovers() == 0
        assert own.path.is_dir()
        own.remove()
    finally:
        for owner in owners:
            owner.kill()
            owner.wait()
            owner.stdout.close()
