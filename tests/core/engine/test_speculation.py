"""The host's side of speculation on a fake runner: bounds, blocks, counts."""

from __future__ import annotations

import pytest

from plugserve.core.contracts.engine_facts import EngineStats
from plugserve.core.contracts.runner import LengthRule, StepResult
from plugserve.core.engine.acceptance import Acceptance, DraftPolicy
from plugserve.core.engine.plugin_counts import PluginCounts
from plugserve.core.engine.sequence import Sequence
from plugserve.core.engine.speculation import Speculation
from plugserve.core.plugin_system.plugin_guard import PluginGuard
from plugserve.core.wire.messages import FINISH_LENGTH, FINISH_STOP
from plugserve.plugins.schedulers.fcfs import make_fcfs
from plugserve.testing.contexts import scheduler_context
from plugserve.testing.fake_runner import expected_tokens
from tests.core.engine.test_engine import Client, make_engine, random_prompts


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 7, 40])
def test_drafts_never_lead_past_max_tokens(max_tokens):
    engine, _ = make_engine(drafts=5)
    client, prompts = Client(engine), random_prompts(6, 30)
    for id, prompt in enumerate(prompts):
        client.send(id, prompt, max_tokens)
    client.run()
    for id, prompt in enumerate(prompts):
        assert client.tokens[id] == expected_tokens(prompt, max_tokens)
        assert client.finish[id] == FINISH_LENGTH
    assert engine.kv.num_free == engine.kv.num_blocks


def test_a_stop_token_among_accepted_drafts_ends_the_sequence_there():
    prompt = [3, 1, 4]
    text = expected_tokens(prompt, 30)
    for stop in range(12):
        engine, _ = make_engine(eos=[text[stop]], drafts=6)
        client = Client(engine)
        client.send(0, prompt, 30)
        client.run()
        assert client.tokens[0] == text[: text.index(text[stop]) + 1]
        assert client.finish[0] == FINISH_STOP


def test_fewer_steps_than_tokens_are_run():
    engine, _ = make_engine(drafts=5)
    client = Client(engine)
    client.send(0, [1, 2, 3], 200)
    client.run()
    assert engine.stats.num_steps < 150
    stats = engine.stats
    assert stats.num_drafts <= stats.num_steps
    assert sum(stats.num_accepted_per_position) == stats.num_accepted_draft_tokens < stats.num_draft_tokens


class Watching(DraftPolicy):
    """Drafts always; keeps what it is told of steps."""

    def __init__(self):
        super().__init__(2, is_adaptive=False)
        self.num_tokens = []

    def observe_step(self, num_rows, num_tokens, num_new_tokens, duration_s):
        self.num_tokens.append((num_rows, num_tokens))


def test_the_time_of_a_step_in_which_a_request_drafts_for_the_first_time_says_nothing_of_others():
    """There a draft model computes the request's whole prompt."""
    policy = Watching()
    speculation = Speculation(policy, EngineStats(), "draft", PluginGuard())
    old, new = Sequence.__new__(Sequence), Sequence.__new__(Sequence)
    old.acceptance, new.acceptance = Acceptance(), Acceptance()
    result = StepResult(1, [[5, 6], [7]], num_drafted={0: 2}, duration_s=1.0)
    for sequences in ([old, new], [old, new], [new, old], [new, old]):
        speculation.settle(sequences, [3, 1], [2, 0], result)
    assert policy.num_tokens == [(2, 4), (2, 4)]


def test_drafts_take_only_tokens_and_blocks_that_the_plan_leaves_over():
    engine, fake = make_engine(drafts=5, tokens=7, seqs=6, num_blocks=64)
    client, prompts = Client(engine), random_prompts(6, 30)
    for id, prompt in enumerate(prompts):
        client.send(id, prompt, 60)
    client.run()
    assert max(fake.num_launched_tokens) == 7
    assert client.tokens == {id: expected_tokens(prompt, 60) for id, prompt in enumerate(prompts)}


def test_blocks_for_drafts_that_were_refused_are_taken_back_before_anyone_is_preempted():
    """Four sequences that just fit: with blocks kept for refused drafts one would have to give way."""
    runs = {}
    for drafts in (None, 20):
        engine, _ = make_engine(drafts=drafts, tokens=64, seqs=4, num_blocks=16)
        client = Client(engine)
        for id in range(4):
            client.send(id, [id] * 10, 54)
        client.run()
        assert client.tokens == {id: expected_tokens([id] * 10, 54) for id in range(4)}
        runs[drafts] = engine.stats.num_preemptions
    assert runs == {None: 0, 20: 0}


def test_no_draft_is_computed_past_the_border_of_a_length_rule():
    """What a sequence computes beyond it would have keys of other frequencies (LongRoPE)."""
    rule = LengthRule(border=50, restarts=True)
    engine, fake = make_engine(drafts=5, max_model_len=200, length_rule=rule)
    client = Client(engine)
    client.send(0, [5] * 20, 100)
    seen, launch = [], fake.launch

    def watch(step):
        rows = list(fake._rows.values())
        seen.append((rows[0].num_computed if rows else 0, step))
        launch(step)

    fake.launch = watch
    client.run()
    assert client.tokens[0] == expected_tokens([5] * 20, 100)
    short = [(computed, step) for computed, step in seen if computed < 50 and step.num_drafts]
    assert len(short) > 3
    assert max(computed + step.num_tokens[0] for computed, step in short) <= 50


def test_views_say_how_many_drafts_core_may_add():
    scheduler, views = make_fcfs(scheduler_context()), []
    scheduler.add, add = (lambda view: (views.append(view), add(view))), scheduler.add
    engine, _ = make_engine(scheduler, drafts=5)
    client = Client(engine)
    client.send(0, [1, 2], 30)
    assert views[0].num_draft == 0
    engine.step()
    engine.step()
    assert views[0].num_draft == 5
    assert views[0].num_pending == 1
    client.run()


def test_failing_proposer_is_named_and_counted(caplog):
    guard, stats = PluginGuard(), EngineStats()
    guard.watch(PluginCounts(stats))
    speculation = Speculation(DraftPolicy(2, is_adaptive=False), stats, "mine", guard)
    for number in range(1, 4):
        result = StepResult(1, [], has_draft_error=True, draft_error=ValueError("broken"), is_proposer_off=number == 3)
        speculation.settle([], [], [], result)
    speculation.settle([], [], [], StepResult(1, [], has_draft_error=True))
    assert stats.plugin_errors == {"mine propose": 3}
    assert stats.plugin_quarantines == {"mine propose": 1}
    assert stats.num_draft_errors == 4
    assert "plugin=mine hook=propose raised ValueError: broken" in caplog.text
