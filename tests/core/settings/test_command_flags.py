"""Flags that a command has beside the settings."""

import pytest

from plugserve.core.errors import ConfigError
from plugserve.core.settings.command_flags import split_flags


def split(*words):
    return split_flags(
        words, ["--trace", "--max-size"], repeated=["--set"], switches=["--dry"], other_names={"-t": "--trace"}
    )


def test_own_flags_are_taken_in_every_spelling_and_other_words_keep_their_order():
    flags = split("model", "-t", "file", "--max_size=3", "--set", "a=1", "--port", "1", "--dry", "--set=b=2")
    assert flags.values == {"--trace": "file", "--max-size": "3"}
    assert flags.repeated == {"--set": ["a=1", "b=2"]}
    assert flags.switches == {"--dry"}
    assert flags.words == ["model", "--port", "1"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trace"], "--trace needs a value"),
        (["--max_size", "--dry"], "--max-size needs a value"),
        (["--trace", "a", "-t", "b"], "--trace is given twice"),
    ],
)
def test_a_flag_without_its_value_and_one_given_twice_are_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        split(*words)
