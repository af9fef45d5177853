"""The report of `plugserve doctor`: each model's ledger, whether all fit together, and the machine's checks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from plugserve.commands.machine_checks import FAIL, Check
from plugserve.commands.rank_table import RankTable, rank_table
from plugserve.core.contracts.memory import MemoryLedger
from plugserve.core.contracts.model import DecoderSpec
from plugserve.core.engine.memory_check import MemoryCheck, advice
from plugserve.core.errors import ModelError
from plugserve.core.memory.fixes import Fix
from plugserve.core.memory.ledger_text import as_dict, problem, shown_bytes, table
from plugserve.core.model_files.architectures import describe
from plugserve.core.model_files.encoder_files import GENERATE
from plugserve.core.model_files.length_warnings import length_warning
from plugserve.core.model_files.model_source import ModelSource, read_config, resolve
from plugserve.core.model_files.stored_weights import NO_WEIGHTS, stored_weights
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.model_entries import ModelEntry, settings_of
from plugserve.core.settings.settings import Settings

_NONE = "the runner predicts no memory (it is no plugserve.MemoryEstimator)"


@dataclass(frozen=True, slots=True)
class ModelMemory:
    """One model's prediction; ledger is None where its runner makes none. fixes are there if it doesn't fit.
    is_loaded_first: it loads at the start, or stays loaded. warning: what it should not be served with, or "". ranks
    are its processes, if it has several."""

    name: str
    ledger: MemoryLedger | None
    fixes: Sequence[Fix]
    is_loaded_first: bool = True
    warning: str = ""
    ranks: RankTable | None = None

    @property
    def fits(self) -> bool:
        has_room = self.ranks is None or not self.ranks.problem
        return has_room and (self.ledger is None or self.ledger.fits)

    def as_text(self) -> str:
        warning = f"\nwarning: {self.warning}" if self.warning else ""
        if self.ledger is None:
            return f"{self.name}: {_NONE}{warning}"
        fits = self.ledger.fits
        verdict = "it fits" if fits else f"does not fit: {problem(self.ledger)}\n{advice(list(self.fixes))}"
        ranks = f"\n{self.ranks.as_text()}" if self.ranks is not None else ""
        head = f"{self.name} as {self.ledger.dtype} on {self.ledger.device}"
        return f"{head}\n{table(self.ledger)}\n{verdict}{ranks}{warning}"

    def as_dict(self) -> dict[str, Any]:
        ledger, warning = self.ledger, {"warning": self.warning} if self.warning else {}
        if ledger is None:
            return {
                "name": self.name,
                "fits": True,
                "problem": "",
                "fixes": [],
                "ledger": None,
                "note": _NONE,
            } | warning
        return warning | {
            "name": self.name,
            "fits": self.fits,
            "problem": problem(ledger) or (self.ranks.problem if self.ranks is not None else ""),
            "ranks": self.ranks.as_dict() if self.ranks is not None else None,
            "fixes": [{"flags": str(fix), "changes": dict(fix.changes)} for fix in self.fixes],
            "ledger": as_dict(ledger),
        }


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """together is why models that fit one by one don't fit at the same time, "" where they do."""

    models: Sequence[ModelMemory]
    together: str
    checks: Sequence[Check]

    @property
    def is_well(self) -> bool:
        has_failed = any(check.status == FAIL for check in self.checks)
        return not has_failed and not self.together and all(model.fits for model in self.models)

    def as_text(self) -> str:
        parts = [model.as_text() for model in self.models]
        if self.together:
            parts.append(self.together)
        return "\n\n".join([*parts, "\n".join(check.line for check in self.checks)])

    def as_dict(self) -> dict[str, Any]:
        return {
            "ok": self.is_well,
            "models": [model.as_dict() for model in self.models],
            "together": self.together,
            "machine": [asdict(check) for check in self.checks],
        }


def examine_models(settings: Settings, host: PluginHost) -> list[ModelMemory]:
    """Every model that settings name, each with its own settings. Raises ModelError for one that can't be found."""
    models = []
    for entry in _entries(settings):
        own = settings_of(settings, entry)
        source = _find(entry.reference, own)
        check = MemoryCheck(own, host, source)
        is_loaded_first = entry.is_preloaded or entry.is_pinned
        warning = length_warning(source, own.max_model_len)
        ledger = check.ledger()
        ranks = _ranks(own, host, source, ledger)
        models.append(ModelMemory(check.name, ledger, check.fixes(), is_loaded_first, warning, ranks))
    return models


def _ranks(settings: Settings, host: PluginHost, source: ModelSource, ledger: MemoryLedger | None) -> RankTable | None:
    if ledger is None or settings.num_ranks * settings.data_parallel_size == 1:
        return None
    import torch  # heavy

    architectures = {name: host.factory("architectures", name)[0] for name in host.names("architectures")}
    described = describe(read_config(source), architectures) if source.task == GENERATE else None
    spec = described if isinstance(described, DecoderSpec) else None
    return rank_table(settings, spec, ledger, torch.cuda.device_count())


def _entries(settings: Settings) -> list[ModelEntry]:
    """The models of --model, and those of the table `models:` and of --model-dir, which load on demand."""
    references: list[str | None] = [*settings.model]
    if not (references or settings.models or settings.model_dir):
        references = [None]
    entries = [ModelEntry(name=one or "", reference=one, names=(), is_preloaded=True) for one in references]
    if settings.models or settings.model_dir:
        from plugserve.server.supervisor.model_table import make_table

        entries += make_table(settings.model_copy(update={"model": []})).entries
    return entries


def _find(reference: str | None, settings: Settings) -> ModelSource:
    """A model as serve finds it; from its config alone where the weights are not on this machine."""

    def find(load_format: str) -> ModelSource:
        return resolve(
            reference,
            revision=settings.revision,
            download_dir=settings.download_dir,
            load_format=load_format,
            config_overrides=settings.hf_overrides,
        )

    path = (reference or ".").partition("=")[2] or reference or "."
    if not os.path.exists(os.path.expanduser(path)):
        return find("dummy")
    try:
        return find(settings.load_format)
    except ModelError:
        source = find("dummy")
        if stored_weights(source) is not NO_WEIGHTS:
            raise
        return source


def fit_together(models: Sequence[ModelMemory]) -> str:
    """Why models that each fit don't fit at the same time; "" where they do."""
    ledgers = [model.ledger for model in models if model.ledger is not None and model.is_loaded_first]
    if len(ledgers) < 2 or not all(ledger.fits for ledger in ledgers):
        return ""
    problems = []
    for name in dict.fromkeys(place.name for ledger in ledgers for place in ledger.places):
        places = [place for ledger in ledgers for place in ledger.places if place.name == name]
        needed, budget = sum(place.needed_bytes for place in places), min(place.budget_bytes for place in places)
        if needed > budget:
            problems.append(f"{shown_bytes(needed)} of {name}, {shown_bytes(budget)} can be had")
    if not problems:
        return ""
    return f"together the models take {'; '.join(problems)}: give each a smaller --kv-cache-memory, or serve fewer"
