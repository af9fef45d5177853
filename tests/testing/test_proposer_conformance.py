"""The conformance kit fails each draft proposer that has a planted bug."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from plugserve.core.contracts.drafting import Drafts
from plugserve.plugins.speculative.ngram import NgramProposer
from plugserve.testing import ProposerConformance
from tests.testing.kit_runner import catches, failures


class StaleAfterAbort(NgramProposer):
    """Caches a row's tokens and reads only those that were appended since."""

    def propose(self, step, k):
        known = self.__dict__.setdefault("known", {})
        tokens = step.tokens.clone()
        for row, length in zip(step.rows, step.lengths, strict=True):
            old = known.get(row, [])[:length]
            tokens[row, : len(old)] = self._torch.tensor(old, dtype=tokens.dtype)
            known[row] = tokens[row, :length].tolist()
        return super().propose(dataclasses.replace(step, tokens=tokens), k)


class StaleAfterPreemption(StaleAfterAbort):
    """Caches drafts by the sequence's id and never drops them."""

    def propose(self, step, k):
        drafts = self.__dict__.setdefault("drafts", {})
        found = NgramProposer.propose(self, step, k)
        for i, id in enumerate(step.ids):
            if id in drafts and drafts[id][0] == step.rows[i]:
                continue
            drafts[id] = (step.rows[i], found.tokens[i].clone())
        tokens = self._torch.stack([drafts[id][1] for id in step.ids]) if k == 3 else found.tokens
        return dataclasses.replace(found, tokens=tokens[:, : found.tokens.shape[1]])


class ReadsPastTheLastToken(NgramProposer):
    """Drafts from the row's entries past its last token."""

    def propose(self, step, k):
        tokens = self._torch.stack([step.tokens[r, n : n + k] for r, n in zip(step.rows, step.lengths, strict=True)])
        return Drafts(tokens, list(step.num_drafts))


class OutsideTheVocabulary(NgramProposer):
    def propose(self, step, k):
        drafts = super().propose(step, k)
        return dataclasses.replace(drafts, tokens=drafts.tokens + 1)


class DraftsMoreThanAskedFor(NgramProposer):
    def propose(self, step, k):
        drafts = super().propose(step, k)
        return dataclasses.replace(drafts, counts=[k if count else 0 for count in drafts.counts])


class SortsEntriesByRow(NgramProposer):
    def propose(self, step, k):
        return super().propose(dataclasses.replace(step, rows=sorted(step.rows)), k)


class WritesIntoHistory(NgramProposer):
    def propose(self, step, k):
        drafts = super().propose(step, k)
        step.tokens[step.rows[0], step.lengths[0] - 1] = 0
        return drafts


class GivesItsDraftsProbabilityZero(NgramProposer):
    def propose(self, step, k):
        drafts = super().propose(step, k)
        probs = self._torch.zeros(*drafts.tokens.shape, 500)
        probs[..., 0] = 1.0
        return dataclasses.replace(drafts, probs=probs)


class KeepsEverySequence(NgramProposer):
    def propose(self, step, k):
        self.__dict__.setdefault("seen", {}).update(dict.fromkeys(step.ids))
        return super().propose(step, k)


class ForgetRaises(NgramProposer):
    def forget(self, id):
        raise KeyError(id)


PROPOSER_BUGS = [
    (StaleAfterAbort, "stale"),
    (StaleAfterPreemption, "Error"),
    (ReadsPastTheLastToken, "outside the vocabulary"),
    (OutsideTheVocabulary, "outside the vocabulary"),
    (DraftsMoreThanAskedFor, "were asked for"),
    (SortsEntriesByRow, "Error"),
    (WritesIntoHistory, "changed known tokens"),
    (GivesItsDraftsProbabilityZero, "whose probability"),
    (KeepsEverySequence, "entries of"),
    (ForgetRaises, "KeyError"),
]


@pytest.mark.parametrize(("proposer", "word"), PROPOSER_BUGS, ids=lambda value: getattr(value, "__name__", ""))
def test_proposer_bug_is_caught(proposer, word):
    class Case(ProposerConformance):
        def make_proposer(self, context):
            return proposer(4, 1)

    assert catches(Case, word)


class DraftsByModel:
    """A correct greedy proposer with a draft model: it recomputes a row's keys in each step.

    With forgets=False it reuses stale keys.
    """

    def __init__(self, context, *, forgets=True):
        self.runner = context.build_runner("draft")
        self.num_computed = {}
        self.forgets = forgets

    def propose(self, step, k):
        drafted = [[] for _ in step.rows]
        for i, (id, row, length) in enumerate(zip(step.ids, step.rows, step.lengths, strict=True)):
            for n in range(length, length + step.num_drafts[i]):
                start = self.num_computed.get(id, 0) if n == length else n - 1
                logits = self.runner.forward([row], [start], [n - start])
                token, _ = self.runner.sample(logits, [row], [n])
                drafted[i].append(int(token))
                step.tokens[row, n] = token
            self.num_computed[id] = 0 if self.forgets else length
        return Drafts(torch.tensor([row + [0] * (k - len(row)) for row in drafted]), [len(row) for row in drafted])

    def forget(self, id):
        if self.forgets:
            self.num_computed.pop(id, None)


@pytest.mark.parametrize("forgets", [True, False])
def test_draft_model_with_stale_keys_is_caught(forgets):
    class Case(ProposerConformance):
        def make_proposer(self, context):
            return DraftsByModel(context, forgets=forgets)

    failed = failures(Case)
    assert (failed == {}) == forgets
    assert forgets or "test_a_preempted_sequence_may_continue_in_another_row" in failed
