"""From a parsed body and its prompts to the jobs of a generation. Knows nothing of HTTP."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.errors import RequestError
from plugserve.server.api.completions.body import MAX_PROMPTS
from plugserve.server.pipeline.choice import Choice, StopRules
from plugserve.server.pipeline.endpoints import Parsed
from plugserve.server.pipeline.generation import Job
from plugserve.server.pipeline.prompts import Prompt, context_of, echo_of
from plugserve.server.pipeline.sampling_params import Limits, bad_word_tokens, nth_seed, num_new_tokens, sampling_params
from plugserve.server.text.answer_parsers import AnswerParser
from plugserve.server.text.tool_calls import CallParser, NoCalls
from plugserve.server.worker.served_models import TextSide

_MAX_CHOICES = MAX_PROMPTS


def plan_jobs(
    parsed: Parsed, prompts: Sequence[Prompt], text: TextSide, limits: Limits, grammar: str = ""
) -> list[Job]:
    """n jobs for each prompt, prompt by prompt; choice i of a prompt draws with seed + i. grammar binds them all.
    Raises RequestError (400)."""
    count = parsed.body.n or 1
    if len(prompts) * count > _MAX_CHOICES:
        raise RequestError(
            f"n: at most {_MAX_CHOICES} answers in one request, got {len(prompts)} prompts x {count}", param="n"
        )
    bad_words = bad_word_tokens(parsed.body.bad_words or (), text.encode)
    template: SamplingParams | None = None
    jobs: list[Job] = []
    for prompt in prompts:
        max_tokens = _max_tokens(parsed, prompt, limits)
        if template is None or max_tokens != template.max_tokens:
            template = _params(parsed, max_tokens, limits, bad_words, grammar, template)
        jobs += [_job(parsed, prompt, text, template, len(jobs) + index, index) for index in range(count)]
    return jobs


def _max_tokens(parsed: Parsed, prompt: Prompt, limits: Limits) -> int:
    asked = None if parsed.num_new_tokens is None else max(1, parsed.num_new_tokens)
    return num_new_tokens(
        asked,
        len(prompt.token_ids),
        limits,
        default=parsed.default_new_tokens,
        field_name=parsed.tokens_field,
        prompt_field=parsed.prompt_field,
    )


def _params(
    parsed: Parsed,
    max_tokens: int,
    limits: Limits,
    bad_words: tuple[tuple[int, ...], ...],
    grammar: str,
    earlier: SamplingParams | None,
) -> SamplingParams:
    of_prompt = [parsed.body.prompt_logprobs, parsed.num_logprobs if parsed.echo else None]
    asked = [count for count in of_prompt if count is not None]
    params = sampling_params(
        parsed.body,
        limits,
        max_tokens=max_tokens,
        num_logprobs=parsed.num_logprobs,
        num_prompt_logprobs=max(asked, default=None),
        bad_words=bad_words,
    )
    seed = params.seed if earlier is None else earlier.seed
    return msgspec.structs.replace(params, seed=seed, grammar=grammar)


def _job(parsed: Parsed, prompt: Prompt, text: TextSide, params: SamplingParams, index: int, nth: int) -> Job:
    body = parsed.body
    skip = body.skip_special_tokens is not False
    parser = _parser(parsed, prompt, text)
    kept = text.parsers.special_tokens if parser is not None else ()
    choice = Choice(
        index,
        text.vocabulary.detokenizer(skip_special_tokens=skip, context=context_of(prompt), kept=kept),
        StopRules(
            body.stop_strings,
            frozenset(params.stop_token_ids),
            is_included=bool(body.include_stop_str_in_output),
            min_tokens=params.min_tokens,
        ),
        echo=echo_of(prompt, text.vocabulary, skip_special_tokens=skip) if parsed.echo else None,
        is_silent=parsed.num_new_tokens == 0,
        parser=parser,
    )
    params = msgspec.structs.replace(params, seed=nth_seed(params.seed, nth))
    return Job(choice, prompt.token_ids, params, prompt.block_hashes)


def _parser(parsed: Parsed, prompt: Prompt, text: TextSide) -> AnswerParser | None:
    """Reads one answer; None where all of its text is content."""
    reasoning = text.parsers.new_reasoning(prompt.begun)
    if parsed.needs_thinking and reasoning is None:
        raise RequestError(
            "thinking: this model doesn't think, or the server wasn't told how it does (--reasoning-parser); leave it "
            "out.",
            code="unsupported_value",
            param="thinking",
        )
    if parsed.tools is None:
        if reasoning is None or not (reasoning.is_thinking or reasoning.may_think):
            return None
        calls: CallParser = NoCalls()
    else:
        calls = parsed.tools.new_parser(text.parsers)
    return AnswerParser(reasoning, calls, tells_reasoning=parsed.tells_reasoning)
