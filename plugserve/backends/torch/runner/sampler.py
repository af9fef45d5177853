"""From logits to tokens: the law of sampling. Knows nothing of models, blocks or requests.

In order: penalties, logit_bias, min_tokens, allowed tokens and bad words, a grammar's mask, then greedy (temperature 0)
or temperature, top-k, top-p, min-p and one draw. The random numbers are stateless, a hash of (seed, position), so that
a sequence's draws depend on nothing else in the batch and survive preemption. Only what some row asks for is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from plugserve.backends.torch.runner.device_state import DeviceState, RowSampling
from plugserve.core.contracts.sampling import TokenLogprobs

_NUCLEUS_WIDTHS = (256, 4096)  # most nuclei fit into so many candidates; only what doesn't is sorted whole
_CDF_BLOCK = 256


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
        choose: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, dict[int, list[TokenLogprobs]]]:
        """Tokens [S] and logprobs by index into S.

        logits [S, V] float32, changed in place. rows [S] are device rows and row_ids the same as ints; num_known[s]
        tokens of the row are known, so the drawn token stands at that position. masks[s] [words] int32 has bit t set
        for each token t that row s may draw; rows without one may draw any. A row may stand there several times, with
        other counts of known tokens. choose, given the adjusted logits and what was drawn from them, has the last word.
        """
        rules = [self._state.sampling[row] for row in row_ids]
        wanted = [s for s, rule in enumerate(rules) if rule.params.num_logprobs is not None]
        raw = logits[wanted].log_softmax(-1) if wanted else None
        for s, rule in enumerate(rules):
            self._adjust(logits[s], rule, row_ids[s], num_known[s])
        for s, mask in masks.items():
            allowed = unpack_mask(mask, logits.shape[1])
            logits[s].masked_fill_(~allowed, -torch.inf)
            if logits[s].amax() == -torch.inf:  # min_tokens or a ban holds back all that the grammar allows: it wins
                logits[s].masked_fill_(allowed, 0.0)
        drawn = logits.argmax(-1)
        random = [s for s, rule in enumerate(rules) if rule.params.temperature > 0]
        if random:
            index = _selection(random, logits)
            positions = torch.tensor([num_known[s] for s in random], device=logits.device)
            drawn[index] = self._draw(logits[index], rows[index], positions, [rules[s] for s in random])
        if choose is not None:
            drawn = choose(logits, drawn)
        return drawn, self._logprobs(raw, wanted, drawn, rules)

    def adjust(self, logits: torch.Tensor, row_ids: Sequence[int], num_known: Sequence[int]) -> None:
        """Penalties, bias and filters of each row, in place; logits, row_ids and num_known as in sample."""
        for s, row in enumerate(row_ids):
            self._adjust(logits[s], self._state.sampling[row], row, num_known[s])

    def distributions(self, logits: torch.Tensor, rows: torch.Tensor, row_ids: Sequence[int]) -> torch.Tensor:
        """What sample draws from: probabilities [S, V] float32 of adjusted logits [S, V]; one token has it all in a row
        of temperature 0. rows and row_ids as in sample."""
        probs = torch.zeros_like(logits)
        by_kind: dict[Callable[..., torch.Tensor], list[int]] = {}
        for s, row in enumerate(row_ids):
            by_kind.setdefault(self._way_to_weigh(self._state.sampling[row], logits.shape[1]), []).append(s)
        for weigh, members in by_kind.items():
            index = torch.tensor(members, device=logits.device)
            kept = weigh(logits[index], rows[index])
            probs[index] = (kept / kept.sum(-1, keepdim=True)).to(probs.dtype)
        return probs

    def _way_to_weigh(self, rule: RowSampling, vocab_size: int) -> Callable[..., torch.Tensor]:
        params = rule.params
        if params.temperature == 0:
            return _weigh_greedy
        return self._weigh_some if 0 < params.top_k < vocab_size or params.top_p < 1.0 else self._weigh_all

    def _weigh_all(self, logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Shares of the whole vocabulary less what min-p drops, not normalised."""
        probs = (logits / self._state.temperature[rows].unsqueeze(1)).softmax(-1, dtype=torch.float64)
        return _keep_min_p(probs, probs.amax(-1, keepdim=True), self._state.min_p[rows])

    def _weigh_some(self, logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Shares of what top-k, top-p and min-p leave, not normalised."""
        scaled = logits / self._state.temperature[rows].unsqueeze(1)
        limits = self._state.top_k[rows]
        limits = torch.where(limits > 0, limits, scaled.shape[1])
        probs, ids = self._candidates(scaled, limits)
        probs = _keep_top_p(probs, self._state.top_p[rows])
        probs = _keep_min_p(probs, probs[:, :1], self._state.min_p[rows])
        return torch.zeros_like(scaled, dtype=torch.float64).scatter_(1, ids, probs)

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
            ids, counts = torch.unique(generated, return_counts=True)
            logits[ids] -= params.frequency_penalty * counts + params.presence_penalty
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
        by_kind: dict[Callable[..., torch.Tensor], list[int]] = {}
        for r, rule in enumerate(rules):
            by_kind.setdefault(self._way_to_draw(rule, logits.shape[1]), []).append(r)
        for draw, members in by_kind.items():
            index = _selection(members, scaled)
            drawn[index] = draw(scaled[index], rows[index], numbers[index])
        return drawn

    def _way_to_draw(self, rule: RowSampling, vocab_size: int) -> Callable[..., torch.Tensor]:
        params = rule.params
        if 0 < params.top_k < vocab_size:
            return self._draw_top_k
        if params.top_p < 1.0:
            return self._draw_nucleus
        return self._draw_min_p if params.min_p else self._draw_plain

    def _draw_plain(self, scaled: torch.Tensor, rows: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """From the whole vocabulary, in order of ids."""
        return invert_wide_cdf(scaled.softmax(-1), numbers)

    def _draw_min_p(self, scaled: torch.Tensor, rows: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """From the whole vocabulary less what min-p drops."""
        probs = scaled.softmax(-1)
        return invert_wide_cdf(_keep_min_p(probs, probs.amax(-1, keepdim=True), self._state.min_p[rows]), numbers)

    def _draw_top_k(self, scaled: torch.Tensor, rows: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """From the top-k candidates, then top-p among them (their shares renormalised), then min-p."""
        probs, ids = self._candidates(scaled, self._state.top_k[rows])
        return self._pick(probs, ids, rows, numbers)

    def _candidates(self, scaled: torch.Tensor, top_k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities in falling order of the top_k [R] best tokens alone, and their ids: [R, K] each."""
        best, ids = scaled.topk(min(int(top_k.max()), scaled.shape[1]), dim=-1)
        is_beyond = torch.arange(best.shape[1], device=best.device) >= top_k.unsqueeze(1)
        return best.masked_fill(is_beyond, -torch.inf).softmax(-1, dtype=torch.float64), ids

    def _draw_nucleus(self, scaled: torch.Tensor, rows: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """From the smallest set of most likely tokens that reaches top-p, then min-p; widened where needed."""
        probs = scaled.softmax(-1)
        top_p = self._state.top_p[rows]
        drawn = torch.empty(len(rows), dtype=torch.int64, device=probs.device)
        waiting = torch.arange(len(rows), device=probs.device)
        for width in (*_NUCLEUS_WIDTHS, probs.shape[1]):
            if width < probs.shape[1]:
                best, ids = probs[waiting].topk(width, dim=-1)
                fits = best.sum(-1) >= top_p[waiting]
            else:
                best, ids = probs[waiting].sort(dim=-1, descending=True, stable=True)
                fits = torch.ones(len(waiting), dtype=torch.bool, device=probs.device)
            chosen = waiting[fits]
            drawn[chosen] = self._pick(best[fits].double(), ids[fits], rows[chosen], numbers[chosen])
            waiting = waiting[~fits]
            if not len(waiting):
                break
        return drawn

    def _pick(self, probs: torch.Tensor, ids: torch.Tensor, rows: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """One of the candidates ids [R, K] with probs in falling order, after top-p and min-p."""
        probs = _keep_top_p(probs, self._state.top_p[rows])
        probs = _keep_min_p(probs, probs[:, :1], self._state.min_p[rows])
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


def _selection(rows: list[int], matrix: torch.Tensor) -> slice | torch.Tensor:
    """rows as an index into matrix; all of them as a slice, which copies nothing."""
    return slice(None) if len(rows) == matrix.shape[0] else torch.tensor(rows, device=matrix.device)


def _weigh_greedy(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """All to the best token."""
    return torch.zeros_like(logits).scatter_(1, logits.argmax(-1, keepdim=True), 1.0)


def _keep_top_p(probs: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Zero all but the smallest set of most likely tokens that reaches top_p; probs [R, K] in falling order."""
    before = probs.cumsum(-1) - probs
    return probs * (before < top_p.to(probs.dtype).unsqueeze(1))


def _keep_min_p(probs: torch.Tensor, best: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """Zero what is less likely than min_p times the most likely token."""
    return probs * (probs >= min_p.to(probs.dtype).unsqueeze(1) * best)


def _invert_cdf(probs: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """The index in each row of probs [R, K] (not normalised) that numbers [R] in [0, 1) select; never a zero one."""
    cdf = probs.double().cumsum(-1)
    return _search(cdf, numbers * cdf[:, -1])


def _search(cdf: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The first index in each row of cdf [R, K] whose value is above target [R], which is kept below the last value."""
    below = cdf[:, -1].nextafter(torch.zeros_like(target))
    found = torch.searchsorted(cdf, torch.minimum(target, below).unsqueeze(1), right=True).squeeze(1)
    return found.clamp_(max=cdf.shape[1] - 1)  # rows of NaN find nothing


def invert_wide_cdf(probs: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """As _invert_cdf for a whole vocabulary: the block of tokens first, then the token."""
    num_rows, size = probs.shape
    padded = torch.nn.functional.pad(probs, (0, -size % _CDF_BLOCK)) if size % _CDF_BLOCK else probs
    blocks = padded.view(num_rows, -1, _CDF_BLOCK)
    cdf = blocks.sum(-1).double().cumsum(-1)
    target = numbers * cdf[:, -1]
    block = _search(cdf, target)
    each = torch.arange(num_rows, device=probs.device)
    before = torch.where(block > 0, cdf[each, (block - 1).clamp(min=0)], 0.0)
    inner = blocks[each, block].double().cumsum(-1)
    return (block * _CDF_BLOCK + _search(inner, target - before)).clamp_(max=size - 1)
