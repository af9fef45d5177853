"""The conformance kit finds bugs that are planted into plugins that pass it."""

from __future__ import annotations

import dataclasses
import json
import textwrap
import types
from pathlib import Path

import pytest
import torch

from plugserve.core.contracts.answers import ToolDelta
from plugserve.core.contracts.factories import PluginContext
from plugserve.core.contracts.scheduling import StepPlan
from plugserve.core.contracts.speculation import Drafts
from plugserve.core.wire.block_hash import hash_block, salt_of
from plugserve.plugins.attention.torch_sdpa import TorchSdpaAttention
from plugserve.plugins.lora.gathered import GatheredLora
from plugserve.plugins.prefix_cache.lru_cache import BlockHashCache
from plugserve.plugins.reasoning_parsers.think_tags import ThinkTags
from plugserve.plugins.schedulers.fcfs import make_fcfs
from plugserve.plugins.speculative.ngram import NgramProposer
from plugserve.plugins.tool_parsers.calls_in_text import CallsInText
from plugserve.plugins.tool_parsers.hermes import hermes
from plugserve.testing import (
    AttentionConformance,
    FakeRunner,
    LoraConformance,
    PlainScheduler,
    PrefixCacheConformance,
    ProposerConformance,
    ReasoningParserConformance,
    RunnerConformance,
    SchedulerConformance,
    ServerPluginConformance,
    ToolExample,
    ToolParserConformance,
)
from tests.testing.kit_runner import catches, failures

# ---------------------------------------------------------------- schedulers


class Around:
    """A right scheduler, for planting bugs in what goes in and out."""

    def __init__(self):
        self.inner = make_fcfs(PluginContext(options=None, config=None))
        self.views = {}

    def add(self, view):
        self.views[view.id] = view
        self.inner.add(view)

    def remove(self, id):
        self.views.pop(id)
        self.inner.remove(id)

    def schedule(self, budget):
        return self.inner.schedule(budget)


class OverTokenBudget(Around):
    def schedule(self, budget):
        plan = self.inner.schedule(budget)
        if len(plan.scheduled) > 2:
            id, count = plan.scheduled[-1]
            view = self.views[id]
            more = min(view.num_pending, budget.max_num_tokens + 1)
            if view.num_new_blocks(more) == view.num_new_blocks(count):
                plan.scheduled[-1] = (id, more)
        return plan


class OverSequenceBudget(Around):
    def schedule(self, budget):
        return self.inner.schedule(dataclasses.replace(budget, max_num_seqs=budget.max_num_seqs + 1))


class OverBlockBudget(Around):
    def schedule(self, budget):
        return self.inner.schedule(dataclasses.replace(budget, num_free_blocks=budget.num_free_blocks + 1))


class FirstBudgetForEver(Around):
    first = None

    def schedule(self, budget):
        self.first = self.first or budget
        return self.inner.schedule(dataclasses.replace(budget, max_num_tokens=self.first.max_num_tokens))


class SchedulesTwice(Around):
    def schedule(self, budget):
        plan = self.inner.schedule(budget)
        if len(plan.scheduled) == 3:
            plan.scheduled.append(plan.scheduled[0])
        return plan


class SchedulesWhatItPreempts(Around):
    def schedule(self, budget):
        plan = self.inner.schedule(budget)
        if plan.preempted:
            plan.scheduled.append((plan.preempted[0], 1))
        return plan


