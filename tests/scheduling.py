"""The order in which processes of pytest-xdist take files: long ones first, so that none is left alone at the end."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, zip_longest

from xdist.scheduler import LoadFileScheduling

TOGETHER = {
    "the server of tests/e2e": tuple(
        f"tests/e2e/test_{name}.py" for name in ("disconnects", "offline", "serving", "structured")
    ),
    "Gemma-3-270M": ("tests/backends/torch/models/test_gguf_models.py", "tests/server/text/test_prompt_encoder.py"),
}
"""Files that share a fixture that takes long to make; one process runs them all."""

WAITING = ("tests/e2e/", "tests/benchmarks/", "tests/examples/", "tests/scaffold/")
"""Files that often wait for other processes: half of the long ones, in turn with those that compute."""

COMPUTING = (
    "tests/backends/torch/models/test_smollm2", "tests/core/engine/test_combinations", "tests/plugins/attention/",
    "tests/plugins/lora/", "tests/backends/", "tests/plugins/", "tests/testing/", "tests/server/",
)  # fmt: skip


class LongFilesFirst(LoadFileScheduling):
    """--dist loadfile in the order of the collection, with files that belong TOGETHER as one."""

    def __init__(self, config, log):
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid):
        file = super()._split_scope(nodeid)
        return _SHARED.get(file, file)


_SHARED = {file: what for what, files in TOGETHER.items() for file in files}


def sort_files(files: Iterable[str]) -> list[str]:
    """files, the long ones first."""
    waiting, computing, others = [], [], []
    for file in files:
        some = waiting if file.startswith(WAITING) else computing if file.startswith(COMPUTING) else others
        some.append(file)
    waiting.sort(key=lambda file: (file not in _SHARED, _place(file, WAITING)))
    computing.sort(key=lambda file: _place(file, COMPUTING))
    in_turn = chain.from_iterable(zip_longest(computing, waiting))
    return [*(file for file in in_turn if file is not None), *others]


def _place(file: str, beginnings: tuple[str, ...]) -> int:
    return next(place for place, beginning in enumerate(beginnings) if file.startswith(beginning))
