"""Run in an environment that has the built wheel and nothing of the checkout: install, list, serve, answer, stop."""

import re
import subprocess
import sys

import httpx

PLUGSERVE = sys.executable.replace("python", "plugserve")


def main():
    version = subprocess.run([PLUGSERVE, "--version"], capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"plugserve \d+\.\d+\.\d+\n", version), version
    listed = subprocess.run([PLUGSERVE, "plugins"], capture_output=True, text=True, check=True).stdout
    for name in ("fcfs", "torch-sdpa", "torch", "prefix-cache", "decoders", "weight-formats", "request-log"):
        assert re.search(rf"^{name} ", listed, flags=re.M), listed
    server = subprocess.Popen([PLUGSERVE, "--host", "127.0.0.1", "--port", "0"], stderr=subprocess.PIPE, text=True)
    try:
        lines = []
        for line in server.stderr:
            lines.append(line)
            ready = re.search(r"ready on (\S+)", line)
            if ready:
                break
        else:
            raise AssertionError("".join(lines))
        question = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
        answer = httpx.post(ready[1] + "/v1/chat/completions", json=question, timeout=60).json()
        assert answer["choices"][0]["message"]["content"] == "The capital of France is Paris.", answer
    finally:
        server.terminate()
    assert server.wait(20) == 0
    print("wheel: installed, listed its plugins, answered and stopped")
    print("1 passed, 0 failed")


if __name__ == "__main__":
    main()
