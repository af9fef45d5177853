"""The torch model runner: weights, KV tensors, device state and sampling in one place. Knows nothing of requests.

Steps run on a thread of their own, so that launch returns at once and the engine plans step N+1 while N computes
(torch releases the interpreter lock inside its kernels). That thread is the only one that calls torch after load.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch

from plugserve.core.contracts import (
    AttentionBackend,
    AttentionBatch,
    AttentionSpec,
    KVLayout,
    LengthRule,
    LoraManager,
    LoraSpec,
    RunnerInfo,
    StepInput,
    StepResult,
)
from plugserve.core.errors import ConfigError, ModelError, PluginError
from plugserve.core.messages import TokenLogprobs
from plugserve.core.models.decoder import Decoder, StepContext
from plugserve.core.models.decoder_spec import DecoderSpec
from plugserve.core.models.families import FAMILIES
from plugserve.core.models.lora import lora_spec
from plugserve.core.models.registry import Architectures, describe
from plugserve.core.runner.adapter_rows import AdapterRows
from plugserve.core.runner.cpu_threads import usable_cores
from plugserve.core.runner.device_state import DeviceState, StepTensors
from plugserve.core.runner.memory_plan import MemoryRequest, plan_blocks
from plugserve.core.runner.pooler import Pooler
from plugserve.core.runner.sampler import Sampler, describe_logprobs

log = logging.getLogger(__name__)

_LOGIT_ROWS = 64  # prompt logprobs are computed in slices, so that logits stay small


@dataclass(frozen=True, slots=True)
class RunnerSettings:
    """What the runner needs to know from the settings. dtype, device and max_model_len may be "auto"; None is
    automatic too (max_model_len: the model's, lowered to what fits; num_threads: torch's own choice)."""

    dtype: str
    device: str
    num_threads: int | None
    max_model_len: int | str | None
    model_max_len: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int | None
    memory: MemoryRequest
    max_loras: int = 1
    max_lora_rank: int = 16


class TorchRunner:
    """ModelRunner for the decoder family on any torch device.

    open_weights gives (name, tensor) pairs; choose_attention picks the backend for a spec (and logs refusals).
    make_lora_manager makes what serves adapters; None where nothing does.
    """

    owns_attention = False

    def __init__(
        self,
        config: Mapping[str, Any],
        settings: RunnerSettings,
        open_weights: Callable[[], Iterable[tuple[str, torch.Tensor]]],
        choose_attention: Callable[[AttentionSpec], AttentionBackend],
        architectures: Architectures = FAMILIES,
        make_lora_manager: Callable[[LoraSpec], LoraManager] | None = None,
    ) -> None:
        self._make_lora_manager = make_lora_manager
        self._config = config
        self._settings = settings
        self._open_weights = open_weights
        self._architectures = architectures
        self._choose_attention = choose_attention
        self._steps: SimpleQueue[StepInput | None] = SimpleQueue()
        self._results: SimpleQueue[StepResult] = SimpleQueue()
        self._masks: SimpleQueue[tuple[int, Any]] = SimpleQueue()
        self._thread = threading.Thread(target=self._run_steps, name="torch-runner", daemon=True)

    # ---- set-up

    def load(self) -> RunnerInfo:
        settings = self._settings
        torch.set_num_threads(settings.num_threads or min(torch.get_num_threads(), usable_cores()))
        self._device = choose_device(settings.device)
        dtype = choose_dtype(settings.dtype, self._device, self._config)
        spec = describe(self._config, self._architectures)
        attention_spec = attention_of(spec, dtype, self._device)
        self._length_rule = length_rule_of(spec)
        self._attention = self._choose_attention(attention_spec)
        layout = self._attention.kv_layout(attention_spec)
        if not isinstance(layout, KVLayout):
            raise PluginError(f"attention: kv_layout returned {type(layout).__name__}, not a plugserve.KVLayout")
        max_positions = _asked_length(settings)
        self._model = Decoder(spec, dtype=dtype, device=self._device, max_positions=max_positions)
        self._model.load(self._open_weights())
        self._adapters = AdapterRows(self._lora_manager(spec, dtype))
        num_blocks = plan_blocks(settings.memory, layout.bytes_per_block, self._device)
        max_model_len = fit_length(settings, num_blocks * settings.block_size)
        shape = [num_blocks if part == "num_blocks" else int(part) for part in layout.shape]
        self._kv = [zeros_on_demand(shape, dtype, self._device) for _ in range(spec.num_layers)]
        self._state = DeviceState(settings.max_num_seqs, max_model_len, settings.block_size, self._device)
        self._sampler = Sampler(self._state)
        self._pooler = Pooler(self._state, self._model.normed)
        max_num_batched_tokens = settings.max_num_batched_tokens or (256 if self._device.type == "cpu" else 8192)
        self._attention.prepare(max_num_batched_tokens, settings.max_num_seqs)
        self._thread.start()
        return RunnerInfo(
            vocab_size=spec.vocab_size,
            max_model_len=max_model_len,
            max_num_batched_tokens=max_num_batched_tokens,
            num_blocks=num_blocks,
            block_size=settings.block_size,
            kv_cache_bytes=num_blocks * layout.bytes_per_block,
            weight_bytes=self._model.size_bytes,
            dtype=str(dtype).removeprefix("torch."),
            device=str(self._device),
            length_rule=self._length_rule,
        )

    def _lora_manager(self, spec: DecoderSpec, dtype: torch.dtype) -> LoraManager | None:
        if self._make_lora_manager is None:
            return None
        asked = lora_spec(
            spec,
            dtype=str(dtype).removeprefix("torch."),
            device=str(self._device),
            max_loras=self._settings.max_loras,
            max_rank=self._settings.max_lora_rank,
        )
        return self._make_lora_manager(asked)

    # ---- the engine's side

    def launch(self, step: StepInput) -> None:
        self._steps.put(step)

    def provide_masks(self, step_id: int, masks: Any) -> None:
        self._masks.put((step_id, masks))

    def collect(self) -> StepResult:
        return self._results.get()

    def close(self) -> None:
        self._steps.put(None)
        self._thread.join()
        self._kv.clear()

    # ---- the runner's thread

    def _run_steps(self) -> None:
        with torch.inference_mode():
            while (step := self._steps.get()) is not None:
                started_s = time.perf_counter()
                try:
                    result = self._execute(step)
                except Exception as error:
                    log.exception("step failed step_id=%d", step.step_id)
                    result = _failure(step, f"the model runner failed: {type(error).__name__}")
                result.duration_s = time.perf_counter() - started_s
                self._results.put(result)

    def _execute(self, step: StepInput) -> StepResult:
        self._state.apply(step)
        self._adapters.apply(step)
        if not step.rows:
            return StepResult(step_id=step.step_id, tokens=[])
        tensors = self._state.gather(step)
        hidden = self._forward(step, tensors)
        result = StepResult(step_id=step.step_id, tokens=[[] for _ in step.rows], failed=self._adapters.failures(step))
        self._add_prompt_logprobs(result, step, tensors, hidden)
        self._pooler.add(result, step, tensors, hidden)
        sampling = [b for b, samples in enumerate(step.samples) if samples]
        if not sampling:
            nobody = torch.empty(0, dtype=torch.int64, device=self._device)
            self._state.advance(step, tensors, nobody, nobody)
            return result
        index = torch.tensor(sampling, device=self._device)
        logits = self._model.logits(hidden[tensors.last_index[index]])
        drawn, logprobs = self._sampler.sample(
            logits,
            tensors.rows[index],
            [step.rows[b] for b in sampling],
            [tensors.starts[b] + tensors.counts[b] for b in sampling],
            masks=self._wait_for_masks(step, sampling),
        )
        self._state.advance(step, tensors, index, drawn)
        for s, (b, token) in enumerate(zip(sampling, drawn.tolist(), strict=True)):
            result.tokens[b].append(token)
            if s in logprobs:
                result.logprobs[b] = logprobs[s]
        for s in logits.amax(-1).isnan().nonzero().flatten().tolist():
            result.failed[sampling[s]] = "the model's logits are not numbers (NaN)"
        return result

    def _wait_for_masks(self, step: StepInput, sampling: list[int]) -> dict[int, torch.Tensor]:
        """The engine's masks by index into sampling; the forward pass ran while it made them."""
        if not step.constrained:
            return {}
        step_id, masks = self._masks.get()
        while step_id != step.step_id:  # left over from a step that failed before it came here
            step_id, masks = self._masks.get()
        words = torch.from_numpy(masks.view(np.int32)).to(self._device)
        return {sampling.index(b): mask for b, mask in zip(step.constrained, words, strict=True)}

    def _forward(self, step: StepInput, tensors: StepTensors) -> torch.Tensor:
        context_lens = [start + count for start, count in zip(tensors.starts, tensors.counts, strict=True)]
        batch = AttentionBatch(
            query_lens=tensors.counts,
            context_lens=context_lens,
            slots=tensors.slots,
            block_table=self._state.block_table[tensors.rows],
            block_size=self._settings.block_size,
            query_starts=tensors.query_starts,
            context_lengths=tensors.context_lengths,
        )
        context = StepContext(
            positions=tensors.positions,
            kv=self._kv,
            attention=self._attention,
            attention_step=self._attention.plan(batch),
            lengths=self._rope_lengths(tensors),
            lora=self._adapters.plan(step),
        )
        return self._model.forward(tensors.token_ids, context)

    def _rope_lengths(self, tensors: StepTensors) -> torch.Tensor | None:
        if self._length_rule is None:
            return None
        return torch.maximum(self._state.rope_length[tensors.token_rows], tensors.positions + 1)

    def _add_prompt_logprobs(
        self, result: StepResult, step: StepInput, tensors: StepTensors, hidden: torch.Tensor
    ) -> None:
        """For rows that ask: the logprob of each prompt token whose predecessor this step computed."""
        offset = 0
        for b, row in enumerate(step.rows):
            rule = self._state.sampling[row]
            start, count = tensors.starts[b], tensors.counts[b]
            num_targets = min(count, rule.num_prompt_tokens - 1 - start)
            if rule.params.num_prompt_logprobs is not None and num_targets > 0:
                targets = self._state.tokens[row, start + 1 : start + 1 + num_targets].long()
                here = hidden[offset : offset + num_targets]
                result.prompt_logprobs[b] = self._score(here, targets, rule.params.num_prompt_logprobs)
            offset += count

    def _score(self, hidden: torch.Tensor, targets: torch.Tensor, num_top: int) -> list[TokenLogprobs]:
        entries: list[TokenLogprobs] = []
        for some, chosen in zip(torch.split(hidden, _LOGIT_ROWS), torch.split(targets, _LOGIT_ROWS), strict=True):
            entries += describe_logprobs(self._model.logits(some).log_softmax(-1), chosen, [num_top] * len(chosen))
        return entries


