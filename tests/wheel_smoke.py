"""Run in an environment that has the built wheel and the example package, and nothing of the checkout: list plugins,
serve, answer, stop. Names and behaviour are those of the README."""

import json
import re
import subprocess
import sys
from pathlib import Path

import httpx

PLUGSERVE = str(Path(sys.executable).with_name("plugserve"))
EXAMPLES = ("sjf", "xml-tools", "token-rate", "attention-sinks")
ALL_EXAMPLES = (
    *("--scheduler", "sjf", "--attention", "attention-sinks", "--plugin", "token-rate", "--plugin", "xml-tools"),
    *("--enable-auto-tool-choice", "--tool-call-parser", "xml-tools"),
)
QUESTION = {"messages": [{"role": "user", "content": "Name the capital of France."}], "temperature": 0}


def run(*arguments):
    return subprocess.run([PLUGSERVE, *arguments], capture_output=True, text=True, check=True).stdout


def states(*arguments):
    return {plugin["name"]: plugin["state"] for plugin in json.loads(run("plugins", "--json", *arguments))}


def ask(*arguments):
    """Start, ask, stop. Returns the answer and the start-up lines."""
    server = subprocess.Popen(
        [PLUGSERVE, "--host", "127.0.0.1", "--port", "0", *arguments], stderr=subprocess.PIPE, text=True
    )
    lines = []
    try:
        for line in server.stderr:
            lines.append(line)
            ready = re.search(r"ready on (\S+)", line)
            if ready:
                break
        else:
            raise AssertionError("".join(lines))
        assert httpx.get(ready[1] + "/ui/app.js").status_code == 200
        answer = httpx.post(ready[1] + "/v1/chat/completions", json=QUESTION, timeout=60).json()
    finally:
        server.terminate()
    assert server.wait(20) == 0
    return answer["choices"][0]["message"]["content"], "".join(lines)


def test_version_is_the_wheels():
    assert re.fullmatch(r"plugserve \d+\.\d+\.\d+\n", run("--version"))


def test_defaults_are_active_and_the_example_is_installed_only():
    listed = states()
    assert {name for name, state in listed.items() if state == "active"} == {
        "fcfs",
        "torch-sdpa",
        "native-cpu",
        "triton-paged",
        "torch",
        "request-log",
        "tool-parsers",
        "reasoning-parsers",
    }
    assert {listed[name] for name in EXAMPLES} == {"installed"}
    assert {name for name, state in states(*ALL_EXAMPLES).items() if state == "active"} >= set(EXAMPLES)


def test_embedded_model_answers():
    answer, lines = ask()
    assert answer == "The capital of France is Paris."
    assert "slot scheduler: fcfs" in lines


def test_example_scheduler_serves_with_its_option_from_flag_and_file():
    answer, lines = ask("--scheduler", "sjf", "--sjf.aging-tokens", "32")
    assert answer == "The capital of France is Paris."
    assert "slot scheduler: sjf (plugserve-sjf" in lines
    assert "sjf.aging_tokens=32" in lines
    Path("serve.yaml").write_text("scheduler: sjf\nplugins:\n  sjf:\n    aging_tokens: 48\n")
    answer, lines = ask("--config", "serve.yaml")
    assert answer == "The capital of France is Paris."
    assert "sjf.aging_tokens=48" in lines


def test_all_examples_serve_together():
    answer, lines = ask(*ALL_EXAMPLES)
    assert answer == "The capital of France is Paris."
    assert "slot attention: attention-sinks (plugserve-attention-sinks" in lines


def test_new_plugin_package_is_written():
    run("plugin", "new", "my-scheduler", "--kind", "scheduler")
    assert Path("plugserve-my-scheduler/plugserve_my_scheduler/scheduler.py").is_file()


if __name__ == "__main__":
    tests = [function for name, function in sorted(globals().items()) if name.startswith("test_")]
    for test in tests:
        test()
        print(f"wheel: {test.__name__}", flush=True)
    print(f"{len(tests)} passed, 0 failed")
