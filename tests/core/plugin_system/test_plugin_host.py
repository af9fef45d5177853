"""Discovery, activation, slots, reports, and loud failures of plugins that can't be loaded."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

import plugserve
from plugserve import PluginError, RequestError, RequestView
from plugserve.core.plugin_system.hook_docs import hook_table
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.plugin_system.plugin_loading import discover
from plugserve.core.settings.selection import Selection
from plugserve.core.settings.settings import Settings
from tests.fake_distributions import BROKEN, SCHEDULER, WITH_OPTIONS, FakeDistributions

DEFAULTS = [
    "request-log",
    "torch",
    "tool-parsers",
    "reasoning-parsers",
    "fcfs",
    "triton-paged",
    "torch-sdpa",
    "native-cpu",
]


@pytest.fixture
def packages(tmp_path, monkeypatch):
    return FakeDistributions(tmp_path, monkeypatch)


def load(*plugin, **selection):
    return PluginHost.load(Selection(plugin=plugin, **selection))


def refusal(*plugin, **selection):
    with pytest.raises(PluginError) as caught:
        load(*plugin, **selection)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- activation and slots


def test_defaults_are_active_in_order():
    assert list(load().active_names) == DEFAULTS


def test_installed_plugin_is_neither_active_nor_imported(packages):
    packages.add("spt", SCHEDULER % ("spt", "spt"))
    host = load()
    assert "spt" in host.installed_names
    assert "spt" not in host.active_names
    assert not packages.was_imported("spt")


def test_scheduler_flag_activates_the_entry_point_of_that_name(packages):
    packages.add("spt", SCHEDULER % ("spt", "spt"))
    host = load(scheduler="spt")
    factory, plugin = host.factory("schedulers", "spt")
    assert (factory(None), plugin) == ("made by spt", "spt")
    assert str(host.slots(Settings(scheduler="spt"))["scheduler"]) == "spt (spt 1.0)"


def test_default_that_another_scheduler_replaces_is_not_imported(packages):
    packages.add("spt", SCHEDULER % ("spt", "spt"))
    program = (
        "import sys; from plugserve.core.settings.selection import Selection;"
        "from plugserve.core.plugin_system.plugin_host import PluginHost;"
        "PluginHost.load(Selection(scheduler='spt')); print('plugserve.plugins.schedulers.fcfs' in sys.modules,"
        "'torch' in sys.modules)"
    )
    env = os.environ | {"PYTHONPATH": str(packages.folder)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_activating_a_scheduler_plugin_does_not_fill_the_slot(packages):
    packages.add("spt", SCHEDULER % ("spt", "spt"))
    host = load("spt")
    assert set(host.names("schedulers")) == {"spt", "fcfs"}
    assert host.slots(Settings())["scheduler"].name == "fcfs"


def test_plugin_slash_name_reaches_a_name_of_its_own(packages):
    packages.add("many", SCHEDULER % ("shortest", "many"))
    host = load(scheduler="many/shortest")
    assert host.factory("schedulers", "many/shortest")[0](None) == "made by many"
    assert "--scheduler many/shortest" in refusal(scheduler="many")
    assert "provides no scheduler 'longest'; use --scheduler many/shortest" in refusal(scheduler="many/longest")


def test_one_file_plugin_fills_a_slot_by_the_name_it_provides(tmp_path):
    file = tmp_path / "my_rules.py"
    file.write_text(SCHEDULER % ("mine", "a file"))
    host = load(str(file), scheduler="mine")
    assert host.factory("schedulers", "mine") == (host.plugins["my-rules"].provides["schedulers"]["mine"], "my-rules")
    assert "fcfs" not in host.active_names
    assert str(host.slots(Settings(scheduler="mine"))["scheduler"]) == f"mine ({file})"


def test_explicitly_selected_attention_is_preferred(packages):
    packages.add("fast", SCHEDULER.replace("schedulers", "attention_backends") % ("fast", "fast"))
    host = load("fast")
    assert host.names("attention_backends") == ["fast", "triton-paged", "torch-sdpa"]
    assert str(host.slots(Settings())["attention"]).startswith("auto: fast or triton-paged or torch-sdpa")


def test_prefix_cache_is_off_until_selected():
    assert str(load().slots(Settings())["prefix cache"]) == "none"
    assert load("prefix-cache").slots(Settings())["prefix cache"].name == "prefix-cache"


def test_two_prefix_caches_are_an_error(packages):
    packages.add("radix", SCHEDULER.replace("schedulers", "prefix_caches") % ("radix", "radix"))
    assert "both provide a prefix cache, and only one can be active" in refusal("prefix-cache", "radix")


def test_no_plugin_turns_a_default_off():
    assert "request-log" not in load(no_plugin=("request-log",)).active_names


def test_name_of_a_plugin_that_is_part_of_another_now_warns():
    host = load(no_plugin=("decoders",))
    assert "torch" in host.active_names
    assert host.warnings == ("--no-plugin decoders has no effect: plugin 'torch' provides what 'decoders' did",)


@pytest.mark.parametrize(
    "slot", [("scheduler", "fcfs"), ("attention", "triton-paged", "torch-sdpa"), ("runner", "native-cpu", "torch")]
)
def test_required_slot_keeps_its_only_provider(slot):
    setting, *plugins = slot
    removed = " ".join(f"--no-plugin {plugin}" for plugin in plugins)
    assert refusal(no_plugin=tuple(plugins)) == (
        f"{removed} leaves the {setting} slot empty; fill it with another one: --{setting} NAME"
    )


def test_default_can_be_removed_when_the_slot_is_filled_otherwise(packages):
    packages.add("spt", SCHEDULER % ("spt", "spt"))
    assert "fcfs" not in load(scheduler="spt", no_plugin=("fcfs",)).active_names
    packages.add("fast", SCHEDULER.replace("schedulers", "attention_backends") % ("fast", "fast"))
    assert load("fast", no_plugin=("torch-sdpa", "triton-paged")).names("attention_backends") == ["fast"]


def test_contradictions_are_refused(packages):
    packages.add("spt", SCHEDULER % ("spt", "spt"))
    assert refusal("spt", no_plugin=("spt",)) == "--plugin spt and --no-plugin spt contradict each other; drop one"
    assert refusal(scheduler="spt", no_plugin=("spt",)) == (
        "--scheduler spt needs plugin 'spt', which --no-plugin turns off; drop one"
    )


def test_plugin_object_may_be_a_module_a_class_or_an_instance(packages):
    source = """
    from plugserve import hookimpl
    class Mine:
        @hookimpl
        def plugserve_schedulers(self):
            return {type(self).__name__.lower(): lambda context: self}
    class Other(Mine): pass
    other = Other()
    """
    packages.add("as-class", source, target="as_class:Mine")
    packages.add("as-instance", source, target="as_instance:other")
    assert load("as-class", "as-instance").names("schedulers") == ["mine", "other", "fcfs"]


def test_options_are_validated_for_their_plugin(packages):
    packages.add("spt", WITH_OPTIONS)
    host = load(scheduler="spt")
    assert host.options("spt", Settings(plugins={"spt": {"aging_tokens": 5}})).aging_tokens == 5
    assert host.options("spt", Settings()).aging_tokens == 32
    assert host.options("torch-sdpa", Settings()) is None
    assert sorted(host.option_models()) == ["native-cpu", "spt"]


# ---------------------------------------------------------------- loud failures, and harmless ones


@pytest.mark.parametrize("name", BROKEN)
def test_selected_broken_plugin_is_one_clear_line(packages, name):
    source, message = BROKEN[name]
    packages.add(name, source)
    assert refusal(name) == message.format(version=plugserve.__version__)


@pytest.mark.parametrize("name", BROKEN)
def test_unselected_broken_plugin_is_harmless(packages, name):
    packages.add(name, BROKEN[name][0])
    host = load()
    assert list(host.active_names) == DEFAULTS
    assert [(report.name, report.state) for report in host.report() if report.name == name] == [(name, "installed")]
    assert not packages.was_imported(name)


def test_clash_is_solved_by_removing_the_default(packages):
    packages.add("clashing-name", BROKEN["clashing-name"][0])
    host = load("clashing-name", no_plugin=("fcfs",))
    assert host.factory("schedulers", "fcfs")[0](None) == "made by the other one"


HEAD = "from plugserve import hookimpl\n@hookimpl\n"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = 1\n", " has no hooks; mark its plugserve_* functions with @plugserve.hookimpl"),
        ("1 / 0\n", " can't be imported: ZeroDivisionError: division by zero"),
        ("raise SystemExit('bye')\n", " can't be imported: SystemExit: bye"),
        ("raise ValueError('two\\nlines')\n", " can't be imported: ValueError: two lines"),
        ("def f(:\n", " can't be imported: SyntaxError: "),
        (HEAD + "def plugserve_authorize(**kw): pass\n",
         ": wrong signature plugserve_authorize(**kw), the specification is plugserve_authorize(request); '**kw' is "
         "not one of its arguments."),
        (HEAD + "def plugserve_authorize(request, user): pass\n", "'user' is not one of its arguments."),
        (HEAD + "async def plugserve_configure(config): pass\n",
         ": plugserve_configure may not be async; it is called where nothing awaits it"),
        (HEAD + "def plugserve_schedulers(): return [1]\n",
         ": plugserve_schedulers must return a mapping of names to factories, got [1]"),
        (HEAD + "def plugserve_schedulers(): return {'a': 1}\n",
         ": plugserve_schedulers must map names (text without '/') to callables, got 'a': 1"),
        (HEAD + "def plugserve_schedulers(): return 1 / 0\n",
         ": plugserve_schedulers raised ZeroDivisionError: division by zero"),
        (HEAD + "def plugserve_options(): return dict\n",
         ": plugserve_options must return a pydantic model class, got <class 'dict'>"),
        ("import pydantic\nclass O(pydantic.BaseModel):\n    x: int\n" + HEAD + "def plugserve_options(): return O\n",
         ": every option needs a default, 'x' has none"),
        ("def plugserve_authorise(request): pass\n",
         ": function 'plugserve_authorise' is not marked as a hook; rename it, or mark it with @plugserve.hookimpl if "
         "it is meant as a hook. Did you mean 'plugserve_authorize'?"),
    ],
)  # fmt: skip
def test_other_faults_are_one_clear_line(packages, source, expected):
    packages.add("faulty", source)
    message = refusal("faulty")
    assert message.startswith("plugin 'faulty' (faulty 1.0)")
    assert expected in message


def test_missing_entry_point_targets_are_named(packages):
    packages.add("no-module", "", target="nowhere_at_all")
    packages.add("no-attribute", "class Plugin: pass", target="no_attribute:Plugn")
    assert refusal("no-module") == (
        "plugin 'no-module' (no-module 1.0): entry point 'nowhere_at_all' names a module that doesn't exist "
        "(nowhere_at_all)"
    )
    assert "names 'Plugn', which no_attribute doesn't have. Did you mean 'Plugin'?" in refusal("no-attribute")


def test_name_registered_twice_is_refused_when_selected_and_harmless_otherwise(packages):
    packages.add("dist-a", SCHEDULER % ("spt", "a"), entry_point="spt")
    packages.add("dist-b", SCHEDULER % ("spt", "b"), entry_point="spt")
    packages.add("impostor", SCHEDULER % ("fcfs", "impostor"), entry_point="fcfs")
    assert load().factory("schedulers", "fcfs")[0].__module__ == "plugserve.plugins.schedulers.fcfs"
    message = refusal(scheduler="spt")
    assert message.startswith("plugin name 'spt' is registered by dist-")
    assert {"dist-a 1.0", "dist-b 1.0"} <= set(message.replace(";", " and ").replace("by ", " and ").split(" and "))


def test_unknown_names_get_the_nearest_one(packages):
    packages.add("spt", SCHEDULER % ("spt", "spt"))
    assert "no installed plugin is named 'prefix-cach'. Did you mean 'prefix-cache'?" in refusal("prefix-cach")
    assert "install the package that provides it with pip" in refusal("nothing-like-it")
    assert "no scheduler is named 'sptf'. Did you mean 'spt'?" in refusal(scheduler="sptf")
    assert "no attention backend is named 'torch-sdp'. Did you mean 'torch-sdpa'?" in refusal(attention="torch-sdp")
    assert "--no-plugin fcf: no installed plugin is named 'fcf'. Did you mean 'fcfs'?" in refusal(no_plugin=("fcf",))


def test_missing_file_is_named(tmp_path):
    assert refusal(f"{tmp_path}/none.py") == f"--plugin {tmp_path}/none.py: no such file (looked in {tmp_path})"


def test_two_plugins_of_one_name_are_refused(packages, tmp_path):
    packages.add("spt", SCHEDULER % ("spt", "spt"))
    file = tmp_path / "spt.py"
    file.write_text(SCHEDULER % ("mine", "mine"))
    assert refusal("spt", str(file)) == (
        f"two active plugins are named 'spt': spt 1.0 and {file}; rename one, or select only one of them"
    )


def test_bare_checkout_says_how_to_install(monkeypatch):
    monkeypatch.setattr("plugserve.core.plugin_system.plugin_host.discover", dict)
    assert refusal() == (
        "plugserve is not installed in this environment, so that even its default plugins are missing; run "
        "`pip install -e .` in its checkout, or `make serve`"
    )


def test_outdated_installation_says_so(monkeypatch):
    found = {name: entries for name, entries in discover().items() if name != "request-log"}
    monkeypatch.setattr("plugserve.core.plugin_system.plugin_host.discover", lambda: found)
    assert refusal().startswith("the installed plugserve doesn't register its default plugin 'request-log'")


# ---------------------------------------------------------------- report


def test_inspection_survives_plugins_that_break_or_kill_the_interpreter(packages):
    packages.add("good", WITH_OPTIONS)
    packages.add("killer", "import os; os._exit(3)")
    packages.add("noisy", "print('hello')\n" + SCHEDULER % ("n", "n"))
    packages.add("import-error", BROKEN["import-error"][0])
    reports = {report.name: report for report in load().report(inspect=True)}
    assert (reports["good"].state, reports["good"].provides) == ("installed", ["scheduler spt"])
    assert reports["good"].options == ["aging_tokens", "loud", "words", "api_key"]
    assert reports["noisy"].provides == ["scheduler n"]
    assert (reports["killer"].state, reports["killer"].problem) == (
        "broken",
        "importing it ended the process (exit code 3)",
    )
    assert reports["import-error"].problem == BROKEN["import-error"][1]
    assert reports["fcfs"].state == "active"
    assert "killer" not in sys.modules


# ---------------------------------------------------------------- hooks of loaded plugins


def test_hooks_are_called_in_order_of_activation(packages):
    source = "from plugserve import hookimpl\n@hookimpl\ndef plugserve_register_routes(app): app.append(__name__)\n"
    packages.add("one", source)
    packages.add("two", source)
    order = []
    load("one", "two").start("plugserve_register_routes", app=order, engines={})
    assert order == ["one", "two"]


def test_request_log_writes_one_line_that_clients_cannot_forge(caplog):
    from plugserve.plugins.observability import request_log

    caplog.set_level(logging.INFO)
    host = load()
    host.configure(Settings(disable_log_requests=False))
    view = RequestView(id="r1", path="/p", method="POST", headers={}, client="c", model="evil\nfinished id=fake")
    usage = plugserve.RequestUsage(num_prompt_tokens=3, num_generated_tokens=5)
    timings = plugserve.RequestTimings(total_s=1.5, finish_reason="stop")
    host.observe("plugserve_request_finished", request=view, usage=usage, timings=timings)
    host.observe("plugserve_error", request=view, error=RequestError("no such model", status=404))
    host.configure(Settings(disable_log_requests=True))
    host.observe("plugserve_request_finished", request=view, usage=usage, timings=timings)
    request_log.log.disabled = False
    assert [record.getMessage() for record in caplog.records] == [
        'finished id=r1 path=/p model="evil\\nfinished id=fake" prompt_tokens=3 cached_tokens=0 generated_tokens=5 '
        "finish_reason=stop first_token_s=none total_s=1.500",
        'failed id=r1 path=/p model="evil\\nfinished id=fake" status=404 error="RequestError: no such model"',
    ]


def test_docs_hold_the_generated_hook_table():
    docs = Path(__file__).parents[3] / "docs" / "plugins" / "index.md"
    assert hook_table() in docs.read_text()


# ---------------------------------------------------------------- plugins that misbehave while they are loaded


MODULES_THAT_LEAVE = {
    "leaves-in-hook": "from plugserve import hookimpl\n@hookimpl\ndef plugserve_schedulers(): raise SystemExit(0)\n",
    "leaves-in-options": "from plugserve import hookimpl\n@hookimpl\ndef plugserve_options(): raise SystemExit(0)\n",
    "leaves-on-import": "raise SystemExit(0)\n",
}


@pytest.mark.parametrize("name", MODULES_THAT_LEAVE)
def test_plugin_that_exits_is_named_instead_of_ending_the_start_as_a_success(packages, name):
    packages.add(name, MODULES_THAT_LEAVE[name])
    assert refusal(name).startswith(f"plugin {name!r} ({name} 1.0)")
    assert refusal(name).endswith("SystemExit: 0")


HOOKS_IN_A_CLASS = """
from plugserve import hookimpl
class Hooks:
    def __init__(self):
        %s
    @property
    def connection(self):
        raise RuntimeError("not connected")
    @hookimpl
    def plugserve_configure(self, config):
        pass
