"""A second, smaller model that drafts for the served one: contracts.DraftRunner over torch.

It reads the served model's rows (tokens, block tables, sampling parameters) and has keys and values of its own in
blocks of the same numbers. Which tokens of a row it has computed is its user's business (plugins/speculative).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from plugserve.core.contracts import AttentionBackend, AttentionBatch, AttentionSpec
from plugserve.core.errors import ConfigError
from plugserve.core.models.decoder import Decoder, StepContext
from plugserve.core.models.decoder_spec import DecoderSpec
from plugserve.core.runner.device_state import DeviceState
from plugserve.core.runner.sampler import Sampler, invert_wide_cdf
from plugserve.core.runner.verification import draft_numbers

SHARED = "share_embeddings"
"""A draft's config says `share_embeddings: target` when its embeddings and head are the served model's."""


@dataclass(slots=True)
class DraftFiles:
    """What a draft's folder holds: its config, and (name, tensor) pairs."""

    config: Mapping[str, Any]
    open_weights: Callable[[], Iterable[tuple[str, torch.Tensor]]]


class DraftModel:
    """Loaded at once; attach gives it rows and memory before it is used."""

    def __init__(
        self,
        files: DraftFiles,
        spec: DecoderSpec,
        attention_spec: AttentionSpec,
        attention: AttentionBackend,
        target: Decoder,
        max_positions: int,
        block_size: int,
    ) -> None:
        self._block_size = block_size
        self._target = target
        self._attention = attention
        self._layout = attention.kv_layout(attention_spec)
        self._model = Decoder(spec, dtype=target.dtype, device=target.device, max_positions=max_positions)
        shares = files.config.get(SHARED) == "target"
        self._model.load(chain(self._shared_weights(spec), files.open_weights()) if shares else files.open_weights())
        if shares:
            self._model.embedding, self._model.head = target.embedding, target.head
        shared = {target.embedding, target.head} if shares else set()
        self.size_bytes = self._model.size_bytes - sum(_bytes_of(tensor) for tensor in shared)
        self._kv: list[torch.Tensor] = []

    def _shared_weights(self, spec: DecoderSpec) -> Iterator[tuple[str, torch.Tensor]]:
        if (spec.vocab_size, spec.hidden_size) != self._target.embedding.shape:
            raise ConfigError(
                f"the draft model shares the served model's embeddings but has {spec.vocab_size} x {spec.hidden_size}, "
                f"not {' x '.join(map(str, self._target.embedding.shape))}"
            )
        yield "model.embed_tokens.weight", self._target.embedding
        if not spec.ties_embeddings:
            yield "lm_head.weight", self._target.head

    def attach(
        self, state: DeviceState, sampler: Sampler, kv: list[torch.Tensor], max_num_tokens: int, max_num_seqs: int
    ) -> None:
        """kv has one tensor a layer (see kv_shape); no forward pass holds more than max_num_tokens."""
        self._state = state
        self._sampler = sampler
        self._kv = kv
        self._max_num_tokens = max_num_tokens
        self._attention.prepare(max_num_tokens, max_num_seqs)

    def kv_shape(self, num_blocks: int) -> tuple[int, list[int]]:
        """How many tensors, and the shape of each."""
        shape = [num_blocks if part == "num_blocks" else int(part) for part in self._layout.shape]
        return self._model.spec.num_layers, shape

    # ---- what proposers use

    @property
    def kv_bytes_per_token(self) -> int:
        return self._layout.bytes_per_block // self._block_size

    def forward(self, rows: list[int], starts: list[int], counts: list[int]) -> torch.Tensor:
        """See DraftRunner. Long rows are computed in as many passes as needed."""
        starts, left = list(starts), list(counts)
        last: list[torch.Tensor | None] = [None] * len(rows)
        while any(left):
            room, some = self._max_num_tokens, []
            for i, count in enumerate(left):
                if taken := min(count, room):
                    some.append((i, taken))
                    room -= taken
            hidden = self._pass([rows[i] for i, _ in some], [starts[i] for i, _ in some], [n for _, n in some])
            for (i, taken), its_hidden in zip(some, hidden, strict=True):
                starts[i] += taken
                left[i] -= taken
                last[i] = its_hidden
        logits = self._model.logits(torch.stack([one for one in last if one is not None]))
        return _fit(logits, self._target.spec.vocab_size)

    def _pass(self, rows: list[int], starts: list[int], counts: list[int]) -> torch.Tensor:
        """Hidden states [B, H] after the last token of each row."""
        state, device = self._state, self._state.device
        ints = torch.tensor([rows, starts, counts], device=device)
        row, start, count = ints
        ends = count.cumsum(0)
        token_rows = row.repeat_interleave(count, output_size=sum(counts))
        offsets = torch.arange(sum(counts), device=device)
        positions = offsets + (start - ends + count).repeat_interleave(count, output_size=sum(counts))
        size = state.block_size
        slots = state.block_table[token_rows, positions // size].long() * size + positions % size
        batch = AttentionBatch(
            query_lens=counts,
            context_lens=[first + n for first, n in zip(starts, counts, strict=True)],
            slots=slots,
            block_table=state.block_table[row],
            block_size=size,
            query_starts=torch.cat((ends.new_zeros(1), ends)).int(),
            context_lengths=(start + count).int(),
        )
        lengths = torch.maximum(state.rope_length[token_rows], positions + 1)
        context = StepContext(positions, self._kv, self._attention, self._attention.plan(batch), lengths)
        hidden = self._model.forward(state.tokens[token_rows, positions], context)
        return hidden[ends - 1]

    def sample(
        self, logits: torch.Tensor, rows: list[int], num_known: list[int]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See DraftRunner. Its random numbers are apart from those that verification uses."""
        self._sampler.adjust(logits, rows, num_known)
        if all(self._state.sampling[row].params.temperature == 0 for row in rows):
            return logits.argmax(-1), None
        at = torch.tensor([rows, num_known], device=logits.device)
        probs = self._sampler.distributions(logits, at[0], rows)
        return invert_wide_cdf(probs, draft_numbers(self._state.seed[at[0]], at[1])), probs


def _fit(logits: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """logits over the served model's vocabulary: padding at the end of either is nobody's token."""
    missing = vocab_size - logits.shape[1]
    if missing > 0:
        return torch.nn.functional.pad(logits, (0, missing), value=-torch.inf)
    return logits[:, :vocab_size].contiguous() if missing else logits


def _bytes_of(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
