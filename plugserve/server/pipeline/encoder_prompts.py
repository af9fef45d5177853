"""Prompts of requests for vectors and scores, and the check that a model serves what a request asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial

from plugserve.core.errors import RequestError
from plugserve.core.model_files.encoder_files import EMBED, SCORE, EncoderFacts
from plugserve.server.api.json_body import shown
from plugserve.server.pipeline.generation_request import GenerationRequest, TextPairs, Texts
from plugserve.server.pipeline.limits import (
    Limits,
    check_num_characters,
    check_prompt_length,
    check_token_ids,
    most_characters,
)
from plugserve.server.pipeline.prompts import Prompt
from plugserve.server.text.encoder_text import Cut, EncoderText
from plugserve.server.text.text_threads import TextThreads

DECODER_POOLINGS = ("mean", "last")
_QUERY = ("query",)
_DOCUMENT = ("document", "passage", "corpus")
EncodeTexts = Callable[[Sequence[str], Cut], list[list[int]]]


def check_task(request: GenerationRequest, model: str, facts: EncoderFacts | None) -> None:
    """Raises RequestError (400) for a request that the model can't serve. facts are None for one that generates."""
    if facts is None:
        _check_decoder(request)
        return
    if not request.pooling:
        raise _wrong_task(
            f"The model {shown(model)} is an encoder ({facts.architecture}) and generates no text; it serves "
            f"{_routes(facts)}."
        )
    if facts.task == SCORE and not isinstance(request.prompts, TextPairs):
        raise _wrong_task(
            f"The model {shown(model)} is a cross-encoder ({facts.architecture}), which scores pairs of texts and "
            f"makes no embeddings; it serves {_routes(facts)}."
        )
    if facts.task == SCORE and facts.num_labels != 1:
        raise _wrong_task(
            f"The model {shown(model)} has {facts.num_labels} labels; scores need a cross-encoder with one."
        )
    _check_dimensions(request, facts)


def _routes(facts: EncoderFacts) -> str:
    return "/v1/rerank and /v1/score" if facts.task == SCORE else "/v1/embeddings, /v1/rerank and /v1/score"


def _wrong_task(message: str) -> RequestError:
    return RequestError(message, code="unsupported_model", param="model")


def _check_decoder(request: GenerationRequest) -> None:
    if request.pooling not in ("", "model", *DECODER_POOLINGS):
        raise RequestError(
            f"pooling: this model has mean and last, got {shown(request.pooling)}",
            code="unsupported_value",
            param="pooling",
        )
    for name, value in (("dimensions", request.dimensions), ("prompt_name", request.prompt_name)):
        if value is not None:
            why = "its vectors can't be shortened" if name == "dimensions" else "it has no prompts by name"
            raise RequestError(
                f"{name}: not supported by this model, because {why}, got {shown(value)}; leave it out.",
                code="unsupported_value",
                param=name,
            )


def _check_dimensions(request: GenerationRequest, facts: EncoderFacts) -> None:
    asked = request.dimensions
    if asked is None or facts.any_dimension or asked in facts.dimensions:
        return
    takes = (
        f"it takes {', '.join(map(str, facts.dimensions))}" if facts.dimensions else "its vectors can't be shortened"
    )
    raise RequestError(
        f"dimensions: not supported by this model, because {takes}, got {asked}; leave it out.",
        code="unsupported_value",
        param="dimensions",
    )


# ---------------------------------------------------------------- prompts


async def encoder_prompts(
    request: GenerationRequest, text: EncoderText, limits: Limits, pool: Executor
) -> list[Prompt]:
    """All prompts of a request to an encoder, in its order. Raises RequestError (400)."""
    given, cut = request.prompts, _cut_of(request, limits)
    if isinstance(given, TextPairs):
        prompts = await _pair_prompts(given, cut, request, text, limits, pool)
    else:
        assert isinstance(given, Texts)
        prompts = await _text_prompts(given, cut, request, text, limits, pool)
    for prompt in prompts:
        check_prompt_length(len(prompt.token_ids), limits, request.names.prompt, is_pooled=True)
        check_token_ids(prompt.token_ids, limits.vocab_size, request.names.prompt)
        if not prompt.token_ids:
            raise RequestError(f"{request.names.prompt}: must not be empty.", param=request.names.prompt)
    return prompts


