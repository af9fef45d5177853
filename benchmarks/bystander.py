"""A client that streams one answer after the other: `python -m benchmarks.bystander URL KEY SECONDS PROMPTS`.

Prints one JSON line a stream: its prompt, when it began and ended (monotonic clock), the text, the longest gap between
two chunks and when that was, the time to the first chunk, and the error where it was cut. It runs in a process of its
own, so that gaps are the server's.
"""

from __future__ import annotations

import http.client
import json
import sys
import time
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

PROMPTS = ("The sea is", "Once upon a time", "The capital of France is", "Water boils at")
MAX_TOKENS = 24


@dataclass(slots=True)
class Stream:
    """One answer. error is empty for a whole one."""

    prompt: str
    began_s: float
    ended_s: float = 0.0
    text: str = ""
    first_chunk_s: float = 0.0
    longest_gap_s: float = 0.0
    gap_at_s: float = 0.0
    error: str = ""


def stream(url: str, key: str, prompt: str, timeout_s: float = 60.0) -> Stream:
    """Ask for one answer and read it chunk by chunk."""
    seen = Stream(prompt, time.monotonic())
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
    body = {"prompt": prompt, "max_tokens": MAX_TOKENS, "temperature": 0, "ignore_eos": True, "stream": True}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        if answer.status != 200:
            seen.error = f"{answer.status} {answer.read(200)!r}"
        else:
            _read(answer, seen)
    except (OSError, http.client.HTTPException, ValueError) as error:
        seen.error = f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    seen.ended_s = time.monotonic()
    return seen


def _read(answer: http.client.HTTPResponse, seen: Stream) -> None:
    last_s = 0.0
    while line := answer.readline():
        if line.startswith(b"data: [DONE]"):
            return
        if not line.startswith(b"data: "):
            continue
        event = json.loads(line[6:])
        if "error" in event:
            seen.error = json.dumps(event["error"])[:300]
            return
        now_s = time.monotonic()
        if not last_s:
            seen.first_chunk_s = now_s - seen.began_s
        elif now_s - last_s > seen.longest_gap_s:
            seen.longest_gap_s, seen.gap_at_s = now_s - last_s, now_s
        last_s = now_s
        seen.text += event["choices"][0]["text"]
    seen.error = "the stream ended without [DONE]"


def main() -> None:
    url, key, seconds, num_prompts = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
    end_s = time.monotonic() + seconds
    number = 0
    while time.monotonic() < end_s:
        seen = stream(url, key, PROMPTS[number % num_prompts])
        print(json.dumps(asdict(seen)), flush=True)
        number += 1
        if seen.error:
            time.sleep(0.2)


if __name__ == "__main__":
    main()
