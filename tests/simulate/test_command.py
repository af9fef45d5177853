"""`plugserve simulate` from its command line to its files."""

from __future__ import annotations

import importlib.util
import json
import random
import xml.etree.ElementTree as ElementTree

import pytest

from plugserve import cli
from plugserve.core.contracts.scheduling import StepTime

STEP_TIME = ["--step-time", "10,200,1000"]
SJF = """
from plugserve import hookimpl
from plugserve.plugins.schedulers.fcfs import FcfsScheduler
from pydantic import BaseModel, ConfigDict

class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")
    step: int = 1

class Slow(FcfsScheduler):
    def __init__(self, options):
        super().__init__()
        self.step = options.step

    def schedule(self, budget):
        import dataclasses
        return super().schedule(dataclasses.replace(budget, max_num_tokens=self.step))

@hookimpl
def plugserve_options():
    return Options

@hookimpl
def plugserve_schedulers():
    return {"slow": lambda context: Slow(context.options)}
"""


@pytest.fixture
def trace(tmp_path):
    """A burst of two users, 60 requests, without a header."""
    rng = random.Random(0)
    lines = [
        {"arrival_s": n * 0.02, "prompt_tokens": rng.choice([20, 200]), "output_tokens": rng.randint(5, 40),
         "user": rng.choice("aaab"), "priority": rng.choice([0, 5])}
        for n in range(60)
    ]  # fmt: skip
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def run(capsys, *words):
    code = cli.main(["simulate", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def table_of(out):
    lines = out.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("scheduler "))
    return {line.split("  ")[0]: line.split() for line in lines[start + 1 :] if line and not line.startswith("TTFT")}


def test_schedulers_are_compared_in_one_table(trace, capsys):
    flags = ("--scheduler", "fcfs", "--scheduler", "priority", "--scheduler=fair", *STEP_TIME)
    code, out, err = run(capsys, "--trace", trace, *flags)
    assert (code, err) == (0, "")
    assert list(table_of(out)) == ["fcfs", "priority", "fair"]
    assert "60 requests of 2 users" in out
    assert "10 ms + 200 us a prompt token + 1000 us a decoding sequence" in out


def test_one_scheduler_is_fcfs_unless_a_setting_says_otherwise(trace, capsys, tmp_path):
    assert list(table_of(run(capsys, "--trace", trace, *STEP_TIME)[1])) == ["fcfs"]
    config = tmp_path / "serve.yaml"
    config.write_text("scheduler: fair\nport: 9000\nplugins:\n  fair:\n    quantum_tokens: 64\n")
    assert list(table_of(run(capsys, "--trace", trace, *STEP_TIME, "--config", config)[1])) == ["fair"]


def test_plugins_are_simulated_with_their_options(trace, capsys, tmp_path):
    (tmp_path / "slow.py").write_text(SJF)
    words = ("--trace", trace, "--plugin", tmp_path / "slow.py", "--scheduler", "fcfs,slow", *STEP_TIME)
    slow = table_of(run(capsys, *words)[1])
    slower = table_of(run(capsys, *words, "--slow.step", "2")[1])
    assert slow["fcfs"] == slower["fcfs"]
    assert float(slow["slow"][1]) > float(slower["slow"][1]) > float(slow["fcfs"][1])


def test_settings_change_what_is_simulated(trace, capsys):
    plain = table_of(run(capsys, "--trace", trace, *STEP_TIME)[1])["fcfs"]
    narrow = table_of(run(capsys, "--trace", trace, *STEP_TIME, "--max-num-seqs", "2")[1])["fcfs"]
    smooth = table_of(run(capsys, "--trace", trace, *STEP_TIME, "--max-itl-ms", "25")[1])["fcfs"]
    faster = table_of(run(capsys, "--trace", trace, *STEP_TIME, "--rate", "0.05")[1])["fcfs"]
    ttft, tpot_p99 = 1, 4
    assert float(narrow[ttft]) > float(plain[ttft]) > float(faster[ttft])
    assert float(smooth[tpot_p99]) < float(plain[tpot_p99])


def test_targets_decide_goodput(trace, capsys):
    def goodput(*targets):
        return float(table_of(run(capsys, "--trace", trace, *STEP_TIME, *targets)[1])["fcfs"][5].rstrip("%"))

    assert goodput() == 100
    assert 0 < goodput("--ttft-ms", "400") < 100
    assert goodput("--tpot-ms", "0.01") == 0


def test_header_gives_step_times_and_sizes_that_flags_override(trace, capsys):
    header = {"plugserve_trace": 1, "block_size": 32, "num_blocks": 100, "max_num_seqs": 5}
    header |= {"max_num_batched_tokens": 64, "step_time": {"base_ms": 7, "per_token_us": 50}}
    trace.write_text(json.dumps(header) + "\n" + trace.read_text())
    out = run(capsys, "--trace", trace)[1]
    assert "7 ms + 50 us a prompt token + 50 us a decoding sequence" in out
    assert "100 KV blocks of 32 tokens, at most 5 sequences and 64 tokens a step" in out
    out = run(capsys, "--trace", trace, "--block-size", "16", "--max-num-seqs", "9", *STEP_TIME)[1]
    assert "10 ms + 200 us" in out
    assert "100 KV blocks of 16 tokens, at most 9 sequences and 64 tokens a step" in out


def test_blocks_in_host_memory_are_those_of_the_trace_unless_switched_off(trace, capsys):
    header = {"plugserve_trace": 1, "num_blocks": 100, "num_host_blocks": 50}
    trace.write_text(json.dumps(header) + "\n" + trace.read_text())
    assert "100 KV blocks of 16 tokens and 50 in host memory, at most" in run(capsys, "--trace", trace, *STEP_TIME)[1]
    out = run(capsys, "--trace", trace, *STEP_TIME, "--swap-space", "0")[1]
    assert "100 KV blocks of 16 tokens, at most" in out


def test_measured_steps_are_fitted_without_their_outliers(trace, capsys):
    true, rng = StepTime(0.008, 0.0001, 0.0006), random.Random(1)
    steps = []
    for n in range(400):
        prompt, rows = rng.choice([0, rng.randint(1, 200)]), rng.randint(1, 12)
        ms = true.predict_s(prompt + rows, rows) * 1e3 * (40 if n % 50 == 0 else rng.uniform(0.95, 1.05))
        steps.append([prompt, rows, 0, ms])
    trace.write_text(trace.read_text() + "\n" + json.dumps({"steps": steps}))
    out = run(capsys, "--trace", trace)[1]
    assert "8 outliers left out" in out
    base, per_token, per_row = (float(part.split()[0]) for part in out.split("step time: ")[1].split(" + ")[:3])
    assert base == pytest.approx(8, rel=0.1)
    assert per_token == pytest.approx(100, rel=0.1)
    assert per_row == pytest.approx(600, rel=0.1)


def test_reports_hold_tables_and_plots(trace, capsys, tmp_path):
    names = ("--scheduler", "fcfs", "--scheduler", "fair")
    for suffix in ("html", "svg"):
        assert run(capsys, "--trace", trace, *STEP_TIME, *names, "--out", tmp_path / f"r.{suffix}")[0] == 0
    page, svg = (tmp_path / "r.html").read_text(), (tmp_path / "r.svg").read_text()
    root = ElementTree.fromstring(svg)
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"fcfs", "fair", "goodput", "a", "b"} <= set(texts)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}rect"))) > 10
    assert svg in page
    assert page.count("<table>") == 2
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")  # works offline


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_png_is_drawn_by_matplotlib(trace, capsys, tmp_path):
    assert run(capsys, "--trace", trace, *STEP_TIME, "--out", tmp_path / "r.png")[0] == 0
    assert (tmp_path / "r.png").read_bytes()[:4] == b"\x89PNG"


