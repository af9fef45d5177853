"""The torch model runner: weights, KV tensors, device state and sampling in one place. Knows nothing of requests.

On a CPU steps run on a thread of their own, so that launch returns at once and the engine plans step N+1 while N
computes (torch releases the interpreter lock inside its kernels). On a GPU launch queues a step's kernels, or replays
captured ones, and collect waits for its tokens.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib.util import find_spec
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from plugserve.backends.torch.models.decoder import Decoder
from plugserve.backends.torch.models.lora_sites import lora_spec
from plugserve.backends.torch.runner.adapter_rows import AdapterRows
from plugserve.backends.torch.runner.cpu_threads import usable_cores
from plugserve.backends.torch.runner.device_state import DeviceState, StepTensors
from plugserve.backends.torch.runner.draft_runner import DraftFiles, DraftModel
from plugserve.backends.torch.runner.host_copies import HostCopies
from plugserve.backends.torch.runner.load_choices import (
    RunnerSettings,
    asked_length,
    attention_of,
    choose_device,
    choose_dtype,
    fit_length,
    length_rule_of,
    zeros_on_demand,
)
from plugserve.backends.torch.runner.memory_plan import plan_blocks, plan_host_slots
from plugserve.backends.torch.runner.pooler import Pooler
from plugserve.backends.torch.runner.row_forward import RowForward
from plugserve.backends.torch.runner.running_step import RunningStep, failure_of
from plugserve.backends.torch.runner.speculator import DraftedStep, Speculator
from plugserve.backends.torch.runner.transfers import to_device
from plugserve.backends.torch.sampling.draws import TokenMasks, make_draws
from plugserve.backends.torch.sampling.logprobs import logprobs_of
from plugserve.backends.torch.sampling.sampler import Sampler
from plugserve.core.contracts.attention import AttentionBackend, AttentionSpec, KVLayout
from plugserve.core.contracts.factories import ProposerMaker
from plugserve.core.contracts.lora import LoraManager, LoraSpec
from plugserve.core.contracts.model import DecoderSpec
from plugserve.core.contracts.runner import RunnerInfo, StepInput, StepResult
from plugserve.core.contracts.sampling import TokenLogprobs
from plugserve.core.contracts.speculation import DraftProposer
from plugserve.core.errors import PluginError
from plugserve.core.model_files.architectures import Architectures, describe
from plugserve.core.model_files.families import FAMILIES

if TYPE_CHECKING:
    from plugserve.backends.torch.kernels.plain_draw import PlainDraw
    from plugserve.backends.torch.runner.cuda_graphs import CapturedSteps

log = logging.getLogger(__name__)

_LOGIT_ROWS = 64  # prompt logprobs are computed in slices, so that logits stay small


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
        make_proposer: ProposerMaker | None = None,
        open_draft: Callable[[str], DraftFiles] | None = None,
        make_lora_manager: Callable[[LoraSpec], LoraManager] | None = None,
    ) -> None:
        self._make_lora_manager = make_lora_manager
        self._config = config
        self._settings = settings
        self._open_weights = open_weights
        self._architectures = architectures
        self._choose_attention = choose_attention
        self._make_proposer = make_proposer
        self._open_draft = open_draft
        self._draft: DraftModel | None = None
        self._reserved_bytes_per_token = 0
        self._speculator: Speculator | None = None
        self._steps: SimpleQueue[StepInput | None] = SimpleQueue()
        self._results: SimpleQueue[StepResult] = SimpleQueue()
        self._masks: SimpleQueue[tuple[int, Any]] = SimpleQueue()
        self._running: deque[RunningStep] = deque()  # on a GPU
        self._captured: CapturedSteps | None = None
        self._drawing: PlainDraw | None = None
        self._thread = threading.Thread(target=self._run_steps, name="torch-runner", daemon=True)

    # ---- set-up

    def load(self) -> RunnerInfo:
        settings = self._settings
        torch.set_num_threads(settings.num_threads or min(torch.get_num_threads(), usable_cores()))
        self._device = choose_device(settings.device)
        self._is_on_gpu = self._device.type == "cuda"
        dtype = choose_dtype(settings.dtype, self._device, self._config)
        spec = describe(self._config, self._architectures)
        attention_spec = attention_of(spec, dtype, self._device)
        self._length_rule = length_rule_of(spec)
        self._attention = self._choose_attention(attention_spec)
        layout = self._attention.kv_layout(attention_spec)
        if not isinstance(layout, KVLayout):
            raise PluginError(f"attention: kv_layout returned {type(layout).__name__}, not a plugserve.KVLayout")
        max_positions = asked_length(settings)
        self._model = Decoder(spec, dtype=dtype, device=self._device, max_positions=max_positions)
        self._model.load(self._open_weights())
        self._adapters = AdapterRows(self._lora_manager(spec, attention_spec))
        max_num_batched_tokens = settings.max_num_batched_tokens or (8192 if self._is_on_gpu else 256)
        proposer = self._proposer(attention_spec, max_positions)
        activation_bytes = self._model.activation_bytes(max_num_batched_tokens, settings.max_num_seqs)
        draft_block_bytes = self._reserved_bytes_per_token * settings.block_size
        bytes_per_block = layout.bytes_per_block + draft_block_bytes
        num_blocks = plan_blocks(settings.memory, bytes_per_block, self._device, activation_bytes)
        max_model_len = fit_length(settings, num_blocks * settings.block_size)
        # one block more: what the padding rows of captured steps write to
        shape = [num_blocks + self._is_on_gpu if part == "num_blocks" else int(part) for part in layout.shape]
        self._kv = [zeros_on_demand(shape, dtype, self._device) for _ in range(spec.num_layers)]
        self._host_copies = HostCopies(self._kv, layout.shape.index("num_blocks"))
        self._state = DeviceState(
            settings.max_num_seqs, max_model_len, settings.block_size, spec.vocab_size, self._device
        )
        has_length_rule = self._length_rule is not None
        self._forward = RowForward(self._model, self._state, self._attention, self._kv, has_length_rule)
        self._sampler = Sampler(self._state)
        self._pooler = Pooler(self._state, self._model.normed)
        draft_weight_bytes = 0
        if self._draft is not None:
            draft_weight_bytes = self._draft.size_bytes
            self._attach_draft(self._draft, num_blocks + self._is_on_gpu, max_num_batched_tokens)
        if proposer is not None:
            self._speculator = Speculator(proposer, self._state, self._sampler, spec.vocab_size)
        self._attention.prepare(max_num_batched_tokens, settings.max_num_seqs)
        if self._is_on_gpu:
            self._prepare_gpu(num_blocks)
        else:
            self._thread.start()
        return RunnerInfo(
            vocab_size=spec.vocab_size,
            max_model_len=max_model_len,
            max_num_batched_tokens=max_num_batched_tokens,
            num_blocks=num_blocks,
            block_size=settings.block_size,
            kv_cache_bytes=num_blocks * bytes_per_block,
            weight_bytes=self._model.size_bytes + draft_weight_bytes,
            dtype=str(dtype).removeprefix("torch."),
            device=str(self._device),
            length_rule=self._length_rule,
            num_host_slots=plan_host_slots(settings.memory, layout.bytes_per_block, self._device),
            max_num_drafts=settings.max_num_drafts if proposer is not None else 0,
            draft_weight_bytes=draft_weight_bytes,
            draft_kv_bytes=num_blocks * draft_block_bytes,
        )

    def _lora_manager(self, spec: DecoderSpec, attention: AttentionSpec) -> LoraManager | None:
        if self._make_lora_manager is None:
            return None
        limits = {"max_loras": self._settings.max_loras, "max_rank": self._settings.max_lora_rank}
        return self._make_lora_manager(lora_spec(spec, dtype=attention.dtype, device=attention.device, **limits))

    def _proposer(self, spec: AttentionSpec, max_model_len: int) -> DraftProposer | None:
        if self._make_proposer is None:
            return None
        if self._is_on_gpu:
            log.info("steps with drafts run one at a time: each waits for the tokens of the one before")
        return self._make_proposer(
            spec=spec,
            max_model_len=max_model_len,
            build_runner=partial(self._build_draft, max_model_len),
            reserve_kv=self._reserve_kv,
        )

    def _build_draft(self, max_model_len: int, reference: str) -> DraftModel:
        """The one draft model, loaded in the served one's dtype and on its device."""
        if self._open_draft is None or self._draft is not None:
            raise PluginError("a proposer can build one draft model, where the model's loader knows how to find it")
        files = self._open_draft(reference)
        spec = describe(files.config, self._architectures)
        attention_spec = attention_of(spec, self._model.dtype, self._device)
        attention = self._choose_attention(attention_spec)
        block_size = self._settings.block_size
        self._draft = DraftModel(files, spec, attention_spec, attention, self._model, max_model_len, block_size)
        return self._draft

    def _reserve_kv(self, bytes_per_token: int) -> None:
        self._reserved_bytes_per_token += bytes_per_token

    def _attach_draft(self, draft: DraftModel, num_blocks: int, max_num_tokens: int) -> None:
        num_layers, shape = draft.kv_shape(num_blocks)
        kv = [zeros_on_demand(shape, self._model.dtype, self._device) for _ in range(num_layers)]
        draft.attach(self._state, self._sampler, kv, max_num_tokens, self._settings.max_num_seqs)

    @torch.inference_mode()
    def _prepare_gpu(self, padding_block: int) -> None:
        """Capture decode steps where that is possible and wanted."""
        self._state.set_padding_block(padding_block)
        if find_spec("triton") is None:
            log.warning("Triton is not installed: steps run eagerly and slowly (pip install 'plugserve[gpu]')")
            return
        from plugserve.backends.torch.kernels.plain_draw import PlainDraw
        from plugserve.backends.torch.runner.cuda_graphs import CapturedSteps

        spec, max_num_seqs = self._model.spec, self._settings.max_num_seqs
        self._drawing = PlainDraw(max_num_seqs, spec.vocab_size, spec.logits_soft_cap, self._device)
        self._warm_up()
        if self._settings.enforce_eager:
            return
        if not self._attention.graph_safe:
            log.warning("this attention backend is not graph_safe: decode steps run eagerly, with a launch a kernel")
            return
        captured = CapturedSteps(self._state, self._forward.single_tokens, max_num_seqs, self._draw_plainly)
        captured.capture("steps")
        self._captured = captured
        if self._draft is not None:
            self._draft.capture()

    def _draw_plainly(
        self, logits: torch.Tensor, rows: torch.Tensor, lengths: torch.Tensor, drawn: torch.Tensor
    ) -> None:
        """cuda_graphs.DrawRows for rows that want nothing but a temperature."""
        from plugserve.backends.torch.kernels.step_state import advance_rows

        assert self._drawing is not None
        state = self._state
        self._drawing.draw(logits, rows, lengths, state.temperature, state.seed, drawn)
        advance_rows(rows, lengths, drawn, state.tokens, state.num_computed, state.padding_row)

    def _warm_up(self) -> None:
        """Run a prompt of the padding row once, so that the first request doesn't wait for compilers."""
        query_lens = [min(17, self._state.max_blocks * self._settings.block_size), 1]
        rows = torch.full((2,), self._state.padding_row, dtype=torch.int32, device=self._device)
        starts = to_device(np.cumsum([0, *query_lens]).astype(np.int32), self._device)
        hidden, _ = self._forward.last_hidden(rows, starts, query_lens, query_lens)
        self._model.raw_logits(hidden)
        torch.cuda.synchronize(self._device)

    # ---- the engine's side

    def launch(self, step: StepInput) -> None:
        if not self._is_on_gpu:
            self._steps.put(step)
            return
        with torch.inference_mode():
            self._running.append(self._started(step))

    def provide_masks(self, step_id: int, masks: Any) -> None:
        if not self._is_on_gpu:
            self._masks.put((step_id, masks))
            return
        running = next((one for one in self._running if one.step.step_id == step_id), None)
        if running is not None and running.result is None:
            with torch.inference_mode():
                self._guard(running, partial(self._draw, running, masks))

    def collect(self) -> StepResult:
        return self._harvest(self._running.popleft()) if self._is_on_gpu else self._results.get()

    def close(self) -> None:
        if self._is_on_gpu:
            torch.cuda.synchronize(self._device)
            self._captured = None
            if self._draft is not None:
                self._draft.close()
        else:
            self._steps.put(None)
            self._thread.join()
        self._kv.clear()

    # ---- on a CPU, the runner's thread

    def _run_steps(self) -> None:
        with torch.inference_mode():
            while (step := self._steps.get()) is not None:
                started_s = time.perf_counter()
                running = self._started(step)
                if step.constrained and running.result is None:
                    self._guard(running, partial(self._draw, running, self._wait_for_masks(step)))
                result = self._harvest(running)
                result.duration_s = time.perf_counter() - started_s
                self._results.put(result)

    def _wait_for_masks(self, step: StepInput) -> Any:
        """The engine's masks; the forward pass ran while it made them."""
        step_id, masks = self._masks.get()
        while step_id != step.step_id:  # left over from a step that failed before it came here
            step_id, masks = self._masks.get()
        return masks

    # ---- a step: forward, draw, harvest

    def _started(self, step: StepInput) -> RunningStep:
        """Run step's forward pass, and the draw where it waits for no masks. On a GPU both are only queued."""
        running = RunningStep(step)
        if self._is_on_gpu:
            running.started = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            running.started.record()
        self._guard(running, partial(self._run_model, running))
        if not step.constrained and running.result is None:
            self._guard(running, partial(self._draw, running, None))
        return running

    def _guard(self, running: RunningStep, work: Callable[[], None]) -> None:
        """Do work; what it raises fails the step's rows."""
        try:
            work()
        except Exception as error:
            log.exception("step failed step_id=%d", running.step.step_id)
            running.result = failure_of(running.step, f"the model runner failed: {type(error).__name__}")

    def _run_model(self, running: RunningStep) -> None:
        step = running.step
        self._host_copies.run(step.copy_out, step.copy_in)
        self._state.apply(step)
        if self._speculator is not None:
            self._speculator.follow(step)
        self._adapters.apply(step)
        if not step.rows:
            running.result = running.harvest
            return
        running.harvest.failed |= self._adapters.failures(step)
        if self._speculator is not None and step.num_drafts:
            running.step = step = self._with_drafts(running, self._speculator)
        running.sampling = [b for b, samples in enumerate(step.samples) if samples]
        if self._captured is not None and self._can_replay(running, self._captured.max_num_rows):
            self._replay(running, self._captured)
            return
        running.tensors = tensors = self._state.gather(step)
        context_lens = [start + count for start, count in zip(tensors.starts, tensors.counts, strict=True)]
        hidden = self._forward.hidden(tensors.tokens, tensors.counts, context_lens, self._adapters.plan(step))
        if not self._state.table.hidden_rows.isdisjoint(step.rows):
            self._add_prompt_logprobs(running, tensors, hidden)
            self._pooler.add(running.harvest, step, tensors, hidden)
        if running.drafted is not None:
            places = to_device(np.array(running.drafted.places), self._device)
            running.logits = self._model.raw_logits(hidden[places])
        elif running.sampling:
            running.index = to_device(np.array(running.sampling), self._device)
            running.logits = self._model.raw_logits(hidden[tensors.last_index[running.index]])

    def _with_drafts(self, running: RunningStep, speculator: Speculator) -> StepInput:
        drafted = speculator.draft(running.step)
        running.harvest.draft_s, running.harvest.has_draft_error = drafted.draft_s, drafted.has_error
        running.harvest.num_drafted = {b: len(ids) for b, ids in drafted.ids.items()}
        running.drafted = drafted if drafted.ids else None
        return drafted.step

    def _can_replay(self, running: RunningStep, max_num_rows: int) -> bool:
        """Every row computes one token, or its drafts too, and draws what follows each; nobody wants hidden states or
        has an adapter."""
        step = running.step
        if step.has_adapters or not all(step.samples) or not self._state.table.hidden_rows.isdisjoint(step.rows):
            return False
        num_drafts = 0 if running.drafted is None else sum(map(len, running.drafted.ids.values()))
        return sum(step.num_tokens) == len(step.rows) + num_drafts <= max_num_rows

    def _replay(self, running: RunningStep, captured: CapturedSteps) -> None:
        rows, offsets = running.step.rows, None
        if running.drafted is not None:
            rows, offsets = running.drafted.rows, [n for count in running.step.num_tokens for n in range(count)]
        running.replayed = captured.forward(rows, offsets)
        running.logits = running.replayed.logits

    def _draw(self, running: RunningStep, masks: Any) -> None:
        """Draw a token for each row that samples, and feed it back."""
        step, logits = running.step, running.logits
        is_plain = self._drawing is not None and self._state.table.rows_needing_full_sampler.isdisjoint(step.rows)
        if running.drafted is not None:
            self._verify(running, running.drafted, masks, is_plain)
            return
        if running.replayed is not None and is_plain:
            assert self._captured is not None
            drawn = self._captured.draw(len(step.rows))
            self._state.advance_host(step)
            running.take(drawn)
            return
        tensors = running.tensors or self._state.gather(step)
        if logits is None:
            nobody = torch.empty(0, dtype=torch.int64, device=self._device)
            self._state.advance(step, tensors, nobody, nobody)
            running.take(nobody)
            return
        index = running.index if running.index is not None else torch.arange(len(step.rows), device=self._device)
        rows = tensors.rows[index]
        if is_plain and self._drawing is not None:
            drawn = torch.empty(len(rows), dtype=torch.int32, device=self._device)
            num_known = tensors.tokens.context_lengths[index]
            self._drawing.draw(logits, rows, num_known, self._state.temperature, self._state.seed, drawn)
            self._state.advance(step, tensors, index, drawn.clamp_min(0))
            running.take(drawn)
            return
        values = self._model.capped(logits)
        known = [tensors.starts[b] + tensors.counts[b] for b in running.sampling]
        draws = make_draws([step.rows[b] for b in running.sampling], known, self._device)
        full = self._sampler.sample(values, draws, self._token_masks(running, masks))
        self._state.advance(step, tensors, index, full.tokens.clamp_min(0))
        running.take_drawn(full)

    def _verify(self, running: RunningStep, drafted: DraftedStep, masks: Any, is_plain: bool) -> None:
        """As _draw, where some row speculates: tokens go right into the harvest."""
        assert self._speculator is not None
        assert running.logits is not None
        if is_plain and drafted.probs is None and (replayed := running.replayed) is not None:
            assert self._drawing is not None
            drawn, state = torch.empty_like(replayed.rows), self._state
            self._drawing.draw(replayed.logits, replayed.rows, replayed.num_known, state.temperature, state.seed, drawn)
            self._speculator.settle(drafted, drawn.tolist(), {}, running.harvest)
        else:
            values = self._model.capped(running.logits)
            self._speculator.verify(drafted, values, self._token_masks(running, masks), running.harvest)
        running.sampling = []
        running.take(torch.empty(0, dtype=torch.int64, device=self._device))

    def _token_masks(self, running: RunningStep, masks: Any) -> TokenMasks | None:
        """The engine's masks, by index into the entries that sample."""
        if masks is None:
            return None
        entries = [running.sampling.index(b) for b in running.step.constrained]
        return TokenMasks(entries, to_device(masks.view(np.int32), self._device))

    def _harvest(self, running: RunningStep) -> StepResult:
        """Wait for the step, and tell what it brought."""
        if running.result is not None:
            return running.result
        result, sampling = running.harvest, running.sampling
        for b, token in zip(sampling, running.tokens(), strict=True):
            if token < 0:
                result.failed[b] = "the model's logits are not numbers (NaN)"
            else:
                result.tokens[b].append(token)
        if running.logprobs is not None:
            for s, entry in zip(running.wanting, running.logprobs.describe(), strict=True):
                result.logprobs[sampling[s]] = [entry]
        result.duration_s = running.seconds()
        return result

    def _add_prompt_logprobs(self, running: RunningStep, tensors: StepTensors, hidden: torch.Tensor) -> None:
        """For rows that ask: the logprob of each prompt token whose predecessor this step computed."""
        step, result = running.step, running.harvest
        offset = 0
        for b, row in enumerate(step.rows):
            rule = self._state.table.rules[row]
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
            distributions = self._model.logits(some).log_softmax(-1)
            entries += logprobs_of(distributions, chosen, [num_top] * len(chosen)).describe()
        return entries
