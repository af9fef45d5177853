"""The smallest changes of settings that make a model fit, found by trying: each is estimated again with the change, so
that a fix that is named works."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plugserve.core.contracts.memory import HOST, MemoryLedger
from plugserve.core.settings.setting_names import flag
from plugserve.core.settings.settings import Settings

Estimate = Callable[[Mapping[str, Any]], MemoryLedger]
"""The ledger with some settings changed."""

_MIB, _GIB = 1 << 20, 1 << 30
_SPARE_PART = 64  # of a place's memory stays free for what other processes take until the fix is tried
_HIGHEST_SHARE = 97  # percent of a GPU: the driver and other programs need the rest
_LEAST_LENGTH, _LEAST_TOKENS = 256, 64
_LEAST_KV_TOKENS = 1024  # with less, a model that is said to fit would be of no use
_OFFLOAD_STEPS_A_GIB = 2


@dataclass(frozen=True, slots=True)
class Fix:
    """Settings by name, with which the model fits as in ledger."""

    changes: Mapping[str, Any]
    ledger: MemoryLedger

    def __str__(self) -> str:
        """As flags: "--max-model-len 12288"."""
        return " ".join(_as_flag(name, value) for name, value in self.changes.items())


def _as_flag(name: str, value: Any) -> str:
    if value is True:
        return flag(name)
    if name == "kv_cache_memory":
        return f"{flag(name)} {_size(value)}"
    return f"{flag(name)} {value:g}" if isinstance(value, float) else f"{flag(name)} {value}"


def _size(size_bytes: int) -> str:
    return f"{size_bytes // _GIB}GiB" if size_bytes % _GIB == 0 else f"{size_bytes // _MIB}MiB"


def find_fixes(settings: Settings, estimate: Estimate) -> list[Fix]:
    """Changes that make it fit, the one that costs least first; [] where no change of these settings does. Changes of
    one setting come before those of two."""
    search = _Search(settings, estimate)
    found = list(search.single_fixes({}))
    if not found:
        for changes in search.bases():
            found = list(search.single_fixes(changes))
            if found:
                break
    return found


class _Search:
    """Tries changes in the order of what they cost: room, then speed, then length, then precision."""

    def __init__(self, settings: Settings, estimate: Estimate) -> None:
        self._settings = settings
        self._estimate = estimate

    def single_fixes(self, base: Mapping[str, Any]) -> Iterator[Fix]:
        """Changes of one setting beside base."""
        ledger = self._estimate(base)
        if base and self._fits_well(ledger):
            yield Fix(base, ledger)
            return
        for name, values in self._candidates(base, ledger):
            fix = self._first_fit(base, name, values)
            if fix is not None:
                yield fix

    def bases(self) -> Iterator[Mapping[str, Any]]:
        """Large changes, beside which a second one is looked for."""
        ledger = self._estimate({})
        halved = {"dtype": "bfloat16"} if ledger.dtype == "float32" else {}
        if halved:
            yield halved
        shorter = {"max_model_len": _LEAST_LENGTH, **halved}
        if ledger.asked_model_len is not None and ledger.asked_model_len > _LEAST_LENGTH:
            yield shorter
        if ledger.device != "cpu":
            yield {"max_num_batched_tokens": 512, **halved}
            yield {"enforce_eager": True, "max_num_batched_tokens": 512, **halved}

    def _fits_well(self, ledger: MemoryLedger) -> bool:
        """Fits, with some host memory to spare, and room for more than a few tokens where the cache is what is left."""
        host = ledger.place(HOST)
        settings = self._settings
        is_set = settings.kv_cache_memory is not None or settings.num_gpu_blocks_override is not None
        is_set = is_set or ledger.asked_model_len is not None or not ledger.kv_bytes_per_token
        has_room = is_set or ledger.num_kv_tokens >= _LEAST_KV_TOKENS
        return ledger.fits and has_room and host.needed_bytes + host.budget_bytes // _SPARE_PART <= host.budget_bytes

    def _first_fit(self, base: Mapping[str, Any], name: str, values: Sequence[Any]) -> Fix | None:
        """The first of values, in falling order of use, that fits: those after it fit, too, so it is found by
        bisection."""
        low, high = 0, len(values)
        while low < high:
            middle = (low + high) // 2
            if self._fits_well(self._estimate({**base, name: values[middle]})):
                high = middle
            else:
                low = middle + 1
        if low == len(values):
            return None
        changes = {**base, name: values[low]}
        return Fix(changes, self._estimate(changes))

    def _candidates(self, base: Mapping[str, Any], ledger: MemoryLedger) -> Iterator[tuple[str, Sequence[Any]]]:
        """Settings that may help, each with values in falling order of use."""
        settings = self._settings
        yield self._kv_sizes(ledger)
        if ledger.device != "cpu":
            share = round(100 * settings.gpu_memory_utilization)
            yield "gpu_memory_utilization", [percent / 100 for percent in range(share + 1, _HIGHEST_SHARE + 1)]
        if settings.swap_space:
            yield "swap_space", [step / 4 for step in range(int(4 * settings.swap_space) - 1, -1, -1)]
        if "max_num_batched_tokens" not in base:
            yield "max_num_batched_tokens", _halves(ledger.max_num_batched_tokens, _LEAST_TOKENS)
        yield "max_num_seqs", _halves(ledger.max_num_seqs, 1)
        if ledger.device != "cpu" and not settings.enforce_eager and "enforce_eager" not in base:
            yield "enforce_eager", [True]
        if ledger.asked_model_len is not None:
            yield "max_model_len", _lengths(ledger.asked_model_len)
        if ledger.dtype == "float32" and "dtype" not in base:
            yield "dtype", ["bfloat16"]
        if ledger.device != "cpu":
            yield "cpu_offload_gb", self._offloads(ledger)

    def _kv_sizes(self, ledger: MemoryLedger) -> tuple[str, Sequence[int]]:
        """A larger cache where one request doesn't fit; else, if the user set the size, one that leaves some room."""
        size, place = self._settings.block_size, ledger.places[0]
        required = -(-(ledger.asked_model_len or 1) // size)
        block_bytes = size * ledger.kv_bytes_per_token
        spare = 2 * place.budget_bytes // _SPARE_PART  # what _fits_well wants, and as much again
        most = ledger.num_kv_tokens // size - -(-(place.missing_bytes + spare) // block_bytes)
        num_blocks = max(required, most)
        if self._settings.num_gpu_blocks_override is not None:
            return "num_gpu_blocks_override", [num_blocks]
        if self._settings.kv_cache_memory is None and ledger.has_room_for_length:
            return "kv_cache_memory", []
        num_mib = -(-required * block_bytes // _MIB)
        return "kv_cache_memory", [max(num_mib, num_blocks * block_bytes // _MIB) * _MIB]

    def _offloads(self, ledger: MemoryLedger) -> list[float]:
        first = self._settings.cpu_offload_gb
        weights = sum(item.size_bytes for item in ledger.places[0].items if item.name == "weights")
        steps = int(_OFFLOAD_STEPS_A_GIB * (weights / _GIB))
        return [first + step / _OFFLOAD_STEPS_A_GIB for step in range(1, steps + 1)]


def _halves(value: int, least: int) -> list[int]:
    """Powers of two below value."""
    return [1 << bits for bits in range((value - 1).bit_length() - 1, -1, -1) if least <= 1 << bits < value]


def _lengths(asked: int) -> list[int]:
    """Round numbers of tokens below asked: multiples of 1024, then of 256, then of 16."""
    step = 1024 if asked > 4096 else 256 if asked > 1024 else 16
    least = min(step, _LEAST_LENGTH)
    lengths = [*range((asked - 1) // step * step, 0, -step)]
    return [*lengths, *range(min(asked, step) - least, 0, -least)]