def test_png_without_matplotlib_is_refused_before_any_work(trace, capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    code, out, err = run(capsys, "--trace", trace, *STEP_TIME, "--out", tmp_path / "r.png")
    assert (code, out) == (2, "")
    assert "pip install 'plugserve[simulate]'" in err


def test_json_holds_every_figure_by_user_too(trace, capsys, tmp_path):
    run(capsys, "--trace", trace, *STEP_TIME, "--json", tmp_path / "r.json")
    (figures,) = json.loads((tmp_path / "r.json").read_text())["runs"]
    assert (figures["name"], figures["num_requests"]) == ("fcfs", 60)
    assert [user["user"] for user in figures["users"]] == ["a", "b"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs a trace: --trace FILE"),
        (["--trace"], "--trace needs a value"),
        (["--trace", "nowhere.jsonl"], "nowhere.jsonl: No such file"),
        (["--trace", "TRACE"], "the trace has no measured steps; set the time of a step: --step-time"),
        (["--trace", "TRACE", "--trace", "TRACE"], "--trace is given twice"),
        (["--trace", "TRACE", "--step-time", "10"], "--step-time must be BASE_MS,TOKEN_US"),
        (["--trace", "TRACE", "--step-time", "0,0"], "--step-time must be"),
        (["--trace", "TRACE", "--step-time", "10,-1"], "--step-time must be"),
        (["--trace", "TRACE", "--ttft-ms", "soon"], "--ttft-ms must be a number above 0, got 'soon'"),
        (["--trace", "TRACE", "--rate", "0"], "--rate must be a number above 0, got '0'"),
        (["--trace", "TRACE", *STEP_TIME, "--out", "x.pdf"], "--out must end in .html, .svg, .png"),
        (["--trace", "TRACE", *STEP_TIME, "--out", "/no/where/x.svg"], "there is no folder /no/where"),
        (["--trace", "TRACE", *STEP_TIME, "--scheduler", "fcsf"], "Did you mean 'fcfs'?"),
        (["--trace", "TRACE", *STEP_TIME, "--scheduler", "fcfs,fiar"], "Did you mean 'fair'?"),
        (["--trace", "TRACE", *STEP_TIME, "--num-gpu-blocks-override", "3"], "but only 48 fit; raise"),
        (["--trace", "TRACE", *STEP_TIME, "--max-num-seq", "3"], "--max-num-seqs"),
        (["--trace", "TRACE", *STEP_TIME, "--fair.quantum", "3"], "fair"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(trace, capsys, words, message):
    code, _, err = run(capsys, *[str(trace) if word == "TRACE" else word for word in words])
    assert code == 2
    assert message in err
    assert err.startswith("plugserve: error: ")
    assert len(err.splitlines()) == 1


def test_failing_scheduler_is_reported(trace, capsys, tmp_path):
    (tmp_path / "slow.py").write_text(SJF.replace("self.step = options.step", "self.step = -1"))
    words = ("--plugin", tmp_path / "slow.py", "--scheduler", "slow", *STEP_TIME)
    code, out, err = run(capsys, "--trace", trace, *words)
    assert code == 0
    assert list(table_of(out)) == ["slow"]
    assert "plugserve: warning:" in err or "slow" in err


def test_help_names_every_flag_of_its_own(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for flag in ("--trace", "--scheduler", "--step-time", "--ttft-ms", "--tpot-ms", "--rate", "--out", "--json"):
        assert flag in out
