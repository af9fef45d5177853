"""Reads a flight recorder's file: of an engine that runs, or of one that was killed while it wrote."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from plugserve.core.contracts.engine_facts import EngineStats
from plugserve.core.errors import ConfigError
from plugserve.core.flight.flight_file import FlightFile
from plugserve.core.flight.flight_records import GAUGES, REQUEST, STEP, Layout

Records = np.ndarray[Any, np.dtype[np.void]]
_WATCH_S: Final = 5.0


class FlightFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine writes about itself when its model is loaded; path is where the model's files are. started_s is in
    seconds since 1970, epoch_offset_s what makes times of the engine's clock such seconds."""

    model: str
    path: str = ""
    version: str
    pid: int
    started_s: float
    epoch_offset_s: float
    scheduler: str = ""
    prefix_caching: bool = False
    task: str = "generate"
    dtype: str = ""
    device: str = ""
    block_size: int = 0
    num_blocks: int = 0
    max_num_seqs: int = 0
    max_num_batched_tokens: int = 0
    max_model_len: int = 0
    vocab_size: int = 0


class FlightDetail(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine writes once a second while somebody watches. kv_map is the picture of block_map.py in base64;
    the others are keyed by plugin and call, as in EngineStats."""

    plugin_calls: dict[str, int] = {}
    plugin_seconds: dict[str, float] = {}
    plugin_errors: dict[str, int] = {}
    kv_map: str = ""


@dataclass(frozen=True, slots=True)
class Gauges:
    """The counts of an engine's last second. is_over: the engine was stopped in order."""

    updated_s: float
    epoch_offset_s: float
    stats: EngineStats
    num_used_blocks: int
    num_cached_blocks: int
    num_requests: int
    num_without_slot: int
    tokens_end: int
    is_over: bool


class FlightLog:
    """One file. Each method looks at it anew. Records that are torn are left out: of a file that no process writes any
    more, these are those that the engine was writing when it died."""

    def __init__(self, path: Path) -> None:
        """Raises OSError, or ConfigError for a file that can't be read."""
        self.path = path
        self.inode = path.stat().st_ino
        self._file = FlightFile.open(path)
        try:
            self.facts = msgspec.json.decode(self._file.read_facts(), type=FlightFacts)
        except msgspec.DecodeError as error:
            raise ConfigError(f"{path} holds no facts of an engine: {error}") from None

    def watch(self) -> None:
        """Have the engine write details for the next seconds."""
        self._file.watch(time.monotonic() + _WATCH_S)

    def detail(self) -> FlightDetail:
        """Empty where none was written."""
        data = self._file.read_detail()
        return msgspec.json.decode(data, type=FlightDetail) if data else FlightDetail()

    def gauges(self) -> Gauges:
        found = self._whole(GAUGES, self._file.gauges_at, 1)
        one = found[0] if len(found) else np.zeros(1, GAUGES.dtype)[0]
        stats = EngineStats(num_requests_running=int(one["num_running"]), num_requests_waiting=int(one["num_waiting"]))
        for name in set(GAUGES.dtype.names or ()) & {*EngineStats.__struct_fields__}:
            setattr(stats, name, int(one[name]))
        stats.num_free_blocks = stats.num_blocks - int(one["num_used_blocks"])
        return Gauges(
            updated_s=float(one["updated_s"]),
            epoch_offset_s=float(one["epoch_offset_s"]) or self.facts.epoch_offset_s,
            stats=stats,
            num_used_blocks=int(one["num_used_blocks"]),
            num_cached_blocks=int(one["num_cached_blocks"]),
            num_requests=int(one["num_requests"]),
            num_without_slot=int(one["num_without_slot"]),
            tokens_end=int(one["tokens_end"]),
            is_over=bool(one["has_left"]),
        )

    def requests(self) -> Records:
        """Every request that is kept (flight_records.REQUEST), in order of arrival."""
        found = self._whole(REQUEST, self._file.requests_at, self._file.sizes.num_requests)
        return found[np.argsort(found["ordinal"])]

    def steps(self) -> Records:
        """Every step that is kept (flight_records.STEP), in order."""
        found = self._whole(STEP, self._file.steps_at, self._file.sizes.num_steps)
        oldest = int(np.argmin(found["serial"])) if len(found) else 0
        return np.concatenate([found[oldest:], found[:oldest]])

    def prompt(self, request: np.void) -> list[int] | None:
        """A request's prompt, where its token ids are kept still."""
        size, count, start = self._file.sizes.num_tokens, int(request["num_prompt_tokens"]), int(request["prompt_at"])
        if start < 0 or count > size:
            return None
        tokens = np.frombuffer(self._file.map, np.int32, size, self._file.tokens_at)
        found: list[int] = tokens[(start + np.arange(count)) % size].tolist()
        return found if self._tokens_end() <= start + size else None

    def _tokens_end(self) -> int:
        """Tokens that were kept so far; the counts of the last second may be too old."""
        found = self.requests()
        kept = found[found["prompt_at"] >= 0]
        return int((kept["prompt_at"] + kept["num_prompt_tokens"]).max(initial=0))

    def _whole(self, layout: Layout, start: int, count: int) -> Records:
        """Copies of the records that are not being written (see flight_records)."""
        area = np.frombuffer(self._file.map, layout.dtype, count, start)
        copied = area.copy()
        serial = copied["serial"]
        is_whole = (serial != 0) & (serial == copied["serial_end"]) & (serial == area["serial"])
        whole: Records = copied if is_whole.all() else copied[is_whole]
        return whole
