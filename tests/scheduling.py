"""The order in which processes of pytest-xdist take files: long ones first, so that none is left alone at the end."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, zip_longest

from xdist.scheduler import LoadFileScheduling

ONE_SERVER = ("test_disconnects", "test_offline", "test_serving", "test_structured")
"""Files of tests/e2e that share the server of its conftest; one process runs them all."""

WAITING = ("tests/e2e/", "tests/benchmarks/", "tests/examples/", "tests/scaffold/")
"""Files that often wait for other processes: half of the long ones, in turn with those that compute."""

COMPUTING = (
    "tests/backends/torch/models/test_smollm2", "tests/core/engine/test_combinations", "tests/plugins/attention/",
    "tests/plugins/lora/", "tests/backends/", "tests/plugins/", "tests/testing/", "tests/server/",
)  # fmt: skip


class LongFilesFirst(LoadFileScheduling):
    """--dist loadfile in the order of the collection, with the files of ONE_SERVER as one."""

    def __init__(self, config, log):
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid):
        file = super()._split_scope(nodeid)
        return "tests/e2e of one server" if is_of_one_server(file) else file


def is_of_one_server(file: str) -> bool:
    return file.startswith("tests/e2e/") and file.removeprefix("tests/e2e/").removesuffix(".py") in ONE_SERVER


def sort_files(files: Iterable[str]) -> list[str]:
    """files, the long ones first."""
    waiting, computing, others = [], [], []
    for file in files:
        some = waiting if file.startswith(WAITING) else computing if file.startswith(COMPUTING) else others
        some.append(file)
    waiting.sort(key=lambda file: (not is_of_one_server(file), _place(file, WAITING)))
    computing.sort(key=lambda file: _place(file, COMPUTING))
    in_turn = chain.from_iterable(zip_longest(computing, waiting))
    return [*(file for file in in_turn if file is not None), *others]


def _place(file: str, beginnings: tuple[str, ...]) -> int:
    return next(place for place, beginning in enumerate(beginnings) if file.startswith(beginning))