def _failure(step: StepInput, message: str) -> StepResult:
    everyone = range(len(step.rows))
    return StepResult(step_id=step.step_id, tokens=[[] for _ in everyone], failed=dict.fromkeys(everyone, message))


# ---- choices at load


def choose_device(name: str) -> torch.device:
    """The device for --device; auto takes the first GPU that torch can use, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name!r} is not a device; use auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device {name}: torch {torch.__version__} finds no CUDA device here; use --device cpu")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name} is not supported; use auto, cpu or cuda")
    return device


def choose_dtype(name: str, device: torch.device, config: Mapping[str, Any]) -> torch.dtype:
    """The dtype for --dtype. auto is the checkpoint's own on a GPU and float32 on a CPU, where greedy output then
    doesn't depend on what else is in the batch."""
    dtypes = {"half": torch.float16, "float16": torch.float16, "bfloat16": torch.bfloat16}
    dtypes |= {"float": torch.float32, "float32": torch.float32}
    if name != "auto":
        return dtypes[name]
    if device.type == "cpu":
        return torch.float32
    saved = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    dtype = dtypes.get(saved, torch.bfloat16)
    return torch.bfloat16 if dtype is torch.float32 else dtype


def attention_of(spec: DecoderSpec, dtype: torch.dtype, device: torch.device) -> AttentionSpec:
    return AttentionSpec(
        num_layers=spec.num_layers,
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        scale=spec.head_dim**-0.5 if spec.attention_scale is None else spec.attention_scale,
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        windows=spec.windows,
        soft_cap=spec.attention_soft_cap,
    )


