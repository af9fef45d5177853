"""Plugins of another hook level are refused in one line, and hooks that are going away are named."""

from __future__ import annotations

import sys
import types

import pluggy
import pytest

from plugserve.core.errors import PluginError
from plugserve.core.plugin_system import hookspecs
from plugserve.core.plugin_system.hook_registration import make_manager
from plugserve.core.plugin_system.hookspecs import PLUGSERVE_API, Retirement
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.plugin_system.plugin_loading import Plugin
from plugserve.core.plugin_system.strategy_factory import make_strategy
from plugserve.core.settings.selection import Selection
from plugserve.core.settings.settings import Settings
from plugserve.testing.contexts import scheduler_context
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
    assert "the oldest that this plugserve supports is 1" in refusal("older")


def test_level_that_is_no_number_is_refused(packages):
    add(packages, "wordy", "one")
    assert "names the hook level 'one', which is not a number" in refusal("wordy")


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
    assert "PLUGSERVE_API must be a number such as 2, got '1'" in refusal(str(file))


# ---------------------------------------------------------------- plugins of level 1

LEVEL_1_SCHEDULER = """
from plugserve import PluginContext, hookimpl
PLUGSERVE_API = 1

class First:
    def __init__(self, context: PluginContext) -> None:
        self.facts = (context.options, context.config.max_num_seqs, context.device, context.dtype, context.block_size)
    def add(self, view): ...
    def remove(self, id): ...
    def schedule(self, budget): ...

@hookimpl
def plugserve_schedulers():
    return {"first": First}

@hookimpl
def plugserve_configure(config):
    assert config.max_num_seqs
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_plugin_of_level_1_runs_with_one_warning(tmp_path):
    file = tmp_path / "early.py"
    file.write_text(LEVEL_1_SCHEDULER)
    host = PluginHost.load(Selection(plugin=(str(file),), scheduler="early/first"))
    assert [line for line in host.warnings if "early" in line] == [
        f"plugin 'early' ({file}) is written for hook level 1; it still works; "
        "docs/plugins/moving-to-2.md describes how to move it to level 2"
    ]
    settings = Settings()
    host.configure(settings)
    made = make_strategy(
        "early", "scheduler", "first", lambda: host.factory("schedulers", "first")[0](scheduler_context())
    )
    assert made.facts == (None, settings.max_num_seqs, "cpu", "float32", 16)


def test_package_of_level_1_runs_with_one_warning(packages):
    add(packages, "early", 1)
    assert [line for line in PluginHost.load(Selection(plugin=("early",))).warnings if "early" in line] == [
        "plugin 'early' (early 1.0) is written for hook level 1; it still works; "
        "docs/plugins/moving-to-2.md describes how to move it to level 2"
    ]


def test_plugin_that_names_no_level_is_loaded_without_a_warning(packages):
    packages.add("plain", SCHEDULER % ("plain", "plain"))
    assert not [line for line in PluginHost.load(Selection(plugin=("plain",))).warnings if "plain" in line]


@pytest.mark.parametrize("level", ["", "PLUGSERVE_API = 1\n"])
def test_runner_factory_of_level_1_is_refused_in_one_line(tmp_path, level):
    file = tmp_path / "early.py"
    file.write_text(
        f"from plugserve import hookimpl\n{level}@hookimpl\ndef plugserve_model_runners():\n"
        "    return {'mine': lambda context, source, choose_attention: None}\n"
    )
    assert refusal(str(file)) == (
        f"plugin 'early' ({file}): its model runner factory 'mine' must take one argument, context; since hook level 2 "
        "context.source and context.choose_attention hold the others (docs/plugins/moving-to-2.md)"
    )


def test_hook_that_takes_an_argument_by_keyword_alone_is_refused_in_one_line(tmp_path):
    file = tmp_path / "early.py"
    file.write_text("from plugserve import hookimpl\n@hookimpl\ndef plugserve_error(*, request): ...\n")
    assert refusal(str(file)) == (
        f"plugin 'early' ({file}): plugserve_error takes 'request' as a keyword-only argument, which "
        "pluggy doesn't pass; remove the * before it"
    )


def test_factory_that_reads_a_field_which_is_gone_is_refused_in_one_line():
    with pytest.raises(PluginError) as caught:
        make_strategy("early", "scheduler", "first", lambda: scheduler_context().spec)
    assert str(caught.value) == (
        "plugin 'early': its scheduler 'first' can't be made: AttributeError: SchedulerContext has no 'spec'; it has "
        "options, config, device, dtype, block_size, max_model_len"
    )


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
    hooks = {name: hook for name, hook in vars(module).items() if name.startswith("plugserve_")}
    return Plugin("mine", "mine", "1.0", module, hooks)


def test_use_of_a_hook_that_is_going_away_is_said():
    _, said = make_manager([plugin("@hookimpl\ndef plugserve_old(request): pass\n")], Specs)
    assert said == ["plugin 'mine' (mine 1.0): plugserve_old will be removed in hook level 3; use plugserve_new"]


def test_use_of_an_argument_that_is_going_away_is_said():
    _, said = make_manager([plugin("@hookimpl\ndef plugserve_new(usage, timings): pass\n")], Specs)
    assert said == [
        "plugin 'mine' (mine 1.0): argument 'usage' of plugserve_new will be removed in hook level 3; "
        "take timings.usage"
    ]


def test_plugin_that_keeps_up_hears_nothing():
    manager, said = make_manager([plugin("@hookimpl\ndef plugserve_new(request, timings): return 5\n")], Specs)
    assert said == []
    assert isinstance(manager, pluggy.PluginManager)
    assert manager.hook.plugserve_new(request=1, usage=2, timings=3) == [5]


def test_no_built_in_plugin_uses_what_is_going_away():
    assert not [
        line for line in PluginHost.load(Selection(plugin=("prefix-cache",))).warnings if "will be removed" in line
    ]
    assert "authors_plugin" not in sys.modules
