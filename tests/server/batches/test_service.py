import pytest

from plugserve.core.settings.settings_reader import read_settings
from plugserve.server.batches.file_store import StorageLimits
from plugserve.server.batches.service import batch_service


@pytest.mark.parametrize(
    ("words", "limits", "concurrency"),
    [
        ([], StorageLimits(1000, 2**30), 128),
        (["--max-num-seqs", "1"], StorageLimits(1000, 2**30), 1),
        (["--max-files", "5", "--max-files-size", "2MiB", "--max-batch-requests", "7"], StorageLimits(5, 2**21), 7),
    ],
)
def test_settings_bound_what_a_tenant_keeps_and_what_runs(words, limits, concurrency, make_state, tmp_path):
    service = batch_service(make_state(), read_settings(words, {}).settings, tmp_path)
    assert service.files.limits == limits
    assert service._concurrency == concurrency


def test_the_files_folder_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_settings(["--files-dir", "here"], {}).settings.files_dir == str(tmp_path / "here")
