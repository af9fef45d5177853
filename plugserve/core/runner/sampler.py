"""From logits to tokens: the law of sampling. Knows nothing of models, blocks or requests.

In order: penalties, logit_bias, min_tokens, allowed tokens and bad words, a grammar's mask, then greedy (temperature 0)
or temperature, top-k, top-p, min-p and one draw. The random numbers are stateless, a hash of (seed, position), so that
a sequence's draws depend on nothing else in the batch and survive preemption. Only what some row asks for is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from plugserve.core.messages import TokenLogprobs
from plugserve.core.runner.device_state import DeviceState, RowSampling

_TOP_P_TRIAL = 256  # most nuclei fit into so many candidates; a wider one costs a full sort


def uniform(seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Numbers in [0, 1), float64 [B], from int64 seeds and positions [B] (SplitMix64, Steele et al. 2014)."""
    z = seeds + (positions + 1) * -7046029254386353131  # 0x9E3779B97F4A7C15
    z = (z ^ _shift(z, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    z = (z ^ _shift(z, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    z = z ^ _shift(z, 31)
    return _shift(z, 11).double() * 2.0**-53


def _shift(z: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift of int64."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def unpack_mask(words: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """bool [vocab_size] from int32 [words], 32 tokens a word, lowest bit first."""
    bits = torch.arange(32, dtype=torch.int32, device=words.device)
    return ((words.unsqueeze(1) >> bits) & 1).bool().view(-1)[:vocab_size]


class Sampler:
    """Draws the next token of each row of a step from its logits."""

    def __init__(self, state: DeviceState) -> None:
        self._state = state

    def sample(
        self,
        logits: torch.Tensor,
        rows: torch.Tensor,
        row_ids: Sequence[int],
        num_known: Sequence[int],
        masks: Mapping[int, torch.Tensor],
    ) -> tuple[torch.Tensor, dict[int, list[TokenLogprobs]]]:
        """Tokens [S] and logprobs by index into S.

        logits [S, V] float32, changed in place. rows [S] are device rows and row_ids the same as ints; num_known[s]
        tokens of the row are known, so the drawn token stands at that position. masks[s] [words] int32 has bit t set
        for each token t that row s may draw; rows without one may draw any.
        """
        rules = [self._state.sampling[row] for row in row_ids]
        wanted = [s for s, rule in enumerate(rules) if rule.params.num_logprobs is not None]
        raw = logits[wanted].log_softmax(-1) if wanted else None
        for s, rule in enumerate(rules):
            self._adjust(logits[s], rule, row_ids[s], num_known[s])
        for s, mask in masks.items():
            logits[s].masked_fill_(~unpack_mask(mask, logits.shape[1]), -torch.inf)
        drawn = logits.argmax(-1)
        random = [s for s, rule in enumerate(rules) if rule.params.temperature > 0]
        if random:
            index = torch.tensor(random, device=logits.device)
            positions = torch.tensor([num_known[s] for s in random], device=logits.device)
            drawn[index] = self._draw(logits[index], rows[index], positions, [rules[s] for s in random])
        return drawn, self._logprobs(raw, wanted, drawn, rules)

    # ---- adjustments of one row, in place

    def _adjust(self, logits: torch.Tensor, rule: RowSampling, row: int, num_known: int) -> None:
        params = rule.params
        if params.repetition_penalty != 1.0:
            seen = self._state.tokens[row, :num_known].long()
            values = logits[seen]
            penalty = params.repetition_penalty
            logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
        if params.presence_penalty or params.frequency_penalty:
            generated = self._state.tokens[row, rule.num_prompt_tokens : num_known].long()
            counts = torch.bincount(generated, minlength=logits.shape[0])
            logits -= params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
        if rule.bias_ids is not None and rule.bias is not None:
            logits[rule.bias_ids] += rule.bias
        if rule.stop_ids is not None and num_known - rule.num_prompt_tokens < params.min_tokens:
            logits[rule.stop_ids] = -torch.inf
        if rule.filter is not None:
            rule.filter.apply(logits, self._state.tokens[row, :num_known])

    # ---- drawing

    def _draw(
        self, logits: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor, rules: list[RowSampling]
    ) -> torch.Tensor:
        """One draw a row, from logits [R, V] of rows with temperature > 0."""
        state = self._state
        numbers = uniform(state.seed[rows], positions)
        scaled = logits / state.temperature[rows].unsqueeze(1)
        drawn = torch.empty(len(rules), dtype=torch.int64, device=logits.device)
        kinds = ([], [], [])  # type: tuple[list[int], list[int], list[int]]
        for r, rule in enumerate(rules):
            params = rule.params
            has_top_k = 0 < params.top_k < logits.shape[1]
            kinds[1 if has_top_k else 2 if params.top_p < 1.0 else 0].append(r)
        for kind, members in enumerate(kinds):
            if members:
                index = torch.tensor(members, device=logits.device)
                drawn[index] = self._draw_kind(kind, scaled[index], rows[index], numbers[index])
        return drawn

    def _draw_kind(self, kind: int, scaled: torch.Tensor, rows: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """kind 0: all tokens in id order; 1: the top-k candidates; 2: a top-p nucleus of the whole vocabulary."""
        state, vocab_size = self._state, scaled.shape[1]
        probs = scaled.softmax(-1, dtype=torch.float64)
        if kind == 0:
            probs = _keep_min_p(probs, probs.amax(-1, keepdim=True), state.min_p[rows])
            return _invert_cdf(probs, numbers)
        if kind == 1:
            top_k = state.top_k[rows]
            probs, ids = probs.topk(int(top_k.max()), dim=-1)
            probs = probs * (torch.arange(probs.shape[1], device=probs.device) < top_k.unsqueeze(1))
        else:
            top_p = state.top_p[rows].unsqueeze(1)
            trial = min(_TOP_P_TRIAL, vocab_size)
            best, ids = probs.topk(trial, dim=-1)
            if trial < vocab_size and bool((best.sum(-1, keepdim=True) < top_p).any()):
                best, ids = probs.sort(dim=-1, descending=True, stable=True)
            probs = best
        probs = _keep_top_p(probs, state.top_p[rows], is_whole=kind == 2)
        probs = _keep_min_p(probs, probs[:, :1], state.min_p[rows])
        return ids.gather(1, _invert_cdf(probs, numbers).unsqueeze(1)).squeeze(1)

    # ---- logprobs

    def _logprobs(
        self, raw: torch.Tensor | None, wanted: list[int], drawn: torch.Tensor, rules: list[RowSampling]
    ) -> dict[int, list[TokenLogprobs]]:
        if raw is None:
            return {}
        chosen = drawn[torch.tensor(wanted, device=drawn.device)]
        counts = [rules[s].params.num_logprobs or 0 for s in wanted]
        return dict(zip(wanted, ([entry] for entry in describe_logprobs(raw, chosen, counts)), strict=True))


def describe_logprobs(logprobs: torch.Tensor, chosen: torch.Tensor, counts: Sequence[int]) -> list[TokenLogprobs]:
    """TokenLogprobs of chosen [N] under logprobs [N, V], with the counts[n] most likely tokens each."""
    values = logprobs.gather(1, chosen.unsqueeze(1))
    ranks = (logprobs > values).sum(-1) + 1
    most = max(counts)
    top_values, top_ids = logprobs.topk(most, dim=-1) if most else (None, None)
    tops = top_values.tolist() if top_values is not None else [[]] * len(counts)
    ids = top_ids.tolist() if top_ids is not None else [[]] * len(counts)
    return [
        TokenLogprobs(token, value, rank, row_ids[:count], row_values[:count])
        for token, value, rank, row_ids, row_values, count in zip(
            chosen.tolist(), values.squeeze(1).tolist(), ranks.tolist(), ids, tops, counts, strict=True
        )
    ]


def _keep_top_p(probs: torch.Tensor, top_p: torch.Tensor, *, is_whole: bool) -> torch.Tensor:
    """Zero all but the smallest set of most likely tokens that reaches top_p; probs [R, K] in falling order.

    is_whole: probs are shares of the whole vocabulary; else they are renormalised first (top-k came before).
    """
    total = 1.0 if is_whole else probs.sum(-1, keepdim=True)
    before = probs.cumsum(-1) - probs
    return probs * (before < top_p.double().unsqueeze(1) * total)


def _keep_min_p(probs: torch.Tensor, best: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """Zero what is less likely than min_p times the most likely token."""
    return probs * (probs >= min_p.double().unsqueeze(1) * best)


def _invert_cdf(probs: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """The index in each row of probs [R, K] (not normalised) that numbers [R] in [0, 1) select; never a zero one."""
    cdf = probs.cumsum(-1)
    target = (numbers.unsqueeze(1) * cdf[:, -1:]).clamp(max=cdf[:, -1:].nextafter(torch.zeros_like(cdf[:, -1:])))
    return torch.searchsorted(cdf, target, right=True).squeeze(1).clamp_(max=probs.shape[1] - 1)
