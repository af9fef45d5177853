"""The GPUs of one of a model's engines (--data-parallel-size): those that no other of its engines uses."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from plugserve.core.errors import ConfigError
from plugserve.core.settings.settings import Settings

_VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
_DEVICES: Final = Path("/dev")


def take_own_devices(settings: Settings, replica: int) -> None:
    """Let this process see its own GPUs only, before a library looks for them: the engine replica, counted from 0, gets
    as many as ranks share the model, after those of the engines before it. Without GPUs nothing changes. Raises
    ConfigError where there are too few."""
    if settings.data_parallel_size == 1 or settings.device == "cpu":
        return
    visible = _visible()
    if not visible:
        return
    num_ranks = settings.num_ranks
    own = visible[replica * num_ranks : (replica + 1) * num_ranks]
    if len(own) < num_ranks:
        num_needed = settings.data_parallel_size * num_ranks
        raise ConfigError(
            f"--data-parallel-size {settings.data_parallel_size} needs {num_needed} GPUs, {num_ranks} for each engine; "
            f"there are {len(visible)}"
        )
    os.environ[_VISIBLE] = ",".join(own)


def _visible() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get(_VISIBLE)
    if given is not None:
        return [one.strip() for one in given.split(",") if one.strip() not in ("", "-1")]
    numbers = [found[1] for path in _DEVICES.glob("nvidia*") if (found := re.fullmatch(r"nvidia(\d+)", path.name))]
    return [str(index) for index in range(len(numbers))]
