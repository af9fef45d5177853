"""The commands as a user runs them: exit codes, one-line errors, and output."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest

import plugserve
from plugserve import cli
from plugserve.core.settings.settings import Settings
from tests.fake_distributions import BROKEN, SCHEDULER, WITH_OPTIONS, FakeDistributions


@pytest.fixture
def packages(tmp_path, monkeypatch):
    return FakeDistributions(tmp_path, monkeypatch)


@pytest.fixture
def served(monkeypatch):
    """Replace the server by one that records its settings."""
    calls = []

    def serve(settings, host):
        calls.append(SimpleNamespace(settings=settings, host=host))
        return 0

    monkeypatch.setitem(sys.modules, "plugserve.server.supervisor.main", SimpleNamespace(serve=serve))
    monkeypatch.setattr("plugserve.commands.serve.set_up_logging", lambda level, form, file: None)
    return calls


def run(*arguments, packages=None, **environ):
    """Run the command in a process of its own."""
    env = os.environ | environ | ({"PYTHONPATH": str(packages.folder)} if packages else {})
    return subprocess.run(
        [sys.executable, "-m", "plugserve", *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# ---------------------------------------------------------------- serve


@pytest.mark.parametrize("command", [[], ["serve"]])
def test_serving_is_the_default_command(served, command):
    assert cli.main([*command, "some/model", "--max-num-seqs", "8"]) == 0
    assert served[0].settings == Settings(model=["some/model"], max_num_seqs=8)
    defaults = [
        "request-log",
        "torch",
        "tool-parsers",
        "reasoning-parsers",
        "fcfs",
        "triton-paged",
        "torch-sdpa",
        "native-cpu",
    ]
    assert served[0].host.active_names == defaults


def test_plugin_is_used_only_with_its_flag_and_takes_its_option_from_flag_and_file(served, packages, tmp_path):
    packages.add("spt", WITH_OPTIONS)
    file = tmp_path / "serve.yaml"
    file.write_text("scheduler: spt\nplugins:\n  spt:\n    aging_tokens: 7\n")
    assert cli.main([]) == 0
    assert cli.main(["--scheduler", "spt", "--spt.aging-tokens", "5"]) == 0
    assert cli.main(["--config", str(file)]) == 0
    assert ["spt" in call.host.active_names for call in served] == [False, True, True]
    assert [call.host.options("spt", call.settings).aging_tokens for call in served[1:]] == [5, 7]


def test_load_format_that_no_plugin_provides_stops_the_start(served, capsys):
    assert cli.main(["--load-format", "safetensor"]) == 2
    assert "no active plugin provides the weight format 'safetensor'. Did you mean 'safetensors'?" in (
        capsys.readouterr().err
    )
    assert cli.main(["--load-format", "pt"]) == 0
    assert len(served) == 1


def test_enable_prefix_caching_is_the_plugin(served):
    assert cli.main(["--enable-prefix-caching"]) == 0
    assert cli.main(["--plugin", "prefix-cache"]) == 0
    assert all(call.host.names("prefix_caches") == ["prefix-cache"] for call in served)


def test_warnings_are_logged(served, caplog):
    assert cli.main(["--max-lora-size", "16", "--api-server-count", "2"]) == 0
    assert [record.getMessage() for record in caplog.records] == [
        "--api-server-count is taken as --api-workers",
        "--max-lora-size 16 has no effect: nothing reads it",
    ]


@pytest.mark.parametrize("name", BROKEN)
def test_broken_plugin_stops_the_start_when_selected_and_not_otherwise(served, packages, capsys, name):
    source, message = BROKEN[name]
    packages.add(name, source)
    assert cli.main([]) == 0
    assert capsys.readouterr().err == ""
    assert cli.main(["--plugin", name]) == 2
    assert capsys.readouterr().err == f"plugserve: error: {message.format(version=plugserve.__version__)}\n"
    assert len(served) == 1


def test_error_from_the_server_is_one_line(served, capsys, monkeypatch):
    def serve(settings, host):
        raise plugserve.ModelError("no such model\nat all")

    monkeypatch.setattr(sys.modules["plugserve.server.supervisor.main"], "serve", serve)
    assert cli.main([]) == 2
    assert capsys.readouterr().err == "plugserve: error: no such model at all\n"


def test_ctrl_c_is_130(served, monkeypatch):
    def serve(settings, host):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["plugserve.server.supervisor.main"], "serve", serve)
    assert cli.main([]) == 130


def test_command_in_the_wrong_place_is_reported(served, capsys):
    assert cli.main(["--enforce-eager", "plugins"]) == 2
    assert capsys.readouterr().err == "plugserve: error: the command comes first: plugserve plugins ...\n"


@pytest.mark.parametrize(
    ("words", "meant"),
    [(["plugns"], "plugins"), (["confg", "show"], "config"), (["modles"], "models"), (["serv", "some/model"], "serve")],
)
def test_misspelt_command_is_no_model(served, capsys, words, meant):
    assert cli.main(words) == 2
    line = f"{words[0]!r} is no command. Did you mean `plugserve {meant}`? A model is named with --model"
    assert capsys.readouterr().err == f"plugserve: error: {line}\n"


def test_model_with_a_name_like_a_command_is_a_model(served, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    for words in (["model"], ["--model", "modles"], ["serve", "modles"], ["org/plugns"], ["gpt2"]):
        assert cli.main(words) == 0
    assert [call.settings.model for call in served] == [["model"], ["modles"], ["modles"], ["org/plugns"], ["gpt2"]]


def test_process_exits_with_2_and_no_traceback(packages):
    packages.add("import-error", BROKEN["import-error"][0])
    done = run("--plugin", "import-error", packages=packages)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"plugserve: error: {BROKEN['import-error'][1]}\n"


def test_environment_reaches_the_command():
    done = run("plugins", PLUGSERVE_MAX_NUM_SEQ="3")
    assert done.returncode == 2
    assert "Did you mean 'PLUGSERVE_MAX_NUM_SEQS'?" in done.stderr


# ---------------------------------------------------------------- plugins


def listing(capsys, *arguments):
    assert cli.main(["plugins", "--json", *arguments]) == 0
    return {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}


def test_plugins_lists_active_and_installed_plugins(packages, capsys):
    packages.add("spt", SCHEDULER % ("spt", "spt"))
    entries = listing(capsys)
    assert (entries["spt"]["state"], entries["spt"]["provides"]) == ("installed", None)
    assert (entries["spt"]["distribution"], entries["spt"]["version"]) == ("spt", "1.0")
    assert (entries["fcfs"]["state"], entries["fcfs"]["provides"]) == ("active", ["scheduler fcfs"])
    assert not packages.was_imported("spt")


def test_plugins_respects_the_selection(packages, capsys, tmp_path):
    packages.add("spt", WITH_OPTIONS)
    file = tmp_path / "serve.toml"
    file.write_text('scheduler = "spt"\nno_plugin = ["request-log"]\n')
    entries = listing(capsys, "--config", str(file), "--plugin", "prefix-cache")
    states = {name: entry["state"] for name, entry in entries.items()}
    assert states == {
        "prefix-cache": "active",
        "tool-parsers": "active",
        "reasoning-parsers": "active",
        "spt": "active",
        "torch-sdpa": "active",
        "triton-paged": "active",
        "torch": "active",
        "fcfs": "installed",
        "native-cpu": "active",
        "ngram": "installed",
        "draft-model": "installed",
        "priority": "installed",
        "fair": "installed",
        "lora": "installed",
        "mp": "installed",
        "ray": "installed",
        "request-log": "installed",
    }


def test_inspect_lists_broken_plugins(packages, capsys):
    packages.add("import-error", BROKEN["import-error"][0])
    entry = listing(capsys, "--inspect")["import-error"]
    assert (entry["state"], entry["problem"]) == ("broken", BROKEN["import-error"][1])


def test_table_is_aligned(packages):
    packages.add("a-plugin-with-a-long-name", SCHEDULER % ("a", "a"))
    done = run("plugins", packages=packages)
    lines = done.stdout.splitlines()
    column = lines[0].index("STATE")
    assert done.returncode == 0
    assert all(line[column - 1] == " " and line[column:].startswith(("STATE", "active", "installed")) for line in lines)


def test_switches_of_plugins_are_unknown_to_serve(served, capsys):
    assert cli.main(["--json"]) == 2
    assert "unknown setting '--json'" in capsys.readouterr().err


# ---------------------------------------------------------------- version, help, weight


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"plugserve {plugserve.__version__}\n"


def test_help_shows_the_options_of_selected_plugins(packages, capsys):
    packages.add("spt", WITH_OPTIONS)
    for topic in ("--help", "-h", "--help=all", "--help=spt"):
        assert cli.main([topic, "--scheduler", "spt"]) == 0
        assert "Options of plugin spt:\n  --spt.aging-tokens N" in capsys.readouterr().out
    assert cli.main(["--help"]) == 0
    assert "Options of plugin" not in capsys.readouterr().out


def test_help_on_all_is_grouped(capsys):
    assert cli.main(["--help=all"]) == 0
    titles = ["Model, data:", "Performance, memory:", "Plugins:", "Server:"]
    assert [line for line in capsys.readouterr().out.splitlines() if line in titles] == titles


def test_help_on_a_group_can_be_asked_of_any_command(capsys):
    for command in ([], ["serve"], ["plugins"], ["simulate"]):
        assert cli.main([*command, "--help=server"]) == 0
        assert capsys.readouterr().out.startswith("Server:\n  --host ADDRESS")


def test_help_on_an_unknown_topic_is_an_error(capsys):
    assert cli.main(["--help=nonsense"]) == 2
    assert "--help=nonsense: no such topic. Topics: model, parallel" in capsys.readouterr().err


def test_help_comes_although_a_plugin_is_broken(packages, capsys):
    packages.add("import-error", BROKEN["import-error"][0])
    assert cli.main(["--help", "--plugin", "import-error"]) == 2
    printed = capsys.readouterr()
    assert printed.out.startswith("usage: plugserve")
    assert printed.err == f"plugserve: error: {BROKEN['import-error'][1]}\n"


def test_listing_plugins_imports_neither_torch_nor_the_server():
    program = """
    import sys
    from plugserve.cli import main
    main(["plugins", "--plugin", "prefix-cache"])
    heavy = {"torch", "sanic", "transformers", "zmq"} & set(sys.modules)
    sys.exit(f"imported {heavy}" if heavy else 0)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_closed_output_pipe_is_no_error():
    child = subprocess.Popen(
        [sys.executable, "-m", "plugserve", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    child.stdout.close()
    assert child.stderr.read() == b""
    assert child.wait() in (0, -signal.SIGPIPE)


def test_json_list_is_json_although_a_plugin_prints(packages):
    packages.add("chatty", "print('hello')\n" + SCHEDULER % ("chatty", "chatty"))
    done = run("plugins", "--json", "--plugin", "chatty", packages=packages)
    assert "chatty" in [one["name"] for one in json.loads(done.stdout)]
    assert "hello" in done.stderr
