"""Speculative sampling's law: what comes out is distributed as the target, whatever is drafted.

The target of these tests is a chain whose next token's logits are table[last token], so that the joint distribution of
several tokens is known exactly.
"""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch

from plugserve.backends.torch.runner.device_state import DeviceState
from plugserve.backends.torch.runner.sampler import Sampler, uniform
from plugserve.backends.torch.runner.speculator import Speculator
from plugserve.backends.torch.runner.verification import accept_numbers, draft_numbers, verify
from plugserve.core.contracts.runner import NewRow, StepInput, StepResult
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.contracts.speculation import Drafts

VOCAB, LENGTH, NUM_RUNS = 5, 3, 17_000  # 51,000 draws
FIRST = 2  # the prompt's last token
TABLE = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 1.5
DRAFT_TABLE = TABLE + torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def chi_square_limit(degrees, deviations=4.0):
    """The chi-square quantile that is exceeded as rarely as a normal variable by deviations (Wilson and Hilferty)."""
    return degrees * (1 - 2 / (9 * degrees) + deviations * math.sqrt(2 / (9 * degrees))) ** 3


def assert_distributed(counts, probs):
    """counts by outcome against probs by outcome: chi-square over outcomes that are expected often, none impossible."""
    total = sum(counts.values())
    assert sum(probs.values()) == pytest.approx(1.0)
    assert all(probs[outcome] > 0 for outcome in counts)
    likely = [outcome for outcome, p in probs.items() if p * total >= 10]
    statistic = sum((counts.get(o, 0) - total * probs[o]) ** 2 / (total * probs[o]) for o in likely)
    assert statistic < chi_square_limit(max(1, len(likely) - 1)), f"{statistic} over {len(likely)} outcomes"
    distance = sum(abs(counts.get(outcome, 0) / total - p) for outcome, p in probs.items()) / 2
    assert distance < math.sqrt(len(probs) / total)


def joint(next_probs):
    """The probability of each run of LENGTH tokens when next_probs(tokens so far) is the next one's distribution."""
    runs = {(): 1.0}
    for _ in range(LENGTH):
        runs = {(*run, t): p * q for run, p in runs.items() for t, q in enumerate(next_probs(run)) if q > 0}
    return runs


def count(runs):
    counts = {}
    for run in runs:
        counts[tuple(run[:LENGTH])] = counts.get(tuple(run[:LENGTH]), 0) + 1
    return counts


# ---------------------------------------------------------------- the reference


@pytest.mark.parametrize("is_drawn", [False, True], ids=["without chance", "drawn from q"])
def test_the_reference_follows_the_target(is_drawn):
    p = TABLE.softmax(-1).tolist()
    q = DRAFT_TABLE.softmax(-1).tolist()
    rng = random.Random(5)
    runs, num_kept = [], 0
    for _ in range(NUM_RUNS):
        run = []
        while len(run) < LENGTH:
            drafts, last = [], (run or [FIRST])[-1]
            for _ in range(2):
                before = (drafts or [last])[-1]
                drafts.append(rng.choices(range(VOCAB), q[before])[0] if is_drawn else (before + 1) % VOCAB)
            history = [last, *drafts]
            gained = verify(
                [p[token] for token in history],
                drafts,
                [q[token] for token in history[:-1]] if is_drawn else None,
                [rng.random() for _ in range(3)],
                [rng.random() for _ in range(3)],
            )
            num_kept += len(gained) - 1
            run += gained
        runs.append(run)
    assert_distributed(count(runs), joint(lambda run: p[(run or (FIRST,))[-1]]))
    assert num_kept > NUM_RUNS / 4


def test_the_reference_never_keeps_what_the_target_excludes():
    target = [[0.0, 0.5, 0.5], [1.0, 0.0, 0.0]]
    assert verify(target, [0], [[1.0, 0.0, 0.0]], [0.0, 0.0], [0.999999, 0.5]) == [2]
    assert verify(target, [0], None, [0.0, 0.0], [0.0, 0.5]) == [1]
    assert verify(target, [2], [[0.0, 0.0, 1.0]], [0.49, 0.0], [0.0, 0.0]) == [2, 0]
    assert verify(target, [2], [[0.0, 0.0, 1.0]], [0.51, 0.0], [0.0, 0.0]) == [1]


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
    """Give every row its parameters; each kind of them goes through the state's own door once, for speed."""
    num_rows = len(params_of_rows)
    state.tokens[:, 0] = FIRST
    done = {}
    for row, params in enumerate(params_of_rows):
        if id(params) not in done:
            made = SamplingParams(max_tokens=9, seed=first_seed + row, **params)
            state.apply(StepInput(0, [NewRow(row, [FIRST], 1, 0, [0], made, ())], [], [], [], [], []))
            done[id(params)] = row
        state.sampling[row] = state.sampling[done[id(params)]]
    first = torch.tensor([done[id(params)] for params in params_of_rows])
    for column in (state.temperature, state.top_k, state.top_p, state.min_p):
        column[:num_rows] = column[first]
    state.seed[:num_rows] = first_seed + torch.arange(num_rows)


def generate(params_of, num_rows, is_drawn, num_drafts=2, first_seed=0, length=LENGTH, proposer=None):
    """Runs of each of num_rows rows with their own seeds, through speculator, sampler and device state."""
    state = DeviceState(num_rows, 32, 16, torch.device("cpu"))
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
        speculator.verify(drafted, logits, {}, result)
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
    runs, results = generate(lambda row: params, NUM_RUNS, is_drawn)
    assert sum(len(tokens) - 1 for _, result in results for tokens in result.tokens) > NUM_RUNS / 4
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

    state = DeviceState(2, 32, 16, torch.device("cpu"))
    speculator = Speculator(Watching(), state, Sampler(state), VOCAB)
    params = SamplingParams(max_tokens=4, seed=0)
    first, second, third = (NewRow(row, [1], 1, 0, [0], params, (), id=id) for row, id in ((0, 7), (1, 8), (0, 9)))
    speculator.follow(StepInput(1, [first, second], [], [], [], [], []))
    speculator.follow(StepInput(2, [third], [0], [], [], [], []))
    assert forgotten == [7]
    speculator.follow(StepInput(3, [], [0, 1], [], [], [], []))
    assert forgotten == [7, 9, 8]