"""


def test_class_that_exits_is_named(packages):
    packages.add("leaver", HOOKS_IN_A_CLASS % "raise SystemExit(0)", target="leaver:Hooks")
    assert refusal("leaver").endswith("its class can't be made without arguments: SystemExit: 0")


def test_properties_of_a_plugin_object_are_not_read(packages):
    packages.add("connected", HOOKS_IN_A_CLASS % "pass", target="connected:Hooks")
    assert "plugserve_configure" in load("connected").plugins["connected"].hooks


def test_attribute_that_raises_names_the_plugin(packages):
    packages.add(
        "moody",
        """
        from plugserve import hookimpl
        class Mood:
            def __get__(self, *_): raise RuntimeError("not today")
        class Hooks:
            mood = Mood()
            @hookimpl
            def plugserve_configure(self, config): pass
        hooks = Hooks()
        """,
        target="moody:hooks",
    )
    assert refusal("moody").endswith("reading its attribute 'mood' raised RuntimeError: not today")


def test_plugin_that_imports_torch_at_its_top_is_pointed_out(packages, monkeypatch):
    packages.add("heavy", "import sys\nsys.modules['torch'] = sys\n" + SCHEDULER % ("heavy", "heavy"))
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "torch")
    (warning,) = load("heavy").warnings
    assert warning.startswith("plugin 'heavy' (heavy 1.0) imports torch at its top")


def test_plugins_without_torch_warn_of_nothing(packages):
    packages.add("light", SCHEDULER % ("light", "light"))
    assert load("light").warnings == ()


@pytest.mark.parametrize("slot", ["scheduler", "attention", "runner"])
@pytest.mark.parametrize("wanted", ["", " ", "/fcfs", "fcfs/"])
def test_slot_needs_a_name(slot, wanted):
    assert refusal(**{slot: wanted}) == f"--{slot} must be NAME or PLUGIN/NAME, got {wanted!r}"


def test_unknown_plugin_to_turn_off_is_not_told_to_be_installed():
    message = refusal(no_plugin=("fcsf",))
    assert message.startswith("--no-plugin fcsf: no installed plugin is named 'fcsf'. Did you mean 'fcfs'? Installed: ")
    assert "pip" not in message
