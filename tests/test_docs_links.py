"""The pages for users name only files, headings, modules and flags that exist."""

import re
import tomllib
from pathlib import Path

import pytest

import plugserve
from plugserve.core.settings.old_names import OLD_NAMES
from plugserve.core.settings.setting_names import KnownNames, flag
from plugserve.core.settings.settings import setting_facts
from plugserve.core.settings.vllm_names.vllm_settings import VLLM_SETTINGS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md")),
         *sorted(ROOT.glob("examples/*/README.md"))]  # fmt: skip
FOLDERS = ("plugserve", "docs", "tests", "benchmarks", "examples", "tools", "deploy")
FOREIGN_FLAGS = {"--constraint", "--model_args"}  # pip, lm-eval
FOREIGN_FLAGS |= {"--now", "--profile", "--build", "--from-file"}  # systemctl, docker compose, kubectl
FOREIGN_FLAGS |= {"--head", "--node-ip-address", "--address", "--num-cpus", "--generate"}  # ray start
PLACEHOLDERS = {"--name", "--no-name", "--greeter.name"}

LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(rf"(?<![\w/.])(?:\./)?((?:{'|'.join(FOLDERS)})/[\w./-]*\w)")
READERS_FILE = re.compile(r"```python\n# \S+\.py\n")  # names a file that the reader writes
MODULE = re.compile(r"python -m\s+((?:plugserve|benchmarks|tests)[\w.]*)")
PUBLIC_NAME = re.compile(r"`plugserve\.([A-Z]\w+|hookimpl|llama_like)`")
FLAG = re.compile(r"(?<![\w-])--[a-z][\w.-]*\w")

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def anchors(page):
    """The anchors that a renderer makes of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def literal_flags():
    """Flags that plugserve's commands and the benchmarks read: string literals in their sources."""
    sources = [*ROOT.glob("plugserve/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]
    return {found for source in sources for found in re.findall(r'"(--[a-z][a-z-]*)"', source.read_text())}


def option_sources():
    """The source text that declares a plugin's options, by plugin: of built-in plugins and of example packages."""
    found = {}
    for project in [ROOT / "pyproject.toml", *ROOT.glob("examples/*/pyproject.toml")]:
        plugins = tomllib.loads(project.read_text())["project"]["entry-points"]["plugserve"]
        for name, target in plugins.items():
            file = project.parent / target.partition(":")[0].replace(".", "/")
            sources = file.glob("*.py") if file.is_dir() else [file.with_suffix(".py")]
            found[name] = "".join(source.read_text() for source in sources)
    return found


@pytest.fixture(scope="module")
def known_flags():
    settings = {flag(name) for name in (*setting_facts(), *OLD_NAMES, *VLLM_SETTINGS)}
    return settings | {name.replace("--", "--no-", 1) for name in settings} | literal_flags()


@pages
def test_links_lead_to_files_and_headings(page):
    for link in LINK.findall(page.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pages
def test_paths_exist(page):
    text = READERS_FILE.sub("", page.read_text())
    missing = [path for path in PATH.findall(text) if not (ROOT / path).exists()]
    assert missing == []


@pages
def test_modules_and_public_names_exist(page):
    text = page.read_text()
    for module in MODULE.findall(text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    assert [name for name in PUBLIC_NAME.findall(text) if not hasattr(plugserve, name)] == []


def is_key_of_a_table(name):
    return KnownNames().find_json(name) is not None


@pages
def test_flags_are_known(page, known_flags):
    options, unknown = option_sources(), []
    for name in set(FLAG.findall(page.read_text())) - FOREIGN_FLAGS - PLACEHOLDERS:
        plugin, dot, option = name.removeprefix("--").partition(".")
        if dot:
            is_known = is_key_of_a_table(name) or f"\n    {option.replace('-', '_')}: " in options.get(plugin, "")
        else:
            is_known = name in known_flags
        if not is_known:
            unknown.append(name)
    assert unknown == []
