"""A keys file adds keys, or is refused in one line; it never opens the server."""

import os

import pytest

from plugserve.core.errors import ConfigError
from plugserve.core.settings.key_file import all_keys


def test_keys_of_both_sources_count_once(tmp_path):
    path = tmp_path / "keys"
    path.write_bytes("# team a\n one \r\n\ntwo\nzweiter Schlüssel\none\n".encode())
    assert all_keys(["zero", "two"], str(path)) == ["zero", "two", "one", "zweiter Schlüssel"]
    assert all_keys(["zero"], None) == ["zero"]
    assert all_keys([], None) == []


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n"])
def test_file_without_a_key_is_refused(tmp_path, text):
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(ConfigError, match="contains no key"):
        all_keys(["zero"], str(path))


def test_what_is_no_regular_readable_file_is_refused_in_one_line(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_bytes(b"a\n" * (1 << 20))
    for name in ("missing", "fifo", "large", "."):
        with pytest.raises(ConfigError, match="--api-key-file") as refused:
            all_keys([], str(tmp_path / name))
        assert "\n" not in str(refused.value)
