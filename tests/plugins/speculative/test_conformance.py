"""The built-in draft proposers pass the conformance cases."""

from plugserve.plugins.speculative.draft_model import DraftModelProposer
from plugserve.plugins.speculative.ngram import NgramProposer
from plugserve.testing import ProposerConformance


class TestNgram(ProposerConformance):
    def make_proposer(self, context):
        return NgramProposer(4, 2)


class TestNgramOfOne(ProposerConformance):
    def make_proposer(self, context):
        return NgramProposer(1, 1)


class TestSampledDraftModel(ProposerConformance):
    def make_proposer(self, context):
        return DraftModelProposer(context.build_runner("draft"), is_greedy=False)


class TestGreedyDraftModel(ProposerConformance):
    def make_proposer(self, context):
        return DraftModelProposer(context.build_runner("draft"), is_greedy=True)
