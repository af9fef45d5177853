"""Runs a file's cases and prints one JSON line each: {"case": ..., "status": "passed" | "failed", "detail": ...}.

Runs in a suite's own environment, so standard library only. PLUGSERVE_URL (without /v1) and PLUGSERVE_MODEL are the
server's address and the name of its model.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import traceback
from collections.abc import Callable
from typing import Any

URL = os.environ.get("PLUGSERVE_URL", "http://127.0.0.1:8000")
MODEL = os.environ.get("PLUGSERVE_MODEL", "HuggingFaceTB/SmolLM2-135M-Instruct")

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"enum": ["celsius", "fahrenheit"]}},
            "required": ["city"],
        },
    },
}
ASK_WEATHER = "What is the weather like in Paris today? Use the tool get_weather."
ASK_CAPITAL = "What is the capital of France?"
ASK_CITY_JSON = "Describe the city of Paris as JSON with its name and country."

_cases: list[tuple[str, Callable[[], Any]]] = []


def case(function: Callable[[], Any]) -> Callable[[], Any]:
    """Mark a function without arguments, plain or async; it passes when it returns."""
    _cases.append((function.__name__, function))
    return function


def raised(kind: type[BaseException], call: Callable[[], Any]) -> Any:
    """The error of kind that call() raises."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"nothing was raised, expected {kind.__name__}")


def main() -> None:
    """Run all cases in order; one that fails doesn't stop the others."""
    for name, function in _cases:
        status, detail = "passed", ""
        try:
            if inspect.iscoroutinefunction(function):
                asyncio.run(function())
            else:
                function()
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            message = str(error) or where.line or ""
            status, detail = "failed", f"{type(error).__name__}: {' '.join(message.split())[:400]}"
        print(json.dumps({"case": name, "status": status, "detail": detail}), flush=True)
