"""A model's forward pass over tokens of the device state's rows."""

from __future__ import annotations

import torch

from plugserve.backends.torch.models.layers import soft_cap
from plugserve.backends.torch.models.step_context import NO_LORA, LoraStep, StepContext
from plugserve.backends.torch.runner.device_state import DeviceState, RowTokens
from plugserve.core.contracts.attention import AttentionBackend, AttentionBatch
from plugserve.core.contracts.model import ModelDefinition


class RowForward:
    """model with its attention and its keys and values kv, one tensor a layer."""

    def __init__(
        self, model: ModelDefinition, state: DeviceState, attention: AttentionBackend, kv: list[torch.Tensor]
    ) -> None:
        self._model = model
        self._state = state
        self._attention = attention
        self._kv = kv
        self._has_length_rule = model.length_rule is not None

    def hidden(
        self, tokens: RowTokens, query_lens: list[int], context_lens: list[int], lora: LoraStep = NO_LORA
    ) -> torch.Tensor:
        """[T, H] before the last norm. Each row computes query_lens tokens, and has context_lens with those before."""
        batch = AttentionBatch(
            query_lens=query_lens,
            context_lens=context_lens,
            slots=tokens.slots,
            block_table=tokens.block_table,
            block_size=self._state.block_size,
            query_starts=tokens.query_starts,
            context_lengths=tokens.context_lengths,
        )
        lengths = None
        if self._has_length_rule:
            lengths = torch.maximum(self._state.rope_length[tokens.token_rows], tokens.positions + 1)
        plan = self._attention.plan(batch)
        context = StepContext(tokens.positions, self._kv, self._attention, plan, lengths, lora)
        return self._model.forward(tokens.token_ids, context)

    def last_hidden(
        self,
        rows: torch.Tensor,
        query_starts: torch.Tensor,
        query_lens: list[int],
        context_lens: list[int],
        offsets: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states [B, H] of the last of query_lens tokens of each of rows [B], and context lengths [B]; offsets
        as in DeviceState.read."""
        tokens = self._state.read(rows, query_starts, sum(query_lens), max(query_lens), offsets)
        hidden = self.hidden(tokens, query_lens, context_lens)
        if len(hidden) != len(rows):
            hidden = hidden[query_starts[1:] - 1]
        return hidden, tokens.context_lengths

    def single_tokens(
        self, rows: torch.Tensor, query_starts: torch.Tensor, offsets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Raw logits [B, V] and context lengths [B] of one token of each row, at any position: what can be
        captured."""
        longest = self._state.max_blocks * self._state.block_size
        hidden, lengths = self.last_hidden(rows, query_starts, [1] * len(rows), [longest] * len(rows), offsets)
        return self._model.logits(hidden), lengths

    def raw_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [B, V] in the model's dtype, before the soft cap, of hidden states [B, H]."""
        return self._model.logits(hidden)

    def capped(self, raw_logits: torch.Tensor) -> torch.Tensor:
        """float32 logits of raw ones, which may be changed in place."""
        logits, cap = raw_logits.float(), self._model.logits_soft_cap
        return logits if cap is None else soft_cap(logits, cap)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 logits [B, V] of hidden states [B, H]."""
        return self.capped(self._model.logits(hidden))
