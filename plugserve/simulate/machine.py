"""Builds the simulated machine from a trace and settings. Settings that are not given are taken from the trace."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from plugserve.core.contracts.scheduling import StepTime
from plugserve.core.engine.step_time import StepTimeFit
from plugserve.core.errors import ConfigError
from plugserve.core.settings.settings import Settings
from plugserve.core.wire.trace_file import HASHED_TOKENS, StepTimeFacts, Trace
from plugserve.simulate.simulation import Machine

_NUM_BLOCKS = 4096  # the default without trace and setting: 64 Ki tokens in blocks of 16
_NUM_BATCHED_TOKENS = 2048
_OUTLIER = 3.0  # times what the first fit expects: warm-up, or another program that had the processor


class Fit:
    """Step times fitted to recorded steps; error is the mean deviation as a share of the mean."""

    def __init__(self, steps: Sequence[tuple[int, int, int, float]]) -> None:
        first = _fit(steps)
        kept = [step for step in steps if step[3] <= _OUTLIER * 1e3 * _predict(first, step)]
        self.step_time = _fit(kept)
        self.num_steps, self.num_outliers = len(kept), len(steps) - len(kept)
        deviation = sum(abs(step[3] / 1e3 - _predict(self.step_time, step)) for step in kept)
        self.error = deviation / max(1e-12, sum(step[3] / 1e3 for step in kept))

    def __str__(self) -> str:
        left_out = f", {self.num_outliers} outliers left out" if self.num_outliers else ""
        return f"{self.num_steps} steps measured in the trace{left_out}, mean deviation {self.error:.0%}"


def _fit(steps: Sequence[tuple[int, int, int, float]]) -> StepTime:
    fit = StepTimeFit(decay=1.0)
    for num_prompt_tokens, num_decoding, num_pairs, duration_ms in steps:
        fit.observe(num_prompt_tokens, num_decoding, num_pairs, duration_ms / 1e3)
    return fit.refit()


def _predict(step_time: StepTime, step: tuple[int, int, int, float]) -> float:
    num_prompt_tokens, num_decoding, num_pairs, _ = step
    return step_time.predict_s(num_prompt_tokens + num_decoding, num_decoding, num_pairs)


def choose_step_time(trace: Trace, given: StepTimeFacts | None) -> tuple[StepTime, str]:
    """The step-time model and where it comes from. Raises ConfigError where there is none."""
    if given is not None:
        return given.step_time(), "--step-time"
    if trace.facts.step_time is not None:
        return trace.facts.step_time.step_time(), "the trace's header"
    if trace.steps:
        fit = Fit(trace.steps)
        return fit.step_time, str(fit)
    raise ConfigError(
        "the trace has no measured steps; set the time of a step: --step-time BASE_MS,TOKEN_US, such as 12.5,150"
    )


def build_machine(trace: Trace, settings: Settings, given: Collection[str], step_time: StepTime) -> Machine:
    """given are the names of the settings that the user gave. Raises ConfigError for a request that could never run."""
    facts = trace.facts
    longest = max(one.prompt_tokens + (one.max_tokens or one.output_tokens) for one in trace.requests)
    block_size = settings.block_size if "block_size" in given else facts.block_size or settings.block_size
    num_blocks = settings.num_gpu_blocks_override or facts.num_blocks
    if num_blocks is None:
        num_blocks = max(_NUM_BLOCKS, -(-longest // block_size))
    max_model_len = settings.max_model_len if isinstance(settings.max_model_len, int) else facts.max_model_len
    if max_model_len is None:
        max_model_len = longest
    if longest > min(max_model_len, num_blocks * block_size):
        raise ConfigError(
            f"the trace's longest request has {longest} tokens (prompt and max_tokens), but only "
            f"{min(max_model_len, num_blocks * block_size)} fit; raise --max-model-len or --num-gpu-blocks-override"
        )
    return Machine(
        step_time=step_time,
        block_size=block_size,
        num_blocks=num_blocks,
        max_num_seqs=(facts.max_num_seqs if "max_num_seqs" not in given else None) or settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens or facts.max_num_batched_tokens or _NUM_BATCHED_TOKENS,
        max_model_len=max_model_len,
        hash_tokens=facts.hash_tokens or HASHED_TOKENS,
        max_num_waiting=settings.max_num_queued_requests,
        num_host_blocks=0 if settings.swap_space == 0 else facts.num_host_blocks or 0,
    )
