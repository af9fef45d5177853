"""The client suites: the packages that each needs, how it runs, and how its results become cases.

Each suite runs in an environment of its own, created once below a work folder; plugserve's is not changed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

CASES = Path(__file__).parent / "cases"


@dataclass(frozen=True, slots=True)
class Case:
    """One line of a result table. status: passed, failed or skipped."""

    suite: str
    name: str
    status: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """A running server: its base URL without /v1, and the name of its model."""

    url: str
    model: str

    @property
    def environment(self) -> dict[str, str]:
        """The variables that cases/report.py reads, without proxies, since the server is local."""
        here = {"PLUGSERVE_URL": self.url, "PLUGSERVE_MODEL": self.model, "NO_PROXY": "127.0.0.1,localhost"}
        return dict(os.environ) | here


@dataclass(frozen=True, slots=True)
class Suite:
    """packages: what pip (or npm) installs. run(folder, target) runs it in its folder. needs_model: it doesn't
    run with the scripted runner. server_args: further arguments of its server."""

    name: str
    packages: tuple[str, ...]
    run: Callable[[Path, Target], list[Case]]
    is_npm: bool = False
    needs_model: bool = False
    server_args: tuple[str, ...] = ()
    sees_plugserve: bool = False

    def install(self, work: Path) -> Path:
        """The suite's folder, installed on first use. Raises CalledProcessError."""
        folder = work / self.name
        if not (folder / ".installed").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            _npm_install(folder, self.packages) if self.is_npm else _pip_install(folder, self)
            (folder / ".installed").touch()
        return folder


def _npm_install(folder: Path, packages: tuple[str, ...]) -> None:
    subprocess.run(["npm", "init", "-y"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["npm", "install", "--silent", *packages], cwd=folder, check=True)


def _pip_install(folder: Path, suite: Suite) -> None:
    """A virtual environment; with plugserve's packages visible, it uses those (torch)."""
    venv.create(folder / "venv", with_pip=True)
    if suite.sees_plugserve:
        site = next((folder / "venv" / "lib").glob("python*/site-packages"))
        seen = [path for path in sys.path if path.endswith("site-packages")]
        (site / "plugserve_environment.pth").write_text("\n".join(seen) + "\n")
    pip = [str(_python(folder)), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    subprocess.run([*pip, *suite.packages], check=True)


def _python(folder: Path) -> Path:
    return folder / "venv" / "bin" / "python"


def _ran(command: list[str], target: Target, folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, env=target.environment, capture_output=True, text=True, timeout=3600)
    (folder / "stderr.txt").write_text(done.stderr)
    return done.stdout


def _printed_cases(suite: str, output: str) -> list[Case]:
    """Cases that a file of cases/ printed; no case at all is a failure of the suite."""
    lines = [json.loads(line) for line in output.splitlines() if line.startswith('{"case"')]
    cases = [Case(suite, line["case"], line["status"], line["detail"]) for line in lines]
    return cases or [Case(suite, "(start)", "failed", "the suite printed nothing; see stderr.txt in its folder")]


def _script(name: str, file: str) -> Callable[[Path, Target], list[Case]]:
    """A file of cases/ that prints its cases."""

    def run(folder: Path, target: Target) -> list[Case]:
        return _printed_cases(name, _ran([str(_python(folder)), str(CASES / file)], target, folder))

    return run


def _run_npm(folder: Path, target: Target) -> list[Case]:
    shutil.copy(CASES / "openai_npm.mjs", folder)  # modules are found from where the file lies
    return _printed_cases("openai-npm", _ran(["node", "openai_npm.mjs"], target, folder))


def _run_langchain(folder: Path, target: Target) -> list[Case]:
    report = folder / "junit.xml"
    report.unlink(missing_ok=True)
    options = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(folder), "-o", "asyncio_mode=auto"]
    options += ["-o", "asyncio_default_test_loop_scope=session"]  # the client keeps its connections
    _ran([str(_python(folder)), "-m", "pytest", *options, f"--junitxml={report}", str(CASES / "langchain_suite.py")],
         target, folder)  # fmt: skip
    return _junit_cases("langchain-openai", report)


def _junit_cases(suite: str, report: Path) -> list[Case]:
    cases = []
    for entry in ElementTree.parse(report).iter("testcase"):
        bad = [child for child in entry if child.tag in ("failure", "error")]
        skipped = entry.find("skipped")
        status = "failed" if bad else "passed" if skipped is None else "skipped"
        cause = bad[0] if bad else skipped
        detail = "" if cause is None else " ".join((cause.get("message") or "").split())[:400]
        cases.append(Case(suite, entry.get("name", "?"), status, detail))
    return cases


def _run_llm_comply(folder: Path, target: Target) -> list[Case]:
    cases = []
    for format in ("openai-chat", "open-responses", "anthropic"):
        options = ["--format", format, "-u", target.url + "/v1", "-k", "none", "-m", target.model]
        output = _ran([str(folder / "venv/bin/llm-comply"), *options, "--timeout", "300", "--json"], target, folder)
        for result in json.loads(output)["results"]:
            detail = "; ".join(result.get("errors") or [result.get("skip_reason") or ""])
            cases.append(Case("llm-comply", f"{format}: {result['id']}", result["status"], detail[:400]))
    return cases


def _run_schemathesis(folder: Path, target: Target) -> list[Case]:
    """One case for each operation, and one for the number of generated requests."""
    reports = folder / "reports"
    shutil.rmtree(reports, ignore_errors=True)
    options = ["-c", "not_a_server_error", "-n", "150", "--continue-on-failure", "--request-timeout", "120",
               "--no-color", "--seed", "1", "--report", "junit", "--report-dir", str(reports)]  # fmt: skip
    program = str(folder / "venv/bin/schemathesis")
    output = _ran([program, "run", target.url + "/openapi.json", *options], target, folder)
    (folder / "output.txt").write_text(output)
    found = re.search(r"(\d+) generated", output)
    num_cases = int(found[1]) if found else 0
    status = "passed" if num_cases >= 2000 else "failed"
    counted = Case("schemathesis", "(generated cases)", status, f"{num_cases} cases")
    return [counted, *_junit_cases("schemathesis", next(reports.glob("junit*.xml")))]


def _run_lm_eval(folder: Path, target: Target) -> list[Case]:
    output = _ran([str(_python(folder)), str(CASES / "lm_eval_task.py"), str(folder / "work")], target, folder)
    return _printed_cases("lm-eval", output)


SUITES: Mapping[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite("openai", ("openai", "numpy"), _script("openai", "openai_python.py")),
        Suite("openai-npm", ("openai", "zod"), _run_npm, is_npm=True),
        Suite("anthropic", ("anthropic",), _script("anthropic", "anthropic_python.py")),
        Suite("langchain-openai", ("langchain-openai", "langchain-tests"), _run_langchain),
        Suite("litellm", ("litellm",), _script("litellm", "litellm_client.py")),
        Suite("instructor", ("instructor",), _script("instructor", "instructor_client.py")),
        Suite("pydantic-ai", ("pydantic-ai-slim[openai]",), _script("pydantic-ai", "pydantic_ai_client.py")),
        Suite("llm-comply", ("llm-comply",), _run_llm_comply, server_args=("--require-model",)),
        Suite("schemathesis", ("schemathesis",), _run_schemathesis, server_args=("--max-model-len", "256")),
        Suite("lm-eval", ("lm-eval[api]",), _run_lm_eval, needs_model=True, sees_plugserve=True),
    )
}
