"""Runs services of a docker-compose.yml without containers: commands, environment, mounts and secrets are the file's.

All services share one new network namespace, in which their names lead to 127.0.0.1; each has a root folder of its own
(an overlay of this machine's). Programs are this machine's: the server from the running Python's environment, others
from Debian's packages. Needs root.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

ENTRY_POINTS = {"plugserve": ["plugserve"], "prometheus": ["prometheus"]}
"""Of the images, by service; nginx' command is whole."""

_ROOT = """
set -e
mount -t tmpfs tmpfs {box}
mkdir {box}/upper {box}/work {box}/root
mount -t overlay overlay -o lowerdir=/,upperdir={box}/upper,workdir={box}/work {box}/root
for folder in proc sys dev; do mount --rbind /$folder {box}/root/$folder; done
mkdir -p {box}/root/run/secrets
{steps}
exec chroot {box}/root /usr/bin/env -i {variables} {command}
"""

_VARIABLE = re.compile(r"\$\{(\w+)(?:(:?[-?])([^}]*))?\}|\$\$")


class UnsetVariableError(Exception):
    """A variable that the file needs isn't set."""


def interpolate(text: str, environment: dict[str, str]) -> str:
    """text with ${NAME}, ${NAME:-default} and ${NAME:?message} replaced, as the compose specification says."""

    def value(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        name, operator, rest = found[1], found[2] or "", found[3] or ""
        given = environment.get(name)
        is_missing = given is None or (operator.startswith(":") and not given)
        if is_missing and operator.endswith("?"):
            raise UnsetVariableError(f"{name}: {rest}")
        return (rest if operator.endswith("-") else "") if is_missing else str(given)

    return _VARIABLE.sub(value, text)


def read_compose(path: Path, environment: dict[str, str]) -> dict[str, Any]:
    """The file's content, with variables replaced."""
    return _replaced(yaml.safe_load(path.read_text()), environment)


def _replaced(node: Any, environment: dict[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _replaced(value, environment) for key, value in node.items()}
    if isinstance(node, list):
        return [_replaced(value, environment) for value in node]
    return interpolate(node, environment) if isinstance(node, str) else node


def read_variables(path: Path) -> dict[str, str]:
    """The variables of an .env file."""
    lines = (line for line in path.read_text().splitlines() if line and not line.startswith("#"))
    pairs = ((name, value) for name, _, value in (line.partition("=") for line in lines))
    return dict(pairs)


class ComposeRun:
    """Services of file, started with start and all stopped with stop. namespace is the network namespace of them and of
    clients (nsenter --net=...)."""

    def __init__(self, file: Path, environment: dict[str, str], folder: Path) -> None:
        self._file = file
        self._folder = folder
        self._environment = environment
        self.content = read_compose(file, environment)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        # A process holds the namespace while services come and go.
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep 100000"],
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"up\n"
        self.namespace = f"/proc/{self._holder.pid}/ns/net"

    def inside(self, *command: str) -> list[str]:
        """command, as a client's in the services' network."""
        return ["nsenter", f"--net={self.namespace}", *command]

    def log(self, service: str) -> Path:
        return self._folder / f"{service}.log"

    def root(self, service: str) -> Path:
        """The root folder of a running service, as this process can read it."""
        return Path(f"/proc/{self._processes[service].pid}/root")

    def start(self, service: str, *, healthy_within_s: float = 120.0) -> None:
        """Start the service, and wait until its health check passes."""
        definition = self.content["services"][service]
        box = Path(tempfile.mkdtemp(dir=self._folder, prefix=f"{service}-"))
        script = _ROOT.format(
            box=box,
            steps="\n".join([self._hosts(box), *self._mounts(definition, box), *self._secrets(definition, box)]),
            variables=shlex.join(f"{name}={value}" for name, value in self._variables(definition).items()),
            command=shlex.join([*ENTRY_POINTS.get(service, []), *definition["command"]]),
        )
        with self.log(service).open("wb") as log:
            self._processes[service] = subprocess.Popen(
                self.inside("unshare", "--mount", "sh", "-c", script), stdout=log, stderr=subprocess.STDOUT
            )
        self._wait_for_health(service, healthy_within_s)

    def _hosts(self, box: Path) -> str:
        names = " ".join([*self.content["services"], "localhost"])
        return f"echo 127.0.0.1 {names} > {box}/root/etc/hosts"

    def _mounts(self, definition: dict[str, Any], box: Path) -> list[str]:
        steps = []
        for volume in definition.get("volumes", []):
            source, target, *options = volume.split(":")
            if source.startswith((".", "/")):
                path = (self._file.parent / source).resolve()
            else:
                path = self._folder / "volumes" / source
                path.mkdir(parents=True, exist_ok=True)
            place = shlex.quote(f"{box}/root{target}")
            steps.append(f"mkdir -p {place} && mount --bind {shlex.quote(str(path))} {place}")
            if "ro" in options:
                steps.append(f"mount -o remount,bind,ro {place}")
        return steps

    def _secrets(self, definition: dict[str, Any], box: Path) -> list[str]:
        steps = []
        for name in definition.get("secrets", []):
            variable = self.content["secrets"][name]["environment"]
            if variable not in self._environment:
                raise UnsetVariableError(f"{variable}, of the secret {name}")
            file = self._folder / f"secret-{name}"
            file.write_text(self._environment[variable])
            steps.append(f"cp {shlex.quote(str(file))} {box}/root/run/secrets/{name}")
        return steps

    def _variables(self, definition: dict[str, Any]) -> dict[str, str]:
        image = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": "/root", "HF_HOME": "/models"}
        own = {name: str(value) for name, value in (definition.get("environment") or {}).items()}
        return image | {"PLUGSERVE_HOST": "0.0.0.0", "PLUGSERVE_PORT": "8000", "OMP_NUM_THREADS": "1"} | own

    def _wait_for_health(self, service: str, limit_s: float) -> None:
        check = self.content["services"][service]["healthcheck"]["test"]
        assert check[0] == "CMD"
        end = time.monotonic() + limit_s
        process = self._processes[service]
        while time.monotonic() < end:
            if process.poll() is not None:
                raise AssertionError(f"{service} ended with {process.returncode}:\n{self.log(service).read_text()}")
            if subprocess.run(self.inside(*check[1:]), capture_output=True).returncode == 0:
                return
            time.sleep(0.3)
        raise AssertionError(f"{service} is not healthy after {limit_s:g} s:\n{self.log(service).read_text()}")

    def signal(self, service: str, number: int) -> None:
        self._processes[service].send_signal(number)

    def wait(self, service: str, limit_s: float) -> int:
        return self._processes[service].wait(limit_s)

    def stop(self) -> None:
        for service in reversed(list(self._processes)):
            process = self._processes[service]
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        self._holder.kill()
        self._holder.wait()
