"""A model runner that answers from a script: the real server, engine and grammars, with predetermined answers.

    plugserve serve --plugin benchmarks/clients/scripted.py --runner scripted --scripted.script script.json

A script is a JSON list of {"when": regular expression, "say": text or list of texts}. The first entry whose expression
is found in the prompt's text (as the chat template rendered it, special tokens included) answers; of several texts the
first that the request's grammar allows. An answer ends with EOS. If no entry matches, the last entry
answers. If no text matches the grammar, the request fails with the position, so a test can't pass by accident.
Embeddings are computed from the prompt's token ids.
"""

from __future__ import annotations

import json
import re
import time
from array import array
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from plugserve import ConfigError, NewRow, RunnerContext, RunnerInfo, StepInput, StepResult, hookimpl
from plugserve.core.contracts.sampling import SamplingParams, TokenLogprobs

_BLOCKS = 4096


class ScriptedOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    script: str = Field("", description="JSON file with the answers.")
    step_s: float = Field(0.0, ge=0, description="How long a step takes, in seconds.")


@dataclass(frozen=True)
class Line:
    """One entry of a script: answers are token ids, EOS not included."""

    when: re.Pattern[str]
    answers: list[list[int]]


class Script:
    """Finds the answers to a prompt. tokenizer is the served model's."""

    def __init__(self, path: Path, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        try:
            entries = json.loads(path.read_text("utf-8"))
            self._lines = [self._line(entry) for entry in entries]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"--scripted.script {path}: not a readable script: {error}") from error
        if not self._lines:
            raise ConfigError(f"--scripted.script {path}: it holds no entries")

    def _line(self, entry: dict[str, Any]) -> Line:
        texts = [entry["say"]] if isinstance(entry["say"], str) else entry["say"]
        answers = [self._tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        return Line(re.compile(entry["when"], re.DOTALL), answers)

    def answers(self, prompt: list[int]) -> list[list[int]]:
        text = self._tokenizer.decode(prompt, skip_special_tokens=False)
        return next((line for line in self._lines if line.when.search(text)), self._lines[-1]).answers


@dataclass(slots=True)
class Row:
    """A sequence: its possible answers, and its tokens so far."""

    prompt: list[int]
    generated: list[int]
    num_computed: int
    params: SamplingParams
    answers: list[list[int]]


def _allows(mask: Any, token: int) -> bool:
    return mask is None or bool(mask[token // 32] >> (token % 32) & 1)


def _logprobs(token: int, num_top: int) -> TokenLogprobs:
    """Logprobs with nearly all probability on the sampled token."""
    tops = [token, *(other for other in range(num_top + 1) if other != token)][:num_top]
    return TokenLogprobs(token, -0.01, 1, tops, [-0.01 if top == token else -9.0 - top for top in tops])


def _vector(prompt: list[int]) -> bytes:
    sums = [sum(prompt[start::8]) + 1.0 for start in range(8)]
    return array("f", sums).tobytes()


@dataclass
class ScriptedRunner:
    """ModelRunner without a model. Results come one step late, as the contract requires."""

    script: Script
    eos_id: int
    info: RunnerInfo
    step_s: float = 0.0
    owns_attention: bool = True
    _rows: dict[int, Row] = field(default_factory=dict)
    _results: deque[StepResult] = field(default_factory=deque)
    _waiting: StepInput | None = None

    def load(self) -> RunnerInfo:
        return self.info

    def launch(self, step: StepInput) -> None:
        for row in step.freed_rows:
            del self._rows[row]
        for new in step.new_rows:
            self._rows[new.row] = self._row(new)
        if step.constrained:
            self._waiting = step
        else:
            self._execute(step, {})

    def _row(self, new: NewRow) -> Row:
        prompt = list(new.token_ids[: new.num_prompt_tokens])
        generated = list(new.token_ids[new.num_prompt_tokens :])
        return Row(prompt, generated, new.num_computed, new.params, self.script.answers(prompt))

    def provide_masks(self, step_id: int, masks: Any) -> None:
        step, self._waiting = self._waiting, None
        assert step is not None
        assert step.step_id == step_id
        self._execute(step, dict(zip(step.constrained, masks, strict=True)))

    def _execute(self, step: StepInput, masks: dict[int, Any]) -> None:
        result = StepResult(step_id=step.step_id, tokens=[[] for _ in step.rows], duration_s=self.step_s)
        for b, (row_id, count, samples) in enumerate(zip(step.rows, step.num_tokens, step.samples, strict=True)):
            row = self._rows[row_id]
            self._score_prompt(result, b, row, count)
            row.num_computed += count
            if row.params.pooling and row.num_computed >= len(row.prompt):
                result.pooled[b] = _vector(row.prompt)
            if samples:
                self._draw(result, b, row, masks.get(b))
        time.sleep(self.step_s)
        self._results.append(result)

    def _score_prompt(self, result: StepResult, b: int, row: Row, count: int) -> None:
        targets = row.prompt[row.num_computed + 1 : row.num_computed + 1 + count]
        num_top = row.params.num_prompt_logprobs
        if num_top is not None and targets:
            result.prompt_logprobs[b] = [_logprobs(token, num_top) for token in targets]

    def _draw(self, result: StepResult, b: int, row: Row, mask: Any) -> None:
        at = len(row.generated)
        going_on = [answer for answer in row.answers if answer[:at] == row.generated[: len(answer)]]
        nexts = [answer[at] if at < len(answer) else self.eos_id for answer in going_on]
        token = next((token for token in nexts if _allows(mask, token)), None)
        if token is None:
            result.failed[b] = f"no answer of the script fits the request's grammar from its token {at} on"
            return
        row.generated.append(token)
        result.tokens[b].append(token)
        if row.params.num_logprobs is not None:
            result.logprobs[b] = [_logprobs(token, row.params.num_logprobs)]

    def collect(self) -> StepResult:
        return self._results.popleft()

    def close(self) -> None:
        self._rows.clear()


def make_scripted_runner(context: RunnerContext) -> ScriptedRunner:
    from plugserve.core.model_files.model_source import context_length, eos_token_ids, load_text_model, read_config

    if not context.options.script:
        raise ConfigError("--runner scripted needs --scripted.script FILE")
    config = read_config(context.source)
    asked = context.config.max_model_len
    tokenizer = load_text_model(context.source).tokenizer
    info = RunnerInfo(
        vocab_size=int(config["vocab_size"]),
        max_model_len=asked if isinstance(asked, int) else context_length(config),
        max_num_batched_tokens=context.config.max_num_batched_tokens or 2048,
        num_blocks=context.config.num_gpu_blocks_override or _BLOCKS,
        block_size=context.block_size,
        kv_cache_bytes=0,
        weight_bytes=0,
        dtype="float32",
        device="cpu",
    )
    script = Script(Path(context.options.script), tokenizer)
    return ScriptedRunner(script, min(eos_token_ids(context.source)), info, context.options.step_s)


@hookimpl
def plugserve_options() -> type[BaseModel]:
    return ScriptedOptions


@hookimpl
def plugserve_model_runners() -> dict[str, Any]:
    return {"scripted": make_scripted_runner}
