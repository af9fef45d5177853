import pytest

from plugserve.core.errors import ConfigError
from plugserve.core.model_files.load_formats import NOT_READ, SAME_AS, format_used


@pytest.mark.parametrize("name", NOT_READ)
def test_a_format_that_nothing_reads_is_refused_with_a_way_out(name):
    with pytest.raises(ConfigError, match=f"--load-format {name} is not supported: .*--load-format auto"):
        format_used(name, ())


@pytest.mark.parametrize("name", SAME_AS)
def test_a_name_for_the_same_files_is_taken_with_a_warning(name):
    used, warning = format_used(name, ("safetensors", "pt", "sharded_state"))
    assert used in ("safetensors", "pt", "sharded_state", "auto")
    assert warning.startswith(f"--load-format {name} is read as {used}: ")


@pytest.mark.parametrize("name", ["tensorizer", "npcache", "auto", "safetensors", "unheard"])
def test_a_plugins_own_format_comes_first(name):
    assert format_used(name, (name,)) == (name, "")


def test_an_unknown_name_is_left_to_the_formats():
    assert format_used("unheard", ("safetensors",)) == ("unheard", "")
