"""The attributes of a generation's span: OpenTelemetry's GenAI conventions, and vLLM's names for what they measure.

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from __future__ import annotations

from typing import Any

from plugserve.core.contracts.requests import RequestTimings, RequestUsage
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.server.pipeline.generation import Generation
from plugserve.server.pipeline.generation_request import GenerationRequest


def request_attributes(request: GenerationRequest, params: SamplingParams, id: str) -> dict[str, Any]:
    """What the request asks for. id is the one that clients see."""
    if request.pooling:
        return {"gen_ai.request.id": id}
    sampling, grammar = request.sampling, request.grammar
    return {
        "gen_ai.request.max_tokens": params.max_tokens,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.top_k": float(params.top_k) if params.top_k else None,
        "gen_ai.request.presence_penalty": sampling.presence_penalty,
        "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
        "gen_ai.request.seed": sampling.seed,
        "gen_ai.request.stop_sequences": list(request.stop) or None,
        "gen_ai.request.choice.count": request.num_choices if request.num_choices != 1 else None,
        "gen_ai.request.stream": True if request.stream else None,
        "gen_ai.output.type": "json" if grammar is not None and grammar.kind == "json" else "text",
        # vLLM's
        "gen_ai.request.id": id,
        "gen_ai.request.n": request.num_choices,
    }


def result_attributes(
    generation: Generation,
    response_id: str,
    model: str,
    finish_reasons: list[str],
    usage: RequestUsage,
    timings: RequestTimings,
) -> dict[str, Any]:
    """What became of it. generation has sent its sequences to the engine."""
    first_s = timings.first_token_s
    times = [one for one in generation.times if one is not None]
    prefill_s = max((one.prefill_s for one in times), default=None)
    decode_s = max((one.decode_s for one in times), default=None)
    inference_s = None if prefill_s is None or decode_s is None else prefill_s + decode_s
    return {
        "gen_ai.response.id": response_id,
        "gen_ai.response.model": model or None,
        "gen_ai.response.finish_reasons": finish_reasons,
        "gen_ai.response.time_to_first_chunk": first_s if generation.request.stream else None,
        "gen_ai.usage.input_tokens": usage.num_prompt_tokens,
        "gen_ai.usage.output_tokens": usage.num_generated_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.num_cached_tokens or None,
        "gen_ai.usage.reasoning.output_tokens": usage.num_reasoning_tokens or None,
        # vLLM's
        "gen_ai.usage.prompt_tokens": usage.num_prompt_tokens,
        "gen_ai.usage.completion_tokens": usage.num_generated_tokens,
        "gen_ai.latency.time_to_first_token": first_s,
        "gen_ai.latency.e2e": timings.total_s,
        "gen_ai.latency.time_in_queue": timings.queue_s,
        "gen_ai.latency.time_in_model_prefill": prefill_s,
        "gen_ai.latency.time_in_model_decode": decode_s,
        "gen_ai.latency.time_in_model_inference": inference_s,
    }