class Sorted(PlainScheduler):
    """Starts waiting sequences in an order of its own; whoever fits may overtake."""

    def key(self, view):
        return view.id

    def schedule(self, budget):
        plan, left, blocks = StepPlan(), budget.max_num_tokens, budget.num_free_blocks
        running = [view for view in self._views.values() if view.is_running]
        reserved = sum(-(-view.max_num_tokens // budget.block_size) for view in running)
        num_running = len(running)
        waiting = sorted((view for view in self._views.values() if not view.is_running), key=self.key)
        for view in running + waiting:
            count = min(view.num_pending, left)
            needed = view.num_new_blocks(count) if count else 0
            if not view.is_running:
                whole = -(-view.max_num_tokens // budget.block_size)
                if reserved + whole > budget.num_blocks or num_running >= budget.max_num_seqs:
                    continue
                reserved, num_running = reserved + whole, num_running + bool(count)
            if count and needed <= blocks:
                plan.scheduled.append((view.id, count))
                left, blocks = left - count, blocks - needed
        return plan


class NewestFirst(Sorted):
    def key(self, view):
        return -view.id


class ShortestFirstForEver(Sorted):
    def key(self, view):
        return view.max_num_tokens, view.id


class PriorityForEver(Sorted):
    def key(self, view):
        return view.priority, view.id


class SmallOvertakesLarge(Sorted):
    pass


class UnknownUsersLast(Sorted):
    def key(self, view):
        return not view.user, view.id


class PromptsBeforeDecoding(Around):
    """Computes running sequences only while nobody has a prompt left."""

    def schedule(self, budget):
        plan = self.inner.schedule(budget)
        prompts = [(id, count) for id, count in plan.scheduled if self.views[id].is_prefill]
        return StepPlan(prompts or plan.scheduled, plan.preempted)


class NeverForgets(Around):
    def remove(self, id):
        self.inner.remove(id)

    def schedule(self, budget):
        plan = self.inner.schedule(budget)
        self.longest = max(view.num_tokens for view in self.views.values())
        return plan


class SchedulesTheRemoved(Around):
    def remove(self, id):
        self.inner.remove(id)
        self.gone = id

    def schedule(self, budget):
        plan = self.inner.schedule(budget)
        if hasattr(self, "gone") and plan.scheduled:
            plan.scheduled.append((self.gone, 1))
            del self.gone
        return plan


class KeepsViews(Around):
    def __init__(self):
        super().__init__()
        self.history = []

    def add(self, view):
        self.history.append(view)
        super().add(view)


class WritesToViews(Around):
    def schedule(self, budget):
        for view in self.views.values():
            try:
                view.priority = 0
            except AttributeError:
                self.is_read_only = True
        return self.inner.schedule(budget)


class ReachesIntoViews(Around):
    def schedule(self, budget):
        for view in self.views.values():
            sequence = getattr(view, "_sequence", None)
            if sequence is not None:
                sequence.priority = 0
        return self.inner.schedule(budget)


class ForcesViews(Around):
    def add(self, view):
        super().add(view)
        if len(self.views) > 2:
            object.__setattr__(view, "id", 0)


class DoesNothingNow(Around):
    def schedule(self, budget):
        return StepPlan() if len(self.views) == 1 else self.inner.schedule(budget)


class RaisesSometimes(Around):
    def remove(self, id):
        super().remove(id)
        if id == 3:
            raise KeyError(id)


SCHEDULER_BUGS = [
    (OverTokenBudget, "budget is"),
    (OverSequenceBudget, "sequences run, the budget is"),
    (OverBlockBudget, "without a free block"),
    (FirstBudgetForEver, "tokens, the budget is"),
    (SchedulesTwice, "twice"),
    (SchedulesWhatItPreempts, "names a sequence twice"),
    (NewestFirst, "starvation"),
    (ShortestFirstForEver, "starvation: a long prompt"),
    (PriorityForEver, "starvation: a low priority"),
    (SmallOvertakesLarge, "starvation: one that needs most of the memory"),
    (UnknownUsersLast, "starvation: an unknown user"),
    (PromptsBeforeDecoding, "starvation: new prompts"),
    (NeverForgets, "after remove"),
    (SchedulesTheRemoved, "removed"),
    (KeepsViews, "still holds"),
    (WritesToViews, "views are read-only"),
    (ReachesIntoViews, "isn't part of SequenceView"),
    (ForcesViews, "by force"),
    (DoesNothingNow, "not finished"),
    (RaisesSometimes, "raised"),
]


@pytest.mark.parametrize(("scheduler", "word"), SCHEDULER_BUGS, ids=lambda value: getattr(value, "__name__", ""))
def test_scheduler_bug_is_caught(scheduler, word):
    class Case(SchedulerConformance):
        starvation_limit_s = 60.0

        def make_scheduler(self):
            return scheduler()

    assert catches(Case, word)


# ---------------------------------------------------------------- attention


class WrongGroup(TorchSdpaAttention):
    """Query head h reads key head h % num_kv_heads."""

    def run(self, q, k, v, kv, step, layer):
        spec = self._spec
        group = spec.num_heads // spec.num_kv_heads
        order = self._torch.arange(spec.num_heads).view(group, -1).T.reshape(-1)
        return super().run(q[:, order], k, v, kv, step, layer)[:, order.argsort()]


class WindowOffByOne(TorchSdpaAttention):
    def kv_layout(self, spec):
        layout = super().kv_layout(spec)
        self._windows = tuple(window and window + 1 for window in self._windows)
        self._distinct_windows = tuple(dict.fromkeys(self._windows))
        return layout


class WindowIgnoredInDecoding(TorchSdpaAttention):
    def _decode_mask(self, lengths, window, device):
        return super()._decode_mask(lengths, None, device)


class BlockEdge(TorchSdpaAttention):
    """Sees one block less where a context ends with a block."""

    def plan(self, batch):
        lengths = [n - batch.block_size if n % batch.block_size == 0 and n > 16 else n for n in batch.context_lens]
        queries = [min(n, m) for n, m in zip(batch.query_lens, lengths, strict=True)]
        return super().plan(dataclasses.replace(batch, query_lens=queries, context_lens=lengths))


class OneBlockTooFew(TorchSdpaAttention):
    """Sees nothing of a block that has only just begun."""

    def plan(self, batch):
        size = batch.block_size
        lengths = [n - 1 if n % size == 1 and n > size else n for n in batch.context_lens]
        decoding = all(n == 1 for n in batch.query_lens)
        return super().plan(dataclasses.replace(batch, context_lens=lengths) if decoding else batch)


class EmptyRowIsNotANumber(TorchSdpaAttention):
    def plan(self, batch):
        self.empty = [b for b, n in enumerate(batch.context_lens) if n == 0]
        self.starts = [sum(batch.query_lens[:b]) for b in self.empty]
        return super().plan(batch)

    def run(self, q, k, v, kv, step, layer):
        out = super().run(q, k, v, kv, step, layer)
        if len(self.starts) and len(out) > self.starts[0]:
            out[self.starts] = float("nan")
        return out


class EmptyRowRaises(TorchSdpaAttention):
    def plan(self, batch):
        if 0 in batch.query_lens:
            raise IndexError("no tokens")
        return super().plan(batch)


class ForgetsSoftCap(TorchSdpaAttention):
    def kv_layout(self, spec):
        layout = super().kv_layout(spec)
        self._spec = dataclasses.replace(spec, soft_cap=None)
        return layout


class GraphSafeButAllocates(TorchSdpaAttention):
    graph_safe = True


class WaitsInRun(TorchSdpaAttention):
    def run(self, q, k, v, kv, step, layer):
        assert q.abs().max().item() >= 0
        return super().run(q, k, v, kv, step, layer)


class KeepsEveryStep(TorchSdpaAttention):
    def plan(self, batch):
        step = super().plan(batch)
        self.__dict__.setdefault("steps", []).append((step, batch.slots.clone()))
        return step


class CountsBytesWrong(TorchSdpaAttention):
    def kv_layout(self, spec):
        layout = super().kv_layout(spec)
        return dataclasses.replace(layout, bytes_per_block=layout.bytes_per_block // spec.num_layers)


class WritesBesideItsSlots(TorchSdpaAttention):
    def run(self, q, k, v, kv, step, layer):
        out = super().run(q, k, v, kv, step, layer)
        kv[:, 3] = 0
        return out


ATTENTION_BUGS = [
    (WrongGroup, "output is off"),
    (WindowOffByOne, "output is off"),
    (WindowIgnoredInDecoding, "output is off"),
    (BlockEdge, "output is off"),
    (OneBlockTooFew, "output is off"),
    (EmptyRowIsNotANumber, "NaN"),
    (EmptyRowRaises, "no tokens"),
    (ForgetsSoftCap, "output is off"),
    (GraphSafeButAllocates, "run allocates"),
    (WaitsInRun, "waits for the device"),
    (KeepsEveryStep, "still alive"),
    (CountsBytesWrong, "bytes_per_block"),
    (WritesBesideItsSlots, "beside the step's slots"),
]


@pytest.mark.parametrize(("backend", "word"), ATTENTION_BUGS, ids=lambda value: getattr(value, "__name__", ""))
def test_attention_bug_is_caught(backend, word):
    class Case(AttentionConformance):
        shapes = ((4, 2, 16),)

        def make_attention(self, context):
            return backend(context.block_size)

    assert catches(Case, word)


# ---------------------------------------------------------------- prefix caches


class ShortHashes(BlockHashCache):
    """Tells hashes apart by a part of them only."""

    def match(self, hashes):
        return super().match([hash[:1] for hash in hashes])

    def insert(self, hash, block):
        return super().insert(hash[:1], block)


class SkipsWhatIsMissing(BlockHashCache):
    def match(self, hashes):
        return [self._block_of[hash] for hash in hashes if hash in self._block_of]


class OneBlockTooMany(BlockHashCache):
    """Matches the last, partial block of a prompt too: any block that once followed."""

    def match(self, hashes):
        blocks = super().match(hashes)
        if blocks and len(blocks) == len(hashes) and self.holds(blocks[-1] + 1):
            blocks.append(blocks[-1] + 1)
        return blocks


class EvictsRetained(BlockHashCache):
    def retain(self, block):
        pass


class EvictsAnything(BlockHashCache):
    def evict(self, num_blocks):
        for block in list(self._hash_of)[:num_blocks]:
            self._released.setdefault(block)
        return super().evict(num_blocks)


class ForgetsToForget(BlockHashCache):
    """An evicted block is still matched."""

    def evict(self, num_blocks):
        block_of = dict(self._block_of)
        evicted = super().evict(num_blocks)
        self._block_of = block_of
        return evicted


class ClearsBlocksInUse(BlockHashCache):
    def clear(self):
        super().clear()
        blocks, self._hash_of = list(self._hash_of), {}
        return blocks


class NewBlockWins(BlockHashCache):
    def insert(self, hash, block):
        old = self._block_of.pop(hash, None)
        if old is not None:
            del self._hash_of[old]
        return super().insert(hash, block)


PREFIX_CACHE_BUGS = [
    ShortHashes,
    SkipsWhatIsMissing,
    OneBlockTooMany,
    EvictsRetained,
    EvictsAnything,
    ForgetsToForget,
    ClearsBlocksInUse,
    NewBlockWins,
]


def prefix_cache_case(cache):
    class Case(PrefixCacheConformance):
        def make_prefix_cache(self):
            return cache()

    return Case


@pytest.mark.parametrize("cache", PREFIX_CACHE_BUGS, ids=lambda cache: cache.__name__)
def test_prefix_cache_bug_is_caught(cache):
    assert catches(prefix_cache_case(cache), "Error")


@pytest.mark.parametrize("where", ["plugserve.core.engine.engine.salt_of", "plugserve.core.wire.block_hash.salt_of"])
def test_hashing_without_salt_is_caught(monkeypatch, where):
    """Hashing is core's (in the engine and in the server); a plugin meets it in the engine, and there the kit sees that
    salts no longer keep caches apart."""
    monkeypatch.setattr(where, lambda model, adapter="", cache_salt="": salt_of(model, adapter))
    failed = failures(prefix_cache_case(BlockHashCache))
    assert len(failed) == 1
    assert next(iter(failed)).startswith("test_salts_keep_caches_apart")


def test_hashing_without_parent_is_caught(monkeypatch):
    def blocks_alone(salt, tokens, size):
        return [hash_block(salt, tokens[at : at + size]) for at in range(0, len(tokens) - size + 1, size)]

    for where in ("plugserve.core.engine.sequence.hash_blocks", "plugserve.core.wire.block_hash.hash_blocks"):
        with monkeypatch.context() as patched:
            patched.setattr(where, blocks_alone)
            failed = failures(prefix_cache_case(BlockHashCache))
        assert any(name.startswith("test_a_block_counts_only_behind_the_same_tokens") for name in failed)


# ---------------------------------------------------------------- runners


class RowsInOrderOfTheirNumbers(FakeRunner):
    """Returns the rows of a step sorted by device row instead of in batch order."""

    def collect(self):
        result = super().collect()
        order = self.batches.pop(0)
        tokens = [tokens for _, tokens in sorted(zip(order, result.tokens, strict=True))]
        return dataclasses.replace(result, tokens=tokens)

    def launch(self, step):
        self.__dict__.setdefault("batches", []).append(list(step.rows))
        super().launch(step)


class NewestStepFirst(FakeRunner):
    def collect(self):
        return self._results.pop()


class SamplesAlways(FakeRunner):
    def launch(self, step):
        super().launch(step)
        for tokens in self._results[-1].tokens:
            if not tokens:
                tokens.append(0)


class IgnoresSharedBlocks(FakeRunner):
    def _add(self, new):
        super()._add(new)
        if new.num_computed:
            self._memory[new.blocks[0]][0] = 7


class MaskOfAnotherRow(FakeRunner):
    def provide_masks(self, step_id, masks):
        super().provide_masks(step_id, masks[::-1])


@pytest.mark.parametrize(
    "runner",
    [RowsInOrderOfTheirNumbers, NewestStepFirst, SamplesAlways, IgnoresSharedBlocks, MaskOfAnotherRow],
    ids=lambda runner: runner.__name__,
)
def test_runner_bug_is_caught(runner):
    class Case(RunnerConformance):
        honours_sampling = False
        honours_logprobs = False

        def make_runner(self):
            return runner()

    assert catches(Case, "Error")


# ---------------------------------------------------------------- LoRA managers


def scaled(weights, factor):
    parts = {
        key: tuple(dataclasses.replace(part, b=part.b * factor) for part in parts)
        for key, parts in weights.parts.items()
    }
    return dataclasses.replace(weights, parts=parts)


class ScaleForgotten(GatheredLora):
    def read(self, path):
        return scaled(super().read(path), 0.5)


class ScaleOfTheRankSquared(GatheredLora):
    def read(self, path):
        config = json.loads((path / "adapter_config.json").read_text())
        return scaled(super().read(path), config["r"] ** -0.5 if not config["use_rslora"] else 1.0)


class SlotLeaked(GatheredLora):
    """Keeps what was ever loaded."""

    def load(self, slot, adapter):
        self.__dict__.setdefault("history", []).append(scaled(adapter, 1.0))
        super().load(slot, adapter)


class UnloadDoesNothing(GatheredLora):
    def unload(self, slot):
        pass


class UnloadIsHidden(GatheredLora):
    """Says that it holds nothing, and does."""

    size_bytes = 0

    def unload(self, slot):
        self.__dict__.setdefault("unloaded", []).append(self._slots[slot])
        super().unload(slot)


class SizeLeaked(GatheredLora):
    def load(self, slot, adapter):
        super().load(slot, adapter)
        self.total = getattr(self, "total", 0) + adapter.size_bytes

    @property
    def size_bytes(self):
        return getattr(self, "total", 0)


class OldAdapterRemains(GatheredLora):
    """Loads over what was there, module by module."""

    def load(self, slot, adapter):
        old = self._slots[slot]
        super().load(slot, dataclasses.replace(adapter, parts={**(old.parts if old else {}), **adapter.parts}))


class UnloadEmptiesAnotherSlot(GatheredLora):
    def unload(self, slot):
        self._slots[(slot + 1) % 3] = None


class RowsWithoutAdapterGetOne(GatheredLora):
    def plan(self, slots, num_tokens):
        return super().plan([max(slot, 0) if any(slot >= 0 for slot in slots) else slot for slot in slots], num_tokens)


class WrongRows(GatheredLora):
    def plan(self, slots, num_tokens):
        return super().plan(slots[::-1], num_tokens)


class WrongSlice(GatheredLora):
    """Keys and values go to each other's outputs."""

    def read(self, path):
        weights = super().read(path)
        swap = {32: 48, 48: 32}
        parts = {
            key: tuple(dataclasses.replace(part, start=swap.get(part.start, part.start)) for part in parts)
            if key[0] == "qkv"
            else parts
            for key, parts in weights.parts.items()
        }
        return dataclasses.replace(weights, parts=parts)


class ServesDora(GatheredLora):
    def read(self, path):
        file = path / "adapter_config.json"
        if file.is_file() and '"use_dora": true' in file.read_text():
            file.write_text(file.read_text().replace('"use_dora": true', '"use_dora": false'))
        return super().read(path)


class RaisesWhateverComes(GatheredLora):
    def read(self, path):
        json.loads((path / "adapter_config.json").read_text())
        return super().read(path)


LORA_BUGS = [
    (ScaleForgotten, "is off by"),
    (ScaleOfTheRankSquared, "is off by"),
    (SlotLeaked, "a slot leaks"),
    (SizeLeaked, "size_bytes"),
    (UnloadDoesNothing, "a slot leaks"),
    (UnloadIsHidden, "a slot leaks"),
    (OldAdapterRemains, "is off by"),
    (UnloadEmptiesAnotherSlot, "Error"),
    (RowsWithoutAdapterGetOne, "without an adapter was changed"),
    (WrongRows, "Error"),
    (WrongSlice, "is off by"),
    (ServesDora, "DID NOT RAISE"),
    (RaisesWhateverComes, "Error"),
]


@pytest.mark.parametrize(("manager", "word"), LORA_BUGS, ids=lambda value: getattr(value, "__name__", ""))
def test_lora_bug_is_caught(manager, word, tmp_path):
    class Case(LoraConformance):
        def make_lora_manager(self, context):
            return manager(context.lora_spec)

    assert catches(Case, word, tmp_path=tmp_path)


# ---------------------------------------------------------------- draft proposers


class StaleAfterAbort(NgramProposer):
    """Keeps what it knows of a row, and looks at what came since only."""

    def propose(self, step, k):
        known = self.__dict__.setdefault("known", {})
        tokens = step.tokens.clone()
        for row, length in zip(step.rows, step.lengths, strict=True):
            old = known.get(row, [])[:length]
            tokens[row, : len(old)] = self._torch.tensor(old, dtype=tokens.dtype)
            known[row] = tokens[row, :length].tolist()
        return super().propose(dataclasses.replace(step, tokens=tokens), k)


class StaleAfterPreemption(StaleAfterAbort):
    """Keeps it by the sequence's id, and doesn't forget."""

    def propose(self, step, k):
        drafts = self.__dict__.setdefault("drafts", {})
        found = NgramProposer.propose(self, step, k)
        for i, id in enumerate(step.ids):
            if id in drafts and drafts[id][0] == step.rows[i]:
                continue
            drafts[id] = (step.rows[i], found.tokens[i].clone())
        tokens = self._torch.stack([drafts[id][1] for id in step.ids]) if k == 3 else found.tokens
        return dataclasses.replace(found, tokens=tokens[:, : found.tokens.shape[1]])


class LooksBehindTheKnown(NgramProposer):
    """Drafts what stands in the row, tokens or not."""

    def propose(self, step, k):
        tokens = self._torch.stack([step.tokens[r, n : n + k] for r, n in zip(step.rows, step.lengths, strict=True)])
        return Drafts(tokens, list(step.num_drafts))


class OutsideTheVocabulary(NgramProposer):
    def propose(self, step, k):
        drafts = super().propose(step, k)
        return dataclasses.replace(drafts, tokens=drafts.tokens + 1)


class MoreThanWanted(NgramProposer):
    def propose(self, step, k):
        drafts = super().propose(step, k)
        return dataclasses.replace(drafts, counts=[k if count else 0 for count in drafts.counts])


class RowsByTheirNumbers(NgramProposer):
    def propose(self, step, k):
        return super().propose(dataclasses.replace(step, rows=sorted(step.rows)), k)


class WritesIntoHistory(NgramProposer):
    def propose(self, step, k):
        drafts = super().propose(step, k)
        step.tokens[step.rows[0], step.lengths[0] - 1] = 0
        return drafts


class ProbsThatRuleItsDraftsOut(NgramProposer):
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
    (LooksBehindTheKnown, "outside the vocabulary"),
    (OutsideTheVocabulary, "outside the vocabulary"),
    (MoreThanWanted, "were wanted"),
    (RowsByTheirNumbers, "Error"),
    (WritesIntoHistory, "changed known tokens"),
    (ProbsThatRuleItsDraftsOut, "rule out"),
    (KeepsEverySequence, "entries stayed"),
    (ForgetRaises, "KeyError"),
]


@pytest.mark.parametrize(("proposer", "word"), PROPOSER_BUGS, ids=lambda value: getattr(value, "__name__", ""))
def test_proposer_bug_is_caught(proposer, word):
    class Case(ProposerConformance):
        def make_proposer(self, context):
            return proposer(4, 1)

    assert catches(Case, word)


class DraftsByModel:
    """A right proposer with a model: greedy, and it computes a row's keys anew whenever it isn't sure of them."""

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
    assert forgets or "test_a_sequence_may_come_back_in_another_row" in failed


# ---------------------------------------------------------------- parsers


class ForgetsThePieceBefore(CallsInText):
    """Looks for a mark in each piece by itself."""

    def feed(self, text):
        self._texts.append(self._held)
        self._held = ""
        return super().feed(text)


class LosesTheEnd(CallsInText):
    def finish(self):
        super().finish()
        return ToolDelta()


class LosesWhatFollowsACall(CallsInText):
    def feed(self, text):
        had_calls = self._num_calls
        delta = super().feed(text)
        return ToolDelta("" if had_calls else delta.content, delta.calls)


class LosesBrokenCalls(CallsInText):
    def finish(self):
        return ToolDelta("", super().finish().calls)


class ThrowsOnJunk(CallsInText):
    def finish(self):
        if self._held or self._untold:
            json.loads(self._held or "".join(self._untold))
        return super().finish()


class NamesCallsLate(CallsInText):
    def feed(self, text):
        delta = super().feed(text)
        return ToolDelta(delta.content, [dataclasses.replace(call, name=None) for call in delta.calls])


class CountsFromOne(CallsInText):
    def feed(self, text):
        delta = super().feed(text)
        return ToolDelta(delta.content, [dataclasses.replace(call, index=call.index + 1) for call in delta.calls])


class SharesItsState(CallsInText):
    everything = []  # of the class, not of the answer

    def feed(self, text):
        self.everything.append(text)
        delta = super().feed(text)
        return ToolDelta(delta.content + ("" if len(self.everything) < 40 else "!"), delta.calls)


TOOL_PARSER_BUGS = [
    (ForgetsThePieceBefore, "pieces"),
    (LosesTheEnd, "is left"),
    (LosesWhatFollowsACall, "'Afterwards'"),
    (LosesBrokenCalls, "is left"),
    (ThrowsOnJunk, "it raised"),
    (NamesCallsLate, "has no name"),
    (CountsFromOne, "comes before call"),
    (SharesItsState, "Error"),
]


@pytest.mark.parametrize(("parser", "word"), TOOL_PARSER_BUGS, ids=lambda value: getattr(value, "__name__", ""))
def test_tool_parser_bug_is_caught(parser, word):
    class Case(ToolParserConformance):
        examples = (
            ToolExample('<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>', [("f", {"x": 1})]),
            ToolExample("a <tool_call> that is none", (), "a <tool_call> that is none"),
        )

        def make_parser(self, tools):
            made = hermes(tools)
            return parser(made._notation)

    assert catches(Case, word)


class CutsTags(ThinkTags):
    """Doesn't wait for the rest of a tag."""

    def feed(self, text):
        thinking, content = super().feed(text)
        held, self._held = self._held, ""
        return (thinking + held, content) if self.is_thinking else (thinking, content + held)


class LosesAnOpenTag(ThinkTags):
    def finish(self):
        return "", ""


class IgnoresThePrompt(ThinkTags):
    def __init__(self, begun):
        super().__init__("")


class ThinksForEver(ThinkTags):
    def feed(self, text):
        thinking, content = super().feed(text)
        return thinking + content, ""


class RaisesOnTwoTags(ThinkTags):
    def feed(self, text):
        _, _, _ = text.partition("</think>")
        if text.count("</think>") > 1:
            raise ValueError("two")
        return super().feed(text)


@pytest.mark.parametrize(
    "parser",
    [CutsTags, LosesAnOpenTag, IgnoresThePrompt, ThinksForEver, RaisesOnTwoTags],
    ids=lambda parser: parser.__name__,
)
def test_reasoning_parser_bug_is_caught(parser):
    class Case(ReasoningParserConformance):
        def make_parser(self, begun):
            return parser(begun)

    assert catches(Case, "Error")


# ---------------------------------------------------------------- server plugins


def server_plugin(source):
    module = types.ModuleType("house_rules")
    exec("from plugserve import Refusal, RequestError, hookimpl\n" + textwrap.dedent(source), vars(module))
    return module


SERVER_BUGS = [
    ("@hookimpl\ndef plugserve_authorize(request): return request.headers['authorization'] and None", "raised"),
    ("@hookimpl\ndef plugserve_authorize(request): return True", "raised"),
    ("@hookimpl\ndef plugserve_authorize(request): return Refusal(200, 'no')", "4xx or 5xx"),
    ("@hookimpl\ndef plugserve_authorize(request): return Refusal(403, 'no\\nway')", "one line"),
    ("@hookimpl\nasync def plugserve_authorize(request): return Refusal(403, '')", "needs a message"),
    ("@hookimpl\ndef plugserve_request_received(request): return {**request.body, 'n': 1}", "raised"),
    ("@hookimpl\ndef plugserve_request_received(request): (request.body or {}).pop('model', 0)", "in place"),
    ("@hookimpl\ndef plugserve_request_received(request): return {'x': {1, 2}}", "TypeError"),
    ("@hookimpl\ndef plugserve_request_received(request): raise RequestError('x', status=500)", "4xx"),
    ("@hookimpl\ndef plugserve_request_finished(usage, timings): timings.first_token_s / 2", "raised"),
    ("@hookimpl\ndef plugserve_request_finished(request, usage): usage.total / 2", "raised"),
    ("@hookimpl\ndef plugserve_error(error): error.status", "raised"),
    ("@hookimpl\ndef plugserve_register_routes(app): pass", "no route"),
    ("@hookimpl\ndef plugserve_requests_finished(usage): pass", "no hook"),
]


@pytest.mark.parametrize(("source", "word"), SERVER_BUGS)
def test_server_plugin_bug_is_caught(source, word):
    class Case(ServerPluginConformance):
        def make_plugin(self):
            return server_plugin(source)

    assert catches(Case, word)


def test_one_file_example_passes():
    path = Path(__file__).parents[2] / "examples" / "one_file" / "engine_events.py"

    class Case(ServerPluginConformance):
        def make_plugin(self):
            return server_plugin(path.read_text())

    assert failures(Case) == {}
