"""The draft-model plugin: its selection, and its calls of the draft runner."""

from __future__ import annotations

import pytest
import torch

from plugserve.core.contracts.drafting import DraftStep
from plugserve.core.errors import ConfigError, PluginError
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.settings import Settings
from plugserve.plugins.speculative.draft_model import DraftModelProposer

VOCAB = 50


class CountingRunner:
    """Drafts token + 1, and records the computed tokens."""

    kv_bytes_per_token = 8

    def __init__(self, tokens):
        self.tokens = tokens
        self.asked = []

    def forward(self, rows, starts, counts):
        self.asked.append(list(zip(rows, starts, counts, strict=True)))
        last = torch.tensor([self.tokens[r, s + c - 1] for r, s, c in zip(rows, starts, counts, strict=True)])
        return torch.nn.functional.one_hot((last.long() + 1) % VOCAB, VOCAB).float() * 10

    def sample(self, logits, rows, num_known):
        return logits.argmax(-1), logits.softmax(-1)


@pytest.fixture
def rows():
    tokens = torch.zeros((4, 40), dtype=torch.int32)
    runner = CountingRunner(tokens)
    return tokens, runner, DraftModelProposer(runner, is_greedy=False)


def step_of(tokens, texts, num_drafts):
    for row, text in texts.items():
        tokens[row, : len(text)] = torch.tensor(text)
    lengths = [len(text) for text in texts.values()]
    return DraftStep([100 + row for row in texts], list(texts), lengths, num_drafts, tokens)


def test_drafts_follow_each_other(rows):
    tokens, runner, proposer = rows
    drafts = proposer.propose(step_of(tokens, {2: [1, 2, 3], 0: [9]}, [3, 1]), 3)
    assert drafts.counts == [3, 1]
    assert drafts.tokens[0].tolist() == [4, 5, 6]
    assert drafts.tokens[1, 0] == 10
    assert drafts.probs.shape == (2, 3, VOCAB)
    assert drafts.probs[0].argmax(-1).tolist() == [4, 5, 6]
    assert runner.asked == [[(2, 0, 3), (0, 0, 1)], [(2, 3, 1)], [(2, 4, 1)]]


@pytest.mark.parametrize(
    ("grown", "first"),
    [
        ([4, 5, 6, 7], (1, 5, 2)),  # all three kept, and one more: the last draft was never computed
        ([4, 5, 9], (1, 5, 1)),  # two kept
        ([9], (1, 3, 1)),  # none kept
        ([4, 9, 6, 7, 8], (1, 4, 4)),  # one kept, then steps without drafts
        ([4, 5, 6, 7, 8, 9], (1, 5, 4)),
    ],
)
def test_only_accepted_drafts_are_not_recomputed(grown, first, rows):
    tokens, runner, proposer = rows
    proposer.propose(step_of(tokens, {1: [1, 2, 3]}, [3]), 3)
    runner.asked.clear()
    proposer.propose(step_of(tokens, {1: [1, 2, 3, *grown]}, [1]), 1)
    assert runner.asked == [[first]]


def test_a_returning_sequence_is_recomputed(rows):
    tokens, runner, proposer = rows
    proposer.propose(step_of(tokens, {1: [1, 2, 3]}, [2]), 2)
    proposer.forget(101)
    proposer.forget(101)
    runner.asked.clear()
    proposer.propose(step_of(tokens, {1: [1, 2, 3]}, [1]), 1)
    assert runner.asked == [[(1, 0, 3)]]


def test_a_named_draft_model_activates_the_plugin():
    assert "draft-model" in PluginHost.load(Settings(speculative_model="x").selection()).active_names
    other = Settings(speculative_model="x", no_plugin=["draft-model"], plugin=["ngram"])
    assert PluginHost.load(other.selection()).names("draft_proposers") == ["ngram"]


def test_two_draft_plugins_are_refused():
    with pytest.raises(PluginError, match="both provide a draft proposer, and only one can be active"):
        PluginHost.load(Settings(speculative_model="x", plugin=["ngram"]).selection())


def test_the_plugin_without_a_model_is_refused():
    settings = Settings(plugin=["draft-model"])
    with pytest.raises(ConfigError, match="--plugin draft-model needs the draft model: --speculative-model MODEL"):
        PluginHost.load(settings.selection()).configure(settings)
