"""Two machines of a Ray cluster, as network namespaces of this one that a cable joins."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile

HEAD, WORKER = "10.77.0.1", "10.77.0.2"
PORT = 6379
_SMALL = ["--num-gpus=0", "--object-store-memory=100000000", "--disable-usage-stats"]


def reason_to_skip():
    """Why there can't be any here, or ""."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "network namespaces need root and the program ip"
    tried = subprocess.run(["ip", "netns", "add", "plugserve-try"], capture_output=True, text=True)
    if tried.returncode:
        return f"no network namespaces here: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", "plugserve-try"], check=True)
    return ""


class TwoNodes:
    """The head's node and another one, each with num_cpus CPUs. token is what the cluster asks for."""

    def __init__(self, num_cpus):
        self._num_cpus = num_cpus
        tag = os.getpid()
        self.names = [f"plugserve-{tag}-{i}" for i in (1, 2)]
        self._ends = [f"ps{tag % 100000}v{i}" for i in (1, 2)]
        self.token = secrets.token_hex(32)
        self.folder = tempfile.mkdtemp(prefix="psr")  # short: it holds sockets

    def __enter__(self):
        for name in self.names:
            _ip("netns", "add", name)
        _ip("link", "add", self._ends[0], "type", "veth", "peer", "name", self._ends[1])
        for name, end, address in zip(self.names, self._ends, (HEAD, WORKER), strict=True):
            _ip("link", "set", end, "netns", name)
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", end)
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", end, "up")
        try:
            self._ray(0, "--head", f"--port={PORT}", f"--node-ip-address={HEAD}", "--include-dashboard=false",
                      f"--temp-dir={self.folder}")  # fmt: skip
            self.start_worker()
        except BaseException:
            self.__exit__()
            raise
        return self

    def within(self, node):
        """The start of a command on a node."""
        return ["ip", "netns", "exec", self.names[node]]

    def start_worker(self):
        self._ray(1, f"--address={HEAD}:{PORT}", f"--node-ip-address={WORKER}")

    def _ray(self, node, *arguments):
        self._run(node, "-m", "ray.scripts.scripts", "start", *arguments, f"--num-cpus={self._num_cpus}", *_SMALL)

    def named_actors(self):
        """The names of the actors that live."""
        code = (
            f"import ray; ray.init('{HEAD}:{PORT}'); print(*(one['name'] for one in ray.util.list_named_actors(True)))"
        )
        return self._run(0, "-c", code).split()

    def _run(self, node, *arguments):
        command = [*self.within(node), sys.executable, *arguments]
        env = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def pull_cable(self):
        """The second node can't be reached any more."""
        _ip("-n", self.names[1], "link", "set", self._ends[1], "down")

    def replace_worker(self):
        """The second node starts again."""
        self._kill(1)
        _ip("-n", self.names[1], "link", "set", self._ends[1], "up")
        self.start_worker()

    def _kill(self, node):
        found = subprocess.run(["ip", "netns", "pids", self.names[node]], capture_output=True, text=True)
        for pid in found.stdout.split():
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue

    def __exit__(self, *exc):
        for node, name in enumerate(self.names):
            self._kill(node)
            subprocess.run(["ip", "netns", "del", name], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


def _ip(*arguments):
    subprocess.run(["ip", *arguments], check=True)
