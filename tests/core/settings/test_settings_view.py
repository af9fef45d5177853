"""Plugins read the declared settings, and no others."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from pydantic import BaseModel

from plugserve.core.contracts.settings_view import readable_settings
from plugserve.core.settings.settings import Settings, setting_facts

OPTIONS_PAGE = Path(__file__).parents[3] / "docs" / "plugins" / "options.md"


class Options(BaseModel):
    size: int = 1


def test_every_readable_setting_is_a_setting_without_secrets():
    facts = setting_facts()
    assert [name for name in readable_settings() if name not in facts] == []
    assert [name for name in readable_settings() if facts[name].is_secret] == []


def test_view_holds_the_values_of_the_settings():
    settings = Settings(model=["a", "b"], max_num_seqs=7, max_model_len="16k")
    view = settings.view()
    assert (view.model, view.max_num_seqs, view.max_model_len) == (("a", "b"), 7, 16384)


def test_view_is_read_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().view().port = 1


def test_reading_another_setting_names_those_that_can_be_read():
    with pytest.raises(AttributeError, match=r"^plugins can't read the setting 'api_key'; they can read model, "):
        Settings(api_key=["secret"]).view().api_key  # noqa: B018


def test_plugin_options_are_validated():
    assert Settings(plugins={"mine": {"size": 3}}).view().plugin_options("mine", Options) == Options(size=3)
    assert Settings().view().plugin_options("mine", Options) == Options()


def test_repr_shows_what_was_changed_and_no_secrets():
    assert repr(Settings(port=1, api_key=["secret"]).view()) == "SettingsView(port=1)"


def test_page_lists_the_readable_settings():
    text = OPTIONS_PAGE.read_text().partition("## Settings that plugins may read")[2].partition("\n\n")[2]
    listed = text.partition("\n\n")[2].replace("`", "").rstrip(". \n").replace("\n", " ").split(", ")
    assert tuple(listed) == readable_settings()
