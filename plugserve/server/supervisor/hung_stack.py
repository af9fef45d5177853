"""Finds the hung thread in a process's stack dump, and the plugin whose code it runs."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import plugserve
from plugserve.core.wire.stack_dump import Frame

_OWN_FOLDER: Final = os.path.dirname(os.path.abspath(plugserve.__file__)) + os.sep
_WAITING_FILES: Final = ("/threading.py", "/queue.py", "/concurrent/futures/_base.py", "/selectors.py")
_COMPILER_PARTS: Final = ("/triton/compiler/", "/triton/backends/", "/torch/_inductor/", "/torch/_dynamo/")
_MOST_FRAMES: Final = 20


@dataclass(frozen=True, slots=True)
class HungStack:
    """plugin is "" where no active plugin's code is in the stack; frames go from the innermost call outwards.
    is_compiling: a kernel is being compiled, which a step may do when a shape comes up for the first time."""

    plugin: str
    frames: tuple[Frame, ...]
    is_compiling: bool

    def __str__(self) -> str:
        shown = " < ".join(map(str, self.frames[:_MOST_FRAMES]))
        return f"plugin={self.plugin or 'none'} stack=[{shown}]"


class PluginFiles:
    """Maps source files to active plugins. plugins are objects with name and object, by name."""

    def __init__(self, plugins: Mapping[str, Any]) -> None:
        self._files: dict[str, str] = {}
        self._folders: dict[str, str] = {}
        for name, plugin in plugins.items():
            for file in _source_files(plugin):
                self._files.setdefault(file, name)
                folder = _package_folder(file)
                if folder and not folder.startswith(_OWN_FOLDER):
                    self._folders.setdefault(folder, name)
                elif file.startswith(_OWN_FOLDER + "plugins" + os.sep):
                    self._folders.setdefault(os.path.dirname(file) + os.sep, name)

    def owner(self, frame: Frame) -> str | None:
        """The name of the plugin that contains the frame; None for other code."""
        file = os.path.abspath(frame.file)
        if file in self._files:
            return self._files[file]
        return next((name for folder, name in self._folders.items() if file.startswith(folder)), None)

    def is_third_party(self, frame: Frame) -> bool:
        """The frame is in a plugin that is not part of plugserve."""
        return self.owner(frame) is not None and not os.path.abspath(frame.file).startswith(_OWN_FOLDER)


def find_hang(threads: Sequence[Sequence[Frame]], files: PluginFiles) -> HungStack:
    """The main thread's stack, or that of the thread that it waits for. threads as parse_stacks returns them."""
    main = threads[0] if threads else ()
    hung = main
    if main and main[0].file.endswith(_WAITING_FILES):
        busy = [thread for thread in threads[1:] if thread and not thread[0].file.endswith(_WAITING_FILES)]
        in_plugin = [thread for thread in busy if any(files.is_third_party(frame) for frame in thread)]
        in_project = [thread for thread in busy if any(frame.file.startswith(_OWN_FOLDER) for frame in thread)]
        hung = next(iter(in_plugin + in_project), main)
    is_compiling = any(part in frame.file for thread in threads for frame in thread for part in _COMPILER_PARTS)
    return HungStack(_plugin_in(hung, files), tuple(hung), is_compiling)


def _plugin_in(frames: Iterable[Frame], files: PluginFiles) -> str:
    """The innermost plugin that is not plugserve's own; else the innermost one."""
    owners = [(files.owner(frame), files.is_third_party(frame)) for frame in frames]
    third_party = [owner for owner, is_third_party in owners if owner and is_third_party]
    named = third_party or [owner for owner, _ in owners if owner]
    return named[0] if named else ""


def _source_files(plugin: Any) -> list[str]:
    """The file of a plugin's object, and those of the factories that it provides."""
    objects = [plugin.object, type(plugin.object)]
    objects += [factory for factories in plugin.provides.values() for factory in factories.values()]
    return list(dict.fromkeys(file for file in map(_file_of, objects) if file))


def _file_of(thing: Any) -> str | None:
    module = thing if inspect.ismodule(thing) else sys.modules.get(getattr(thing, "__module__", None) or "")
    file = getattr(module, "__file__", None)
    return os.path.abspath(file) if file and Path(file).suffix == ".py" else None


def _package_folder(file: str) -> str:
    """The outermost package that holds file, "" for a module outside packages."""
    folder, found = os.path.dirname(file), ""
    while os.path.exists(os.path.join(folder, "__init__.py")):
        found, folder = folder + os.sep, os.path.dirname(folder)
    return found
