"""Installed plugin packages without pip: a folder on sys.path with a module and its *.dist-info."""

import sys
import textwrap
from pathlib import Path


class FakeDistributions:
    """Adds distributions for the length of one test. folder can be handed to a child process as PYTHONPATH."""

    def __init__(self, folder: Path, monkeypatch) -> None:
        self.folder = folder / "site"
        self.folder.mkdir()
        self._monkeypatch = monkeypatch
        monkeypatch.syspath_prepend(str(self.folder))

    def add(self, name: str, source: str, *, entry_point: str | None = None, target: str | None = None) -> Path:
        """Add distribution NAME 1.0 whose module NAME (with underscores) holds source; imports of it leave a mark."""
        module = name.replace("-", "_")
        code = textwrap.dedent(source)
        (self.folder / f"{module}.py").write_text(
            f"import pathlib; pathlib.Path(__file__).with_suffix('.imported').touch()\n{code}"
        )
        info = self.folder / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[plugserve]\n{entry_point or name} = {target or module}\n")
        self._monkeypatch.delitem(sys.modules, module, raising=False)
        return self.folder / f"{module}.py"

    def was_imported(self, name: str) -> bool:
        return (self.folder / f"{name.replace('-', '_')}.imported").exists()


SCHEDULER = """
from plugserve import hookimpl

@hookimpl
def plugserve_schedulers():
    return {"%s": lambda context: "made by %s"}
"""

WITH_OPTIONS = """
from pydantic import BaseModel, ConfigDict, Field, SecretStr
from plugserve import hookimpl

class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")
    aging_tokens: int = Field(32, ge=0, description="How fast a job ages.")
    loud: bool = False
    words: list[str] = []
    api_key: SecretStr | None = None

@hookimpl
def plugserve_options():
    return Options

@hookimpl
def plugserve_schedulers():
    return {"spt": lambda context: context.options}
"""

BROKEN = {
    "import-error": (
        "import no_such_module_anywhere\n",
        "plugin 'import-error' (import-error 1.0) can't be imported: "
        "ModuleNotFoundError: No module named 'no_such_module_anywhere'",
    ),
    "misspelt-hook": (
        "from plugserve import hookimpl\n@hookimpl\ndef plugserve_scheduler(): return {}\n",
        "plugin 'misspelt-hook' (misspelt-hook 1.0): there is no hook 'plugserve_scheduler'. "
        "Did you mean 'plugserve_schedulers'?",
    ),
    "unmarked-hook": (
        "from plugserve import hookimpl\n@hookimpl\ndef plugserve_schedulers(): return {}\n"
        "def plugserve_authorize(request): return None\n",
        "plugin 'unmarked-hook' (unmarked-hook 1.0): function 'plugserve_authorize' is not marked as a hook; "
        "put @plugserve.hookimpl above it",
    ),
    "clashing-name": (
        SCHEDULER % ("fcfs", "the other one"),
        "plugin 'clashing-name' (clashing-name 1.0) and plugin 'fcfs' (plugserve {version}) both provide the "
        "scheduler 'fcfs'; turn one off: --no-plugin fcfs keeps that of clashing-name, and leaving clashing-name out "
        "keeps that of fcfs",
    ),
    "wrong-signature": (
        "from plugserve import hookimpl\n@hookimpl\ndef plugserve_authorize(reqest): return None\n",
        "plugin 'wrong-signature' (wrong-signature 1.0): wrong signature plugserve_authorize(reqest), the "
        "specification is plugserve_authorize(request); 'reqest' is not one of its arguments. Did you mean 'request'?",
    ),
}
"""Source and exact message of the five ways to break a plugin, by distribution name. {version} is plugserve's."""
