"""Plugins of another hook level are refused in one line, and hooks that are going away are named."""

from __future__ import annotations

import sys
import types

import pluggy
import pytest

from plugserve.core.errors import PluginError
from plugserve.core.plugin_system import hookspecs
from plugserve.core.plugin_system.hookspecs import PLUGSERVE_API, Retirement
from plugserve.core.plugin_system.plugin_host import PluginHost, make_manager
from plugserve.core.plugin_system.plugin_loading import Plugin
from plugserve.core.settings.selection import Selection
from tests.fake_distributions import SCHEDULER, FakeDistributions


@pytest.fixture
def packages(tmp_path, monkeypatch):
    return FakeDistributions(tmp_path, monkeypatch)


def add(packages, name, level):
    packages.add(name, SCHEDULER % (name, name))
    module = name.replace("-", "_")
    with (packages.folder / f"{module}-1.0.dist-info" / "entry_points.txt").open("a") as file:
        file.write(f"[plugserve_api]\n{level} = {module}\n")


def refusal(*plugin):
    with pytest.raises(PluginError) as caught:
        PluginHost.load(Selection(plugin=plugin))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_package_of_this_level_is_loaded(packages):
    add(packages, "current", PLUGSERVE_API)
    assert "current" in PluginHost.load(Selection(plugin=("current",))).active_names


def test_package_of_a_newer_level_is_refused_before_it_is_imported(packages):
    add(packages, "newer", PLUGSERVE_API + 1)
    assert refusal("newer") == (
        f"plugin 'newer' (newer 1.0) is written for hook level {PLUGSERVE_API + 1}, this plugserve has level "
        f"{PLUGSERVE_API}; update plugserve, or install an older version of the plugin"
    )
    assert not packages.was_imported("newer")


def test_package_of_a_level_that_is_gone_is_refused(packages):
    add(packages, "older", 0)
    assert "the oldest that this plugserve still serves is 1" in refusal("older")


def test_level_that_is_no_number_is_refused(packages):
    add(packages, "wordy", "one")
    assert "names the hook level 'one', which is no number" in refusal("wordy")


def test_inactive_package_of_a_newer_level_hurts_nobody(packages):
    add(packages, "newer", PLUGSERVE_API + 1)
    host = PluginHost.load(Selection())
    (report,) = [report for report in host.report(inspect=True) if report.name == "newer"]
    assert report.state == "broken"
    assert "hook level" in report.problem


def test_one_file_plugin_says_its_level_itself(tmp_path):
    file = tmp_path / "ahead.py"
    file.write_text(f"PLUGSERVE_API = {PLUGSERVE_API + 1}\n")
    assert f"is written for hook level {PLUGSERVE_API + 1}" in refusal(str(file))
    file.write_text("PLUGSERVE_API = '1'\n")
    assert "PLUGSERVE_API must be a number such as 1, got '1'" in refusal(str(file))


# ---------------------------------------------------------------- hooks that are going away


class Specs:
    """Hook specifications of a later plugserve, in which one hook and one argument are going away."""

    @staticmethod
    @hookspecs.hookspec(warn_on_impl=Retirement("plugserve_old", gone_in=3, advice="use plugserve_new"))
    def plugserve_old(request):
        """What it was for."""

    @staticmethod
    @hookspecs.hookspec(
        warn_on_impl_args={
            "usage": Retirement("argument 'usage' of plugserve_new", gone_in=3, advice="take timings.usage")
        }
    )
    def plugserve_new(request, usage, timings):
        """What it is for."""


def plugin(source):
    module = types.ModuleType("authors_plugin")
    exec("from plugserve import hookimpl\n" + source, vars(module))
    return Plugin("mine", "mine", "1.0", module, {})


def test_use_of_a_hook_that_is_going_away_is_said():
    _, said = make_manager([plugin("@hookimpl\ndef plugserve_old(request): pass\n")], Specs)
    assert said == ["plugin 'mine' (mine 1.0): plugserve_old goes away with hook level 3; use plugserve_new"]


def test_use_of_an_argument_that_is_going_away_is_said():
    _, said = make_manager([plugin("@hookimpl\ndef plugserve_new(usage, timings): pass\n")], Specs)
    assert said == [
        "plugin 'mine' (mine 1.0): argument 'usage' of plugserve_new goes away with hook level 3; take timings.usage"
    ]


def test_plugin_that_keeps_up_hears_nothing():
    manager, said = make_manager([plugin("@hookimpl\ndef plugserve_new(request, timings): return 5\n")], Specs)
    assert said == []
    assert isinstance(manager, pluggy.PluginManager)
    assert manager.hook.plugserve_new(request=1, usage=2, timings=3) == [5]


def test_no_built_in_plugin_uses_what_is_going_away():
    assert not [line for line in PluginHost.load(Selection(plugin=("prefix-cache",))).warnings if "goes away" in line]
    assert "authors_plugin" not in sys.modules
