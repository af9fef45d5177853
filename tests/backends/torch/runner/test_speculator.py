"""The runner's side of speculative sampling: what comes out is distributed as the target, whatever is drafted."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from plugserve.backends.torch.runner.device_state import DeviceState
from plugserve.backends.torch.runner.speculator import Speculator
from plugserve.backends.torch.sampling.inverse_cdf import accept_numbers, draft_numbers, uniform
from plugserve.backends.torch.sampling.sampler import Sampler
from plugserve.core.contracts.drafting import Drafts
from plugserve.core.contracts.runner import NewRow, StepInput, StepResult
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.sampling_law.draft_verification import verify
from tests.sampling_statistics import (
    DRAFT_TABLE,
    FIRST,
    LENGTH,
    NUM_RUNS,
    TABLE,
    VOCAB,
    assert_distributed,
    count,
    joint,
)

# ---------------------------------------------------------------- the runner's side


class ChainProposer:
    """Drafts from the draft table: drawn by the rows' seeds, or its most likely tokens."""

    def __init__(self, state, is_drawn, temperature=1.0):
        self._state = state
        self._is_drawn = is_drawn
        self._probs = (DRAFT_TABLE / temperature).softmax(-1)

    def propose(self, step, k):
        rows, lengths = torch.tensor(step.rows), torch.tensor(step.lengths)
        last = step.tokens[rows, lengths - 1].long()
        tokens, probs = [], []
        for i in range(k):
            p = self._probs[last]
            if self._is_drawn:
                numbers = draft_numbers(self._state.seed[rows], lengths + i)
                last = (p.cumsum(-1) <= numbers.unsqueeze(1)).sum(-1).clamp(max=VOCAB - 1)
            else:
                last = p.argmax(-1)
            tokens.append(last)
            probs.append(p)
        drafts = torch.stack(tokens, 1)
        return Drafts(drafts, list(step.num_drafts), torch.stack(probs, 1).float() if self._is_drawn else None)

    def forget(self, id): ...


def fill(state, params_of_rows, first_seed):
    """Give every row its parameters."""
    rows = [
        NewRow(row, [FIRST], 1, 0, [0], SamplingParams(max_tokens=9, seed=first_seed + row, **params), (), id=row)
        for row, params in enumerate(params_of_rows)
    ]
    state.apply(StepInput(0, rows, [], [], [], [], []))


def generate(params_of, num_rows, is_drawn, num_drafts=2, first_seed=0, length=LENGTH, proposer=None):
    """Runs of each of num_rows rows with their own seeds, through speculator, sampler and device state."""
    state = DeviceState(num_rows, 32, 16, VOCAB, torch.device("cpu"))
    sampler = Sampler(state)
    proposer = proposer or ChainProposer(state, is_drawn)
    speculator = Speculator(proposer, state, sampler, VOCAB)
    runs, rows = [[] for _ in range(num_rows)], list(range(num_rows))
    fill(state, [params_of(row) for row in rows], first_seed)
    speculator.follow(StepInput(0, [NewRow(row, [], 1, 0, [], None, (), id=row) for row in rows], [], [], [], [], []))
    results = []
    while rows:
        step = StepInput(0, [], [], [], rows, [1 + num_drafts] * len(rows), [True] * len(rows))
        step.num_drafts = [num_drafts] * len(rows)
        drafted = speculator.draft(step)
        tensors = state.gather(drafted.step)
        result = StepResult(0, [[] for _ in rows])
        logits = TABLE.float()[tensors.tokens.token_ids[drafted.places].long()]
        speculator.verify(drafted, logits, None, result)
        results.append((drafted, result))
        for b, row in enumerate(rows):
            runs[row] += result.tokens[b]
        rows = [row for row in rows if len(runs[row]) < length]
    return runs, results


def plain_next(run, params):
    """The next token's distribution, in float64 plain Python."""
    history = (FIRST, *run)
    logits = TABLE[history[-1]].tolist()
    for token in set(history):
        penalty = params.get("repetition_penalty", 1.0)
        logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
    for token in set(run):
        logits[token] -= params.get("frequency_penalty", 0.0) * run.count(token) + params.get("presence_penalty", 0.0)
    for token, bias in params.get("logit_bias", {}).items():
        logits[token] += bias
    weights = [math.exp(logit / params.get("temperature", 1.0)) for logit in logits]
    order = sorted(range(VOCAB), key=lambda token: -weights[token])[: params.get("top_k") or VOCAB]
    total = sum(weights[token] for token in order)
    kept, before = {}, 0.0
    for token in order:
        p = weights[token] / total
        if before < params.get("top_p", 1.0) and p >= params.get("min_p", 0.0) * weights[order[0]] / total:
            kept[token] = p
        before += p
    return [kept.get(token, 0.0) / sum(kept.values()) for token in range(VOCAB)]


GREEDY = {"temperature": 0.0}
LAWS = {
    "plain": {},
    "hot": {"temperature": 2.0},
    "top-k": {"top_k": 3},
    "top-p": {"top_p": 0.7},
    "top-k and top-p": {"top_k": 4, "top_p": 0.8, "temperature": 1.4},
    "min-p": {"min_p": 0.3},
    "penalties": {"repetition_penalty": 1.4, "frequency_penalty": 0.3, "presence_penalty": 0.2},
    "bias": {"logit_bias": {0: 2.0, 3: -1.0}},
}


