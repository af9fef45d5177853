"""Steps on a GPU: launch queues a step's kernels on the stream, or replays captured ones; collect waits for its tokens,
which come back through page-locked memory."""

from __future__ import annotations

import logging
import time
from collections import deque
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from plugserve.backends.torch.runner.loaded_model import LoadedModel
from plugserve.backends.torch.runner.running_step import RunningStep
from plugserve.backends.torch.runner.transfers import to_device
from plugserve.core.contracts.runner import LoadStage, StepInput, StepResult

log = logging.getLogger(__name__)


class CudaExecutor:
    """The constructor compiles kernels, and captures decode steps if the backend and the settings allow it."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._steps = loaded.steps
        self._device = loaded.device
        self._draft = loaded.draft
        self._in_flight: deque[RunningStep] = deque()
        with torch.inference_mode():
            self._prepare(loaded)

    def _prepare(self, loaded: LoadedModel) -> None:
        state = loaded.steps.state
        state.set_padding_block(loaded.info.num_blocks)
        if loaded.info.max_num_drafts:
            log.info("steps with drafts run one at a time: each waits for the tokens of the one before")
        if find_spec("triton") is None:
            log.warning("Triton is not installed: steps run eagerly and slowly (pip install 'plugserve[gpu]')")
            return
        from plugserve.backends.torch.kernels.plain_draw import PlainDraw
        from plugserve.backends.torch.runner.cuda_graphs import CapturedSteps
        from plugserve.backends.torch.runner.plain_steps import PlainSteps

        model, max_num_seqs = loaded.model, loaded.max_num_seqs
        draw = PlainDraw(max_num_seqs, model.vocab_size, model.logits_soft_cap, self._device)
        plain = PlainSteps(state, draw)
        loaded.steps.plain = plain
        self._warm_up(loaded)
        if loaded.enforce_eager:
            return
        if loaded.info.num_stages > 1:
            log.info("steps of a pipeline run eagerly: messages between stages are not captured")
            return
        if not loaded.attention.graph_safe:
            log.warning("this attention backend is not graph_safe: decode steps run eagerly, with a launch a kernel")
            return
        began_s = time.monotonic()
        captured = CapturedSteps(state, loaded.steps.forward.single_tokens, max_num_seqs, plain.draw_and_feed_back)
        captured.capture("steps")
        loaded.steps.captured = captured
        if self._draft is not None:
            self._draft.capture()
        loaded.captures.append(LoadStage("capture graphs", began_s, time.monotonic()))

    def _warm_up(self, loaded: LoadedModel) -> None:
        """Run a prompt of the padding row once, so that kernels are compiled before the first request."""
        state, forward = loaded.steps.state, loaded.steps.forward
        query_lens = [min(17, state.max_blocks * state.block_size), 1]
        rows = torch.full((2,), state.padding_row, dtype=torch.int32, device=self._device)
        starts = to_device(np.cumsum([0, *query_lens]).astype(np.int32), self._device)
        hidden, _ = forward.last_hidden(rows, starts, query_lens, query_lens)
        if loaded.steps.stage.draws:
            forward.raw_logits(hidden)
        torch.cuda.synchronize(self._device)

    # ---- the engine's side

    def launch(self, step: StepInput) -> None:
        running = RunningStep(step)
        with torch.inference_mode():
            running.started = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            running.started.record()
            self._steps.begin(running)
            self._send_back(running)
        self._in_flight.append(running)

    def provide_masks(self, step_id: int, masks: Any) -> None:
        running = next((one for one in self._in_flight if one.step.step_id == step_id), None)
        if running is not None and running.waits_for_masks:
            with torch.inference_mode():
                self._steps.sample(running, masks)
                self._send_back(running)

    def _send_back(self, running: RunningStep) -> None:
        """Start the copy of the drawn tokens, before a later step overwrites them."""
        if running.drawn is not None:
            running.drawn = running.drawn.moved(_to_host)
            running.done = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            running.done.record()

    def collect(self) -> StepResult:
        running = self._in_flight.popleft()
        if running.done is not None:
            running.done.synchronize()
        result = self._steps.harvest(running)
        if running.started is not None and running.done is not None:
            result.duration_s = running.started.elapsed_time(running.done) / 1e3
        return result

    def close(self) -> None:
        torch.cuda.synchronize(self._device)
        self._steps.captured = None
        if self._draft is not None:
            self._draft.close()


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in page-locked memory, complete once the stream has executed it."""
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return copy.copy_(tensor, non_blocking=True)
