"""Makes the model table of a server: the models that --model names, those of `models:`, and those in --model-dir."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from plugserve.core.errors import ConfigError
from plugserve.core.model_files.model_source import ModelSource, resolve
from plugserve.core.settings.model_entries import ModelEntry, entry_from_table, settings_of, with_table
from plugserve.core.settings.settings import Settings
from plugserve.server.supervisor.process_slots import EngineSlot

log = logging.getLogger(__name__)

_LATER_PART: Final = re.compile(r"-(?!00001)\d{5}-of-\d{5}$")


@dataclass(frozen=True, slots=True)
class ModelTable:
    """entries in the order of the settings, the first of which serves requests that name none. sources are the files of
    those that are known already, by name."""

    entries: tuple[ModelEntry, ...]
    sources: dict[str, ModelSource]

    @property
    def preloaded(self) -> list[ModelSource]:
        """The files of the models that load at the start."""
        return [self.sources[entry.name] for entry in self.entries if entry.is_preloaded]

    def slots(self, num_replicas: int = 1) -> list[EngineSlot]:
        """A slot for the engines of each model."""
        return [
            EngineSlot(index, entry, self.sources.get(entry.name), num_replicas)
            for index, entry in enumerate(self.entries)
        ]


def make_table(settings: Settings) -> ModelTable:
    """Models that load at the start are found now. Raises ModelError or ConfigError."""
    entries, sources = _given_models(settings)
    for name, path in _models_in_folders(settings):
        entries.setdefault(name, with_table(settings, ModelEntry(name, str(path), (name,))))
    for name in settings.models:
        if name not in entries:
            entry = entries[name] = entry_from_table(settings, name)
            _check_path(entry)
    for entry in entries.values():
        if entry.is_preloaded and entry.name not in sources:
            sources[entry.name] = find_source(settings, entry)
    _check_names(entries)
    if not entries:
        raise ConfigError(
            f"there is no model to serve: --model-dir {', '.join(settings.model_dir)} holds none; put a checkpoint "
            "folder or a .gguf file there, or name a model with --model"
        )
    return ModelTable(tuple(entries.values()), sources)


def find_source(settings: Settings, entry: ModelEntry) -> ModelSource:
    """The entry's files; may download from the Hugging Face hub. Raises ModelError or ConfigError."""
    own = settings_of(settings, entry)
    source = resolve(
        entry.reference,
        revision=own.revision,
        download_dir=own.download_dir,
        tokenizer=own.tokenizer,
        load_format=own.load_format,
        config_overrides=own.hf_overrides,
    )
    return replace(source, name=entry.name)


def _given_models(settings: Settings) -> tuple[dict[str, ModelEntry], dict[str, ModelSource]]:
    """The models that --model names, by name; the embedded one where nothing names any."""
    references: list[str | None] = [*settings.model]
    if not (references or settings.models or settings.model_dir):
        references = [None]
    given = settings.served_model_name
    entries: dict[str, ModelEntry] = {}
    sources: dict[str, ModelSource] = {}
    for index, reference in enumerate(references):
        source = resolve(
            reference,
            revision=settings.revision,
            download_dir=settings.download_dir,
            tokenizer=settings.tokenizer,
            load_format=settings.load_format,
            config_overrides=settings.hf_overrides,
        )
        if source.name in entries:
            raise ConfigError(f"--model {source.name} is given twice; name one of them as NAME=PATH")
        own = tuple(given) if len(references) == 1 and given else tuple(given[index : index + 1])
        entry = ModelEntry(
            source.name,
            reference,
            own or (source.name,),
            () if own else source.aliases,
            is_pinned=True,
            is_preloaded=True,
        )
        entries[source.name] = with_table(settings, entry)
        if entries[source.name].is_preloaded and not entries[source.name].overrides:
            sources[source.name] = source
    return entries, sources


def _check_path(entry: ModelEntry) -> None:
    """Raise for a local path without anything; a Hugging Face id is looked for when it is needed."""
    path = Path(os.path.expanduser(entry.reference or ""))
    is_local = str(entry.reference).startswith(("/", "./", "../", "~")) or path.suffix == ".gguf"
    if is_local and not path.exists():
        raise ConfigError(f"models: {entry.name}: there is no folder or file {path.absolute()}")


def _check_names(entries: dict[str, ModelEntry]) -> None:
    """Raise for a name that requests use for one model and another model has, too."""
    owners: dict[str, str] = {}
    for entry in entries.values():
        for name in entry.names:
            if owners.setdefault(name, entry.name) != entry.name:
                raise ConfigError(f"{name!r} names both {owners[name]!r} and {entry.name!r}; rename one of them")


# ---------------------------------------------------------------- --model-dir


def _models_in_folders(settings: Settings) -> Iterator[tuple[str, Path]]:
    for given in settings.model_dir:
        folder = Path(os.path.expanduser(given))
        try:
            found = list(models_in(folder))
        except OSError as error:
            raise ConfigError(f"--model-dir {given}: {error.strerror} (looked for {folder.absolute()})") from None
        if not found:
            log.warning("--model-dir %s holds no model: no folder with a config.json, and no .gguf file", given)
        yield from found


def models_in(folder: Path) -> Iterator[tuple[str, Path]]:
    """(name, path) of each model: NAME/config.json, ORGANISATION/NAME/config.json, NAME.gguf, NAME/*.gguf."""
    for child in sorted(folder.iterdir()):
        if child.name.startswith("."):
            continue
        if not child.is_dir():
            yield from _gguf_model(child, "")
        elif _is_checkpoint(child):
            yield child.name, child.absolute()
        else:
            yield from _models_below(child)


def _models_below(folder: Path) -> Iterator[tuple[str, Path]]:
    """The models in a folder that is none itself: an organisation's, or several GGUF files of one model."""
    children = sorted(folder.iterdir()) if os.access(folder, os.R_OK | os.X_OK) else []
    files = [child for child in children if child.suffix == ".gguf" and child.is_file()]
    if len(files) == 1:
        yield folder.name, files[0].absolute()
        return
    for child in children:
        if child.is_dir() and _is_checkpoint(child):
            yield f"{folder.name}/{child.name}", child.absolute()
        elif child.is_file():
            yield from _gguf_model(child, f"{folder.name}/")


def _is_checkpoint(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _gguf_model(path: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    is_model = path.suffix == ".gguf" and not path.name.startswith("mmproj") and not _LATER_PART.search(path.stem)
    if is_model:
        yield prefix + path.stem, path.absolute()