def length_rule_of(spec: DecoderSpec) -> LengthRule | None:
    """Raises ModelError for layers that differ in where a sequence counts as long."""
    rules = {
        LengthRule(border, rope.kind == "longrope") for rope in spec.ropes if (border := rope.length_border) is not None
    }
    if len(rules) > 1:
        raise ModelError(f"{spec.architecture}: layers with different length-dependent RoPE are not supported")
    return rules.pop() if rules else None


def _asked_length(settings: RunnerSettings) -> int:
    asked = settings.max_model_len
    return asked if isinstance(asked, int) else settings.model_max_len


def fit_length(settings: RunnerSettings, num_kv_tokens: int) -> int:
    """max_model_len such that one full-length sequence fits the KV cache.

    A length that the user gave must fit (ConfigError); the model's own is lowered with one log line.
    """
    asked = _asked_length(settings)
    if asked <= num_kv_tokens:
        return asked
    if isinstance(settings.max_model_len, int):
        raise ConfigError(
            f"--max-model-len {asked} does not fit: the KV cache holds {num_kv_tokens} tokens; "
            f"lower it, use --max-model-len auto, or raise --kv-cache-memory"
        )
    say = log.info if settings.max_model_len == "auto" else log.warning
    say("max_model_len lowered from=%d to=%d: the KV cache holds no more tokens", asked, num_kv_tokens)
    return num_kv_tokens


def zeros_on_demand(shape: list[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A zeroed tensor; on a CPU its pages are only taken from the system when they are first written."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = int(np.prod(shape)) * torch.empty(0, dtype=dtype).element_size()
    return torch.from_numpy(np.zeros(num_bytes, dtype=np.uint8)).view(dtype).view(shape)
