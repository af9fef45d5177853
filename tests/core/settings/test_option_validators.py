"""Options models of plugins that raise what no validator should: one line that names the plugin."""

import pytest
from pydantic import BaseModel, field_validator, model_serializer

from plugserve.core.errors import ConfigError
from plugserve.core.settings.settings_reader import read_settings


def _raising(error):
    class Options(BaseModel):
        limit: int = 1

        @field_validator("limit")
        @classmethod
        def check(cls, value):
            raise error

    return Options


@pytest.mark.parametrize(
    "error",
    [KeyError("limit"), TypeError("no\nline"), ZeroDivisionError(), RecursionError("deep"), SystemExit(3), OSError(5)],
)
def test_a_validator_that_raises_oddly_is_one_line(error):
    with pytest.raises(ConfigError) as caught:
        read_settings(["--odd.limit", "2"], {}, options={"odd": _raising(error)}, active=["odd"])
    assert str(caught.value).startswith(f"options of plugin 'odd': its options model raised {type(error).__name__}")
    assert "\n" not in str(caught.value)


def test_a_serializer_that_raises_is_one_line():
    class Options(BaseModel):
        limit: int = 1

        @model_serializer
        def write(self):
            raise KeyError("no")

    with pytest.raises(ConfigError, match="options of plugin 'odd': its options model raised"):
        read_settings(["--odd.limit", "2"], {}, options={"odd": Options}, active=["odd"])


def test_a_validator_that_raises_for_its_defaults_is_one_line():
    class Options(BaseModel):
        limit: int = 1

        def model_post_init(self, context):
            raise LookupError("no")

    with pytest.raises(ConfigError, match="options of plugin 'odd': its options model raised LookupError: no"):
        read_settings([], {}, options={"odd": Options}, active=["odd"])
