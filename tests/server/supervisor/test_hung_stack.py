"""Reading a stack dump: which thread hangs, and whose code it is in."""

from types import SimpleNamespace

import plugserve.plugins.schedulers.fcfs as fcfs
from plugserve.core.wire.stack_dump import parse_stacks
from plugserve.server.supervisor.hung_stack import PluginFiles, find_hang

DUMP = """Thread 0x00007f0000000002 (most recent call first):
  File "{folder}/slow.py", line 7 in forward
  File "/usr/lib/python3.11/concurrent/futures/thread.py", line 58 in run

Current thread 0x00007f0000000001 (most recent call first):
  File "{main}", line 3 in wait
  File "/srv/plugserve/core/engine/engine.py", line 9 in step
"""


def _plugin(object, **provides):
    return SimpleNamespace(object=object, provides=provides)


def _module(path):
    import importlib.util

    path.write_text("def make(): pass\n")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_main_thread_comes_first():
    threads = parse_stacks(DUMP.format(folder="/x", main="/x/y.py"))
    assert [[frame.function for frame in thread] for thread in threads] == [["wait", "step"], ["forward", "run"]]


def test_the_plugin_whose_code_is_innermost_is_named(tmp_path):
    module = _module(tmp_path / "slow.py")
    threads = parse_stacks(DUMP.format(folder="/x", main=tmp_path / "slow.py"))
    found = find_hang(threads, PluginFiles({"slow": _plugin(module)}))
    assert found.plugin == "slow"
    assert str(found).startswith("plugin=slow stack=[wait (")
    assert "\n" not in str(found)


def test_a_plugin_that_waits_in_a_library_is_named(tmp_path):
    module = _module(tmp_path / "slow.py")
    dump = f"""Thread 0x1 (most recent call first):
  File "/usr/lib/python3.11/socket.py", line 3 in readinto
  File "{tmp_path}/slow.py", line 9 in schedule
"""
    assert find_hang(parse_stacks(dump), PluginFiles({"slow": _plugin(module)})).plugin == "slow"


def test_a_main_thread_that_waits_for_another_one_shows_that_one(tmp_path):
    module = _module(tmp_path / "slow.py")
    threads = parse_stacks(DUMP.format(folder=tmp_path, main="/usr/lib/python3.11/threading.py"))
    found = find_hang(threads, PluginFiles({"slow": _plugin(module)}))
    assert found.plugin == "slow"
    assert found.frames[0].function == "forward"


def test_code_of_a_plugins_package_is_the_plugins(tmp_path):
    package = tmp_path / "pack"
    package.mkdir()
    (package / "__init__.py").write_text("")
    module = _module(package / "entry.py")
    dump = f'Thread 0x1 (most recent call first):\n  File "{package}/deep/part.py", line 9 in go\n'
    assert find_hang(parse_stacks(dump), PluginFiles({"packed": _plugin(module)})).plugin == "packed"


def test_a_third_partys_plugin_is_named_before_a_built_in_one(tmp_path):
    module = _module(tmp_path / "slow.py")
    dump = f"""Thread 0x1 (most recent call first):
  File "{fcfs.__file__}", line 3 in schedule
  File "{tmp_path}/slow.py", line 9 in schedule
"""
    plugins = {"fcfs": _plugin(fcfs), "slow": _plugin(module)}
    assert find_hang(parse_stacks(dump), PluginFiles(plugins)).plugin == "slow"
    assert find_hang(parse_stacks(dump), PluginFiles({"fcfs": _plugin(fcfs)})).plugin == "fcfs"


def test_a_hang_outside_plugins_names_none():
    dump = 'Thread 0x1 (most recent call first):\n  File "/usr/lib/python3.11/re.py", line 3 in search\n'
    found = find_hang(parse_stacks(dump), PluginFiles({}))
    assert found.plugin == ""
    assert str(found).startswith("plugin=none")


def test_a_kernel_compiler_is_recognised():
    dump = 'Thread 0x1 (most recent call first):\n  File "/x/triton/compiler/compiler.py", line 3 in compile\n'
    assert find_hang(parse_stacks(dump), PluginFiles({})).is_compiling
    assert not find_hang(parse_stacks(DUMP), PluginFiles({})).is_compiling