async def _text_prompts(
    texts: Texts, cut: Cut, request: GenerationRequest, text: EncoderText, limits: Limits, pool: Executor
) -> list[Prompt]:
    if not isinstance(texts.prompts[0], str):
        return [Prompt(ids[: cut.total]) for ids in texts.prompts if isinstance(ids, list)]
    prefix = _prefix(request, text.facts)
    strings = [prefix + one for one in texts.prompts if isinstance(one, str)]
    encode = partial(text.encode_texts, add_special_tokens=texts.add_special_tokens)
    given, tokens = await _encoded(strings, cut, encode, request, limits, pool)
    return [Prompt(ids, one) for one, ids in zip(given, tokens, strict=True)]


async def _pair_prompts(
    pairs: TextPairs, cut: Cut, request: GenerationRequest, text: EncoderText, limits: Limits, pool: Executor
) -> list[Prompt]:
    """One prompt a pair for a cross-encoder; else one a text, first those of the first texts."""
    if text.facts.task == EMBED:
        query, document = (_named_prompt(text.facts, names) for names in (_QUERY, _DOCUMENT))
        firsts = [query + one for one in pairs.firsts]
        seconds = [document + one for one in pairs.seconds]
        _, tokens = await _encoded(firsts, Cut(cut.total), text.encode_texts, request, limits, pool)
        least = min((one for one in (cut.total, cut.second) if one is not None), default=None)
        _, more = await _encoded(seconds, Cut(least), text.encode_texts, request, limits, pool)
        return [Prompt(ids) for ids in (*tokens, *more)]
    firsts = pairs.firsts * len(pairs.seconds) if len(pairs.firsts) == 1 else pairs.firsts
    check = partial(_checked, cut=cut, request=request, limits=limits)
    both = list(zip(check(firsts), check(pairs.seconds), strict=True))
    threads = _threads(pool, sum(len(first) + len(second) for first, second in both))
    found = await asyncio.get_running_loop().run_in_executor(threads, text.encode_pairs, both, cut)
    return [Prompt(ids, second_start=start) for ids, start in found]


async def _encoded(
    texts: Sequence[str], cut: Cut, encode: EncodeTexts, request: GenerationRequest, limits: Limits, pool: Executor
) -> tuple[list[str], list[list[int]]]:
    """The texts as they are encoded, and their tokens."""
    checked = _checked(texts, cut=cut, request=request, limits=limits)
    threads = _threads(pool, sum(map(len, checked)))
    return checked, await asyncio.get_running_loop().run_in_executor(threads, encode, checked, cut)


def _checked(texts: Sequence[str], *, cut: Cut, request: GenerationRequest, limits: Limits) -> list[str]:
    """The texts, of which cut ones lose what no tokenizer would reach. Raises RequestError (400) for one that is too
    long for any."""
    if cut.total is not None:
        return [one[: most_characters(limits)] for one in texts]
    for one in texts:
        check_num_characters(len(one), limits, request.names.prompt)
    return list(texts)


def _threads(pool: Executor, num_characters: int) -> Executor:
    return pool.of_length(num_characters) if isinstance(pool, TextThreads) else pool


def _cut_of(request: GenerationRequest, limits: Limits) -> Cut:
    longest = limits.longest_prompt(is_pooled=True)
    count = request.truncate_prompt_tokens
    if count is not None and count > longest:
        raise RequestError(
            f"truncate_prompt_tokens: must be at most {longest}, the model's longest input, got {count}",
            param="truncate_prompt_tokens",
        )
    second = request.prompts.longest_second if isinstance(request.prompts, TextPairs) else None
    return Cut(longest if count == -1 else count, second)


def _prefix(request: GenerationRequest, facts: EncoderFacts) -> str:
    """The text that goes before inputs: the prompt that the request names, else the model's default. Raises
    RequestError (400)."""
    name = request.prompt_name
    if name is not None and name not in facts.prompts:
        known = ", ".join(facts.prompts) or "none"
        raise RequestError(f"prompt_name: the model's prompts are: {known}; got {shown(name)}", param="prompt_name")
    prefix = facts.default_prompt if name is None else facts.prompts[name]
    return _pooled_prompt(prefix, facts)


def _named_prompt(facts: EncoderFacts, names: tuple[str, ...]) -> str:
    found = next((facts.prompts[name] for name in names if name in facts.prompts), facts.default_prompt)
    return _pooled_prompt(found, facts)


def _pooled_prompt(prefix: str, facts: EncoderFacts) -> str:
    """prefix, where its tokens are pooled with the text's. Raises RequestError (400)."""
    if prefix and not facts.pools_prompts:
        raise RequestError(
            "prompt_name: this model leaves prompts out of the pooling (include_prompt false), which is not supported; "
            "send token ids as input.",
            code="unsupported_value",
            param="prompt_name",
        )
    return prefix