@pytest.mark.parametrize("is_drawn", [False, True], ids=["without chance", "drawn from q"])
@pytest.mark.parametrize("law", LAWS)
def test_what_comes_out_is_distributed_as_the_target(law, is_drawn):
    params = LAWS[law]
    num_runs = NUM_RUNS if law == "plain" else 6_000  # a rule that is applied wrongly shows in far fewer
    runs, results = generate(lambda row: params, num_runs, is_drawn)
    assert sum(len(tokens) - 1 for _, result in results for tokens in result.tokens) > num_runs / 4
    assert_distributed(count(runs), joint(lambda run: plain_next(run, params)))


@pytest.mark.parametrize("is_drawn", [False, True], ids=["without chance", "drawn from q"])
def test_greedy_rows_are_greedy(is_drawn):
    runs, _ = generate(lambda row: GREEDY, 4, is_drawn, length=6)
    expected, last = [], FIRST
    for _ in range(6):
        last = int(TABLE[last].argmax())
        expected.append(last)
    assert [run[:6] for run in runs] == [expected] * 4


def test_drafts_without_chance_leave_seeded_draws_as_they_are():
    laws = list(LAWS.values())
    speculated, _ = generate(lambda row: laws[row % len(laws)], 200, is_drawn=False, num_drafts=4, length=8)
    plain, _ = generate(lambda row: laws[row % len(laws)], 200, is_drawn=False, length=8, proposer=Silent())
    assert [run[:8] for run in speculated] == [run[:8] for run in plain]


class Silent:
    """Never has an idea."""

    def propose(self, step, k):
        return Drafts(torch.zeros((len(step.rows), k), dtype=torch.int64), [0] * len(step.rows))

    def forget(self, id): ...


def test_the_runner_does_what_the_reference_does():
    """Number by number, for drafts that were drawn."""
    p, q = TABLE.softmax(-1).tolist(), DRAFT_TABLE.softmax(-1).tolist()
    runs, results = generate(lambda row: LAWS["plain"], 300, is_drawn=True, length=1)
    for row, gained in enumerate(runs):
        seed, history = torch.tensor([row]), [FIRST]
        for position in (1, 2):
            number = draft_numbers(seed, torch.tensor([position])).item()
            cdf = list(itertools.accumulate(q[history[-1]]))
            history.append(next(token for token, upto in enumerate(cdf) if number < upto or token == VOCAB - 1))
        numbers = [[f(seed, torch.tensor([i])).item() for i in (1, 2, 3)] for f in (accept_numbers, uniform)]
        expected = verify([p[t] for t in history], history[1:], [q[t] for t in history[:-1]], *numbers)
        assert gained == expected
    assert list(map(len, results[0][0].ids.values())) == [2] * 300


# ---------------------------------------------------------------- proposers that misbehave


class Faulty:
    def __init__(self, drafts):
        self.drafts = drafts
        self.num_calls = 0

    def propose(self, step, k):
        self.num_calls += 1
        if isinstance(self.drafts, Exception):
            raise self.drafts
        return self.drafts

    def forget(self, id):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    "drafts",
    [
        ZeroDivisionError("no luck"),
        Drafts(torch.tensor([[VOCAB, 0]]), [2]),
        Drafts(torch.tensor([[-1, 0]]), [2]),
        Drafts(torch.tensor([[1, 1, 1]]), [3]),
        Drafts(torch.tensor([[1, 1]]), [-1]),
        Drafts(torch.zeros((0, 2), dtype=torch.int64), []),
        Drafts(torch.tensor([[1, 1]]), [2], torch.ones(1, 2, VOCAB - 1)),
        None,
    ],
)
def test_a_proposer_that_fails_costs_drafts_only(drafts):
    proposer = Faulty(drafts)
    runs, results = generate(lambda row: GREEDY, 1, False, length=6, proposer=proposer)
    plain, _ = generate(lambda row: GREEDY, 1, False, length=6, proposer=Silent())
    assert runs == plain
    assert all(drafted.has_error for drafted, _ in results)
    assert proposer.num_calls == 3, "after three failures it is left alone"


def test_a_proposer_learns_who_has_left():
    forgotten = []

    class Watching(Silent):
        def forget(self, id):
            forgotten.append(id)

    state = DeviceState(2, 32, 16, VOCAB, torch.device("cpu"))
    speculator = Speculator(Watching(), state, Sampler(state), VOCAB)
    params = SamplingParams(max_tokens=4, seed=0)
    first, second, third = (NewRow(row, [1], 1, 0, [0], params, (), id=id) for row, id in ((0, 7), (1, 8), (0, 9)))
    speculator.follow(StepInput(1, [first, second], [], [], [], [], []))
    speculator.follow(StepInput(2, [third], [0], [], [], [], []))
    assert forgotten == [7]
    speculator.follow(StepInput(3, [], [0, 1], [], [], [], []))
    assert forgotten == [7, 9, 8]
