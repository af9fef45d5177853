"""The checks of `plugserve doctor` on the machine. Each is one line, with the fix where something is wrong."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from plugserve.core.errors import ConfigError, one_line
from plugserve.core.memory.ledger_text import shown_bytes
from plugserve.core.memory.machine import host_memory, usable_cores
from plugserve.core.settings.settings import Settings

OK, WARN, FAIL = "ok", "warn", "fail"
_GIB = 1 << 30
_MANY_FILES = 4096
_LEAST_DISK_BYTES = 2 * _GIB
_NVIDIA_SMI_S = 10.0


@dataclass(frozen=True, slots=True)
class Check:
    """status is ok, warn (it works, but worse) or fail (it won't start); fix is what to do about it."""

    name: str
    status: str
    text: str
    fix: str = ""

    @property
    def line(self) -> str:
        return f"{self.status.ljust(4)}  {self.name}: {self.text}" + (f" - {self.fix}" if self.fix else "")


def check_machine(settings: Settings) -> list[Check]:
    """Every check, in the order of the report."""
    return [
        _versions(),
        _processor(),
        _memory(),
        *_gpu(settings),
        *_disks(settings),
        _address(settings),
        _open_files(),
    ]


# ---------------------------------------------------------------- versions and processor


def _versions() -> Check:
    names = ("torch", "transformers", "triton")
    found = " ".join(f"{name} {_version(name)}" for name in names)
    return Check("versions", OK, f"plugserve {_version('plugserve')} python {platform.python_version()} {found}")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(not installed)"


def _processor() -> Check:
    from torch.backends import cpu

    capability, cores = cpu.get_cpu_capability(), usable_cores()
    text = f"{_processor_name()}, {cores} cores, torch uses {capability}"
    special = sorted(_flags() & {"avx512_bf16", "amx_bf16", "amx_int8", "bf16", "asimddp"})
    if special:
        text += f", has {' '.join(special)}"
    if capability == "DEFAULT" and platform.machine() in ("x86_64", "AMD64"):
        return Check("processor", WARN, text, "it lacks AVX2, so steps are several times slower; take a newer one")
    if cores == 1:
        return Check("processor", WARN, text, "server and engine share one core; give the container two or more")
    return Check("processor", OK, text)


def _processor_name() -> str:
    return next((text for text in _cpu_lines("model name")), platform.processor() or platform.machine())


def _flags() -> set[str]:
    return {flag for text in (*_cpu_lines("flags"), *_cpu_lines("Features")) for flag in text.split()}


def _cpu_lines(name: str) -> Iterator[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return
    yield from (line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name)


def _memory() -> Check:
    host = host_memory()
    total, available = shown_bytes(host.total_bytes), shown_bytes(host.available_bytes)
    return Check("memory", OK, f"{available} of {total} can be had (the limit of this {host.limit})")


# ---------------------------------------------------------------- GPUs


def _gpu(settings: Settings) -> list[Check]:
    import torch

    has_card = os.path.exists("/dev/nvidiactl") or shutil.which("nvidia-smi") is not None
    wants_gpu = settings.device.startswith("cuda")
    if not torch.cuda.is_available():
        if not has_card and not wants_gpu:
            return [Check("GPU", OK, "none; models run on the processor")]
        built = torch.version.cuda
        text = (
            f"torch {torch.__version__} finds no CUDA device ({f'built for CUDA {built}' if built else 'a CPU build'})"
        )
        fix = "install a torch built for this driver's CUDA (nvidia-smi shows its version)"
        return [Check("GPU", FAIL if wants_gpu else WARN, text, fix if has_card else "use --device cpu")]
    if settings.device == "cpu":
        return [Check("GPU", OK, "--device cpu leaves it unused")]
    return [*_cards(settings.device), _triton()]


def _cards(device: str) -> Iterator[Check]:
    import torch

    wanted = device.partition(":")[2]
    for index in [int(wanted)] if wanted else range(torch.cuda.device_count()):
        try:
            free, total = torch.cuda.mem_get_info(index)
            major, minor = torch.cuda.get_device_capability(index)
        except (RuntimeError, AssertionError) as error:
            yield Check(f"GPU {index}", FAIL, one_line(error)[:200], "name another with --device cuda:N")
            continue
        text = (
            f"{torch.cuda.get_device_name(index)}, compute capability {major}.{minor}, CUDA {torch.version.cuda}, "
            f"{shown_bytes(free)} of {shown_bytes(total)} free{_holders(index)}"
        )
        if (major, minor) < (7, 5):
            yield Check(f"GPU {index}", WARN, text, "older than Turing: use --dtype float16, and expect slow kernels")
        elif free < total // 2:
            yield Check(f"GPU {index}", WARN, text, "end what holds its memory, or lower --gpu-memory-utilization")
        else:
            yield Check(f"GPU {index}", OK, text)


def _triton() -> Check:
    found = _version("triton")
    if found.startswith("("):
        return Check("Triton", WARN, "not installed: steps run eagerly and slowly", "pip install 'plugserve[gpu]'")
    return Check("Triton", OK, found)


def _holders(index: int) -> str:
    """The processes that hold the card's memory, as nvidia-smi names them."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    query = [program, "-i", str(index), "--query-compute-apps=pid,used_memory", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=_NVIDIA_SMI_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    others = [line.strip() for line in done.stdout.splitlines() if line.strip() and not _is_own(line)]
    return f"; held by process {'; '.join(others)}" if others else ""


def _is_own(line: str) -> bool:
    return line.partition(",")[0].strip() == str(os.getpid())


# ---------------------------------------------------------------- disks, port, files


def _disks(settings: Settings) -> list[Check]:
    hub = os.environ.get("HF_HUB_CACHE") or os.path.join(os.environ.get("HF_HOME") or "~/.cache/huggingface", "hub")
    own = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "plugserve")
    return [
        _disk("models' folder", settings.download_dir or hub, "--download-dir names another"),
        _disk("cache", own, "XDG_CACHE_HOME names another"),
        _disk("temporary files", tempfile.gettempdir(), "TMPDIR names another"),
    ]


def _disk(name: str, folder: str, fix: str) -> Check:
    path = Path(os.path.expanduser(folder))
    there = next(one for one in (path, *path.parents) if one.exists())
    free = shutil.disk_usage(there).free
    text = f"{path}, {shown_bytes(free)} free"
    if not os.access(there, os.W_OK):
        return Check(name, WARN, f"{text}, and can't be written", fix)
    if free < _LEAST_DISK_BYTES:
        return Check(name, WARN, text, f"make room there; {fix}")
    return Check(name, OK, text)


def _address(settings: Settings) -> Check:
    """The address, bound in the way in which serve binds it."""
    from plugserve.server.supervisor.listener import listening

    if settings.uds is None:
        return _port(settings.host, settings.port)
    try:
        with listening(settings):
            return Check("socket", OK, f"{settings.uds} can be listened on")
    except ConfigError as error:
        return Check("socket", FAIL, str(error))


def _port(host: str, port: int) -> Check:
    from plugserve.server.supervisor.listener import listen

    try:
        listen(host, port).close()
    except ConfigError as error:
        return Check("port", FAIL, str(error), f"--port {_free_port(host)} is free")
    return Check("port", OK, f"{port} on {host} is free")


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
            number: int = probe.getsockname()[1]
            return number
    except OSError:
        return 0


def _open_files() -> Check:
    """The server raises the soft limit to the hard one by itself."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _MANY_FILES:
        fix = f"ulimit -n {_MANY_FILES} (or the service's LimitNOFILE), else connections are refused above it"
        return Check("open files", WARN, f"at most {hard}", fix)
    return Check("open files", OK, "no limit" if hard == resource.RLIM_INFINITY else f"at most {hard}")
