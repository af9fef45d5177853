import stat

import pytest

from plugserve.core.errors import ConfigError
from plugserve.server.supervisor.files_folder import held_files_folder


def test_a_folder_belongs_to_one_server_at_a_time(tmp_path):
    folder = tmp_path / "some" / "files"
    with held_files_folder(str(folder)):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        with (
            pytest.raises(ConfigError, match=f"--files-dir {folder} is used by another server"),
            held_files_folder(str(folder)),
        ):
            pass
    with held_files_folder(str(folder)):
        pass


def test_a_folder_that_cant_be_used_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match=r"--files-dir .*/file can't be used"),
        held_files_folder(str(tmp_path / "file")),
    ):
        pass


def test_none_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with held_files_folder(None):
        assert list(tmp_path.iterdir()) == []
