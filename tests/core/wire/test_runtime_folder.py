"""The runtime folder: made whole, or not at all with one line."""

import errno
import os
from types import SimpleNamespace

import pytest

from plugserve.core.errors import ConfigError
from plugserve.core.settings.settings import Settings
from plugserve.core.wire.runtime_folder import RuntimeFolder


def _leftovers(folder):
    return list(folder.glob("plugserve-*"))


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_it_is_readable_by_its_user_alone(temporary):
    folder = RuntimeFolder.create(Settings(), [])
    assert folder.path.stat().st_mode & 0o777 == 0o700
    folder.remove()
    assert not _leftovers(temporary)


def test_a_full_disk_is_one_line_and_leaves_nothing(temporary, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("plugserve.core.wire.runtime_folder._write_private", full)
    with pytest.raises(ConfigError, match="can't be written: No space left on device; free space there, or set TMPDIR"):
        RuntimeFolder.create(Settings(), [])
    assert not _leftovers(temporary)


def test_an_almost_full_disk_is_refused_before_a_mapped_file_can_not_grow(temporary, monkeypatch):
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=100, f_frsize=4096))
    with pytest.raises(ConfigError, match="less than 8 MiB are free"):
        RuntimeFolder.create(Settings(), [])
    assert not _leftovers(temporary)


def test_no_folder_for_temporary_files_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(ConfigError, match="set TMPDIR"):
        RuntimeFolder.create(Settings(), [])
