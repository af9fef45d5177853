"""Makes jobs of a request's prompts: each is one sequence for the engine and one choice for the client."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

import msgspec

from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.errors import RequestError
from plugserve.server.pipeline.choice import StopRules, TextChoice
from plugserve.server.pipeline.generation import JOBS_A_TURN, Job
from plugserve.server.pipeline.generation_request import GenerationRequest
from plugserve.server.pipeline.limits import Limits, check_num_logprobs, check_prompt_length, num_new_tokens
from plugserve.server.pipeline.pooled_choice import PooledChoice
from plugserve.server.pipeline.prompts import Prompt, context_of, echo_of
from plugserve.server.pipeline.sampling_fields import TokenSpace, nth_seed, sampling_params
from plugserve.server.text.answer_parsers import AnswerParser
from plugserve.server.text.tool_calls import CallParser, NoCalls
from plugserve.server.worker.served_models import TextSide

_MAX_CHOICES: Final = 2048


async def unchanged(params: SamplingParams, num_choices: int, num_prompts: int) -> SamplingParams:
    """Returns the parameters unchanged."""
    return params


async def plan_jobs(
    request: GenerationRequest,
    prompts: Sequence[Prompt],
    text: TextSide,
    limits: Limits,
    grammar: str = "",
    adjust: Callable[[SamplingParams, int, int], Awaitable[SamplingParams]] = unchanged,
) -> list[Job]:
    """num_choices jobs for each prompt, prompt by prompt; choice i of a prompt draws with seed + i. grammar binds them
    all. adjust lets plugins change the parameters (plugserve_sampling_params). Tokenising words and detokenising echoed
    prompts runs in a thread. Raises RequestError (400)."""
    if request.pooling:
        return _pooling_jobs(request, prompts, text, limits)
    count = request.num_choices
    if len(prompts) * count > _MAX_CHOICES:
        raise RequestError(
            f"n: at most {_MAX_CHOICES} answers in one request, got {len(prompts)} prompts x {count}", param="n"
        )
    check_num_logprobs(request.names.logprobs, request.num_logprobs, limits)
    check_num_logprobs("prompt_logprobs", request.num_prompt_logprobs, limits)
    tokens = TokenSpace(limits.vocab_size, text.encode)
    template: SamplingParams | None = None
    planned_for = 0
    jobs: list[Job] = []
    for prompt in prompts:
        max_tokens = _max_tokens(request, prompt, limits)
        if template is None or max_tokens != planned_for:
            make = partial(_params, request, max_tokens, limits, tokens, grammar, template)
            params = await asyncio.to_thread(make) if request.sampling.bad_words else make()
            template, planned_for = await adjust(params, count, len(prompts)), max_tokens
        num_planned = len(jobs)
        for index in range(count):
            plan = partial(_job, request, prompt, text, template, num_planned + index, index)
            jobs.append(await asyncio.to_thread(plan) if request.echo else plan())
            if len(jobs) % JOBS_A_TURN == 0:
                await asyncio.sleep(0)
    return jobs


def _pooling_jobs(request: GenerationRequest, prompts: Sequence[Prompt], text: TextSide, limits: Limits) -> list[Job]:
    pooling = "mean" if request.pooling == "model" and text.encoder is None else request.pooling
    for prompt in prompts:
        check_prompt_length(len(prompt.token_ids), limits, request.names.prompt, is_pooled=True)
    return [
        Job(
            PooledChoice(index),
            prompt.token_ids,
            SamplingParams(max_tokens=0, seed=0, pooling=pooling, second_start=prompt.second_start),
        )
        for index, prompt in enumerate(prompts)
    ]


def _max_tokens(request: GenerationRequest, prompt: Prompt, limits: Limits) -> int:
    asked = None if request.max_new_tokens is None else max(1, request.max_new_tokens)
    return num_new_tokens(
        asked,
        len(prompt.token_ids),
        limits,
        default=request.default_new_tokens,
        field_name=request.names.max_tokens,
        prompt_field=request.names.prompt,
    )


def _params(
    request: GenerationRequest,
    max_tokens: int,
    limits: Limits,
    tokens: TokenSpace,
    grammar: str,
    earlier: SamplingParams | None,
) -> SamplingParams:
    """earlier: those of a prompt before, whose seed is kept."""
    of_prompt = [request.num_prompt_logprobs, request.num_logprobs if request.echo else None]
    params = sampling_params(
        request.sampling,
        limits,
        tokens,
        max_tokens=max_tokens,
        num_logprobs=request.num_logprobs,
        num_prompt_logprobs=max((count for count in of_prompt if count is not None), default=None),
        grammar=grammar,
    )
    return params if earlier is None else msgspec.structs.replace(params, seed=earlier.seed)


def _job(
    request: GenerationRequest, prompt: Prompt, text: TextSide, params: SamplingParams, index: int, nth: int
) -> Job:
    parser = _parser(request, prompt, text)
    kept = text.parsers.special_tokens if parser is not None else ()
    skip = request.skip_special_tokens
    choice = TextChoice(
        index,
        text.vocabulary.detokenizer(skip_special_tokens=skip, context=context_of(prompt), kept=kept),
        StopRules(
            request.stop,
            frozenset(params.stop_token_ids),
            is_included=request.includes_stop,
            min_tokens=params.min_tokens,
        ),
        echo=echo_of(prompt, text.vocabulary, skip_special_tokens=skip) if request.echo else None,
        is_silent=request.max_new_tokens == 0,
        parser=parser,
    )
    if nth:
        params = msgspec.structs.replace(params, seed=nth_seed(params.seed, nth))
    return Job(choice, prompt.token_ids, params, prompt.block_hashes)


def _parser(request: GenerationRequest, prompt: Prompt, text: TextSide) -> AnswerParser | None:
    """Reads one answer; None where all of its text is content."""
    thinks = text.parsers.reasoning is not None
    reasoning = text.parsers.new_reasoning(prompt.answer_prefix) if thinks else None
    if request.needs_thinking and reasoning is None:
        raise RequestError(
            "thinking: this model doesn't think, or the server lacks its reasoning parser (--reasoning-parser); leave "
            "it out.",
            code="unsupported_value",
            param="thinking",
        )
    if request.tools is None:
        if reasoning is None or not (reasoning.is_thinking or reasoning.may_think):
            return None
        calls: CallParser = NoCalls()
    else:
        calls = request.tools.new_parser(text.parsers)
    return AnswerParser(reasoning, calls, shows_reasoning=request.shows_reasoning)
