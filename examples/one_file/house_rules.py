"""House rules for a shared server. Start it with `plugserve --plugin ./house_rules.py`."""

import logging

from plugserve import Refusal, RequestUsage, RequestView, hookimpl

KEYS = {"Bearer ada-key": "ada", "Bearer bob-key": "bob"}
log = logging.getLogger("plugserve.house_rules")


@hookimpl
def plugserve_authorize(request: RequestView) -> Refusal | None:
    is_known = request.headers.get("authorization") in KEYS
    return None if is_known else Refusal(401, "who are you? send Authorization: Bearer KEY")


@hookimpl
def plugserve_request_received(request: RequestView) -> dict:
    asked = request.body.get("max_completion_tokens") or request.body.get("max_tokens") or 200
    return {**request.body, "max_tokens": min(asked, 200), "max_completion_tokens": None}


@hookimpl
def plugserve_request_finished(request: RequestView, usage: RequestUsage) -> None:
    log.info("%s used %d tokens", KEYS[request.headers["authorization"]], usage.num_generated_tokens)
