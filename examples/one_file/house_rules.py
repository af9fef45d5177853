"""House rules for a shared server. Start it with `plugserve --plugin ./house_rules.py`."""

import logging

import msgspec

from plugserve import Identity, Refusal, RequestError, RequestUsage, RequestView, SamplingParams, hookimpl

USERS = {"Bearer ada-key": "ada", "Bearer bob-key": "bob"}
log = logging.getLogger("plugserve.house_rules")


@hookimpl
def plugserve_authorize(request: RequestView) -> Refusal | Identity:
    user = USERS.get(request.headers.get("authorization", ""))
    return Identity(user) if user else Refusal(401, "send Authorization: Bearer KEY")


@hookimpl
def plugserve_sampling_params(params: SamplingParams, num_choices: int) -> SamplingParams:
    """At most 200 tokens an answer and 4 answers, whatever API and field asks for them."""
    if num_choices > 4:
        raise RequestError(f"n: at most 4 answers in one request, got {num_choices}", param="n")
    return msgspec.structs.replace(params, max_tokens=min(params.max_tokens, 200))


@hookimpl
def plugserve_request_finished(request: RequestView, usage: RequestUsage) -> None:
    log.info("%s used %d tokens", request.identity.name, usage.num_generated_tokens)
