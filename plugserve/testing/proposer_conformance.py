"""What every draft proposer promises, as cases for pytest: subclass ProposerConformance and say how to make one.

A proposer that has seen other sequences is measured against a fresh one. What stands behind the known tokens of a row
is never a token, so a proposer that looks there says something that no vocabulary has.
"""

from __future__ import annotations

import random
from collections.abc import Sequence, Sized
from typing import TYPE_CHECKING

from plugserve.core.contracts.attention import AttentionSpec
from plugserve.core.contracts.factories import DraftProposerContext
from plugserve.core.contracts.speculation import DraftProposer, Drafts, DraftStep
from plugserve.testing.contexts import settings_view
from plugserve.testing.fake_runner import mix

if TYPE_CHECKING:
    import torch

NUM_ROWS = 8
MAX_LEN = 256


class FakeDraftRunner:
    """A DraftRunner whose keys and values are hashes, so that a stale or a missing one makes another token.

    tokens [num_rows, max_len] are the rows that it reads. It draws the one token that a hash of the row's keys gives.
    """

    kv_bytes_per_token = 8

    def __init__(self, tokens: torch.Tensor, vocab_size: int) -> None:
        self._tokens = tokens
        self._vocab_size = vocab_size
        self._keys = [[-1] * tokens.shape[1] for _ in range(tokens.shape[0])]

    def forward(self, rows: list[int], starts: list[int], counts: list[int]) -> torch.Tensor:
        import torch

        logits = torch.zeros(len(rows), self._vocab_size)
        for i, (row, start, count) in enumerate(zip(rows, starts, counts, strict=True)):
            keys = self._keys[row]
            assert count > 0, "forward needs one token at least"
            for position in range(start, start + count):
                token = int(self._tokens[row, position])
                assert 0 <= token < self._vocab_size, f"row {row} has no token at {position}: {token}"
                keys[position] = mix(keys[position - 1] if position else 0, token)
            logits[i, keys[start + count - 1] % self._vocab_size] = 30.0
        return logits

    def sample(self, logits: torch.Tensor, rows: list[int], num_known: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        tokens = logits.argmax(-1)
        return tokens, torch.nn.functional.one_hot(tokens, self._vocab_size).float()


class Desk:
    """Device rows with sequences on them, and one proposer that is asked about them."""

    def __init__(self, case: ProposerConformance) -> None:
        import torch

        self._vocab_size = case.vocab_size
        self.tokens = torch.full((NUM_ROWS, MAX_LEN + 1), case.vocab_size + 7, dtype=torch.int32)
        self.proposer = case.make_proposer(
            DraftProposerContext(
                options=None,
                config=settings_view(speculative_model="draft"),
                spec=AttentionSpec(1, 2, 1, 8, 8**-0.5, "float32", "cpu"),
                block_size=16,
                max_model_len=MAX_LEN,
                build_runner=lambda source: FakeDraftRunner(self.tokens, case.vocab_size),
                reserve_kv=lambda num_bytes: None,
            )
        )

    def put(self, row: int, known: Sequence[int]) -> None:
        """These are row's known tokens; what follows is scratch and holds no token."""
        import torch

        self.tokens[row, : len(known)] = torch.tensor(known, dtype=torch.int32)
        self.tokens[row, len(known) :] = self._vocab_size + 7

    def ask(
        self, ids: Sequence[int], rows: Sequence[int], lengths: Sequence[int], most: Sequence[int]
    ) -> list[list[int]]:
        """The drafts of each row, checked. Raises AssertionError for what breaks the contract."""
        before = self.tokens.clone()
        step = DraftStep(list(ids), list(rows), list(lengths), list(most), self.tokens)
        drafts = self.proposer.propose(step, max(most))
        for row in range(NUM_ROWS):
            length = lengths[list(rows).index(row)] if row in rows else MAX_LEN + 1
            is_same = bool((self.tokens[row, :length] == before[row, :length]).all())
            assert is_same, f"propose changed known tokens of row {row}"
        return self._checked(drafts, most)

    def _checked(self, drafts: Drafts, most: Sequence[int]) -> list[list[int]]:
        assert isinstance(drafts, Drafts), f"propose returned {type(drafts).__name__}, not Drafts"
        assert len(drafts.counts) == len(most), f"{len(drafts.counts)} counts for {len(most)} rows"
        assert drafts.tokens.dim() == 2, f"tokens have shape {tuple(drafts.tokens.shape)}, not [B, k]"
        assert drafts.tokens.shape[0] == len(most), f"tokens of {drafts.tokens.shape[0]} rows for {len(most)}"
        assert not drafts.tokens.is_floating_point(), f"tokens are {drafts.tokens.dtype}"
        found = []
        for i, (count, wanted) in enumerate(zip(drafts.counts, most, strict=True)):
            assert 0 <= count <= wanted, f"row {i} got {count} drafts where at most {wanted} were wanted"
            row = drafts.tokens[i, :count].tolist()
            assert len(row) == count, f"row {i} counts {count} drafts, tokens has {len(row)}"
            outside = [token for token in row if not 0 <= token < self._vocab_size]
            assert not outside, f"row {i} drafts {outside}, outside the vocabulary of {self._vocab_size} ids"
            found.append(row)
        if drafts.probs is not None:
            self._check_probs(drafts, found)
        return found

    def _check_probs(self, drafts: Drafts, found: list[list[int]]) -> None:
        assert drafts.probs is not None
        expected = (len(found), drafts.tokens.shape[1], self._vocab_size)
        assert tuple(drafts.probs.shape) == expected, f"probs have shape {tuple(drafts.probs.shape)}, not {expected}"
        for i, row in enumerate(found):
            for j, token in enumerate(row):
                total = float(drafts.probs[i, j].sum())
                assert abs(total - 1) < 1e-3, f"probs of row {i}, draft {j} sum to {total:.4f}, not to 1"
                assert float(drafts.probs[i, j, token]) > 0, f"row {i} drew token {token}, which its probs rule out"


class ProposerConformance:
    """Subclass it, name the subclass Test..., and override make_proposer.

    context has build_runner and reserve_kv for proposers with a model: the runner is a fake over the case's rows.
    """

    vocab_size: int = 500

    def make_proposer(self, context: DraftProposerContext) -> DraftProposer:
        """A new proposer, as the plugin's factory makes it."""
        raise NotImplementedError("override make_proposer: return a new draft proposer")

    def test_it_is_a_draft_proposer(self) -> None:
        proposer = Desk(self).proposer
        assert isinstance(proposer, DraftProposer), f"{type(proposer).__name__} lacks propose or forget"

    def test_drafts_are_tokens_and_no_more_than_wanted(self) -> None:
        draw = random.Random(0)
        for number in range(30):
            desk, count = Desk(self), draw.randint(1, NUM_ROWS)
            rows = draw.sample(range(NUM_ROWS), count)
            histories = [self._history(draw, draw.choice([1, 2, 3, 20, 100])) for _ in rows]
            for row, known in zip(rows, histories, strict=True):
                desk.put(row, known)
            ids = [number * 100 + row for row in rows]
            desk.ask(ids, rows, [len(known) for known in histories], [draw.randint(1, 6) for _ in rows])

    def test_rows_do_not_know_each_other(self) -> None:
        """In a batch, in any order, a row is drafted what it is drafted alone."""
        draw = random.Random(1)
        histories = [self._history(draw, length) for length in (40, 7, 90, 1, 60)]
        rows = [3, 0, 6, 1, 5]
        alone = [self._fresh(row, known, 4) for row, known in zip(rows, histories, strict=True)]
        for order in (range(5), reversed(range(5)), (2, 0, 4, 1, 3)):
            desk, places = Desk(self), list(order)
            for row, known in zip(rows, histories, strict=True):
                desk.put(row, known)
            lengths = [len(histories[n]) for n in places]
            found = desk.ask(places, [rows[n] for n in places], lengths, [4] * 5)
            assert found == [alone[n] for n in places], f"in the order {places} rows are drafted something else"

    def test_drafts_follow_what_was_really_generated(self) -> None:
        """A sequence grows by its drafts, by some of them, or by something else."""
        draw, desk = random.Random(2), Desk(self)
        known = self._history(draw, 30)
        for step in range(20):
            desk.put(2, known)
            found = desk.ask([7], [2], [len(known)], [4])[0]
            assert found == self._fresh(2, known, 4), f"after {step} steps the drafts are not those of a fresh proposer"
            known = known + found[: draw.randint(0, len(found))] + self._history(draw, draw.choice([1, 1, 2]))

    def test_a_sequence_that_has_left_is_forgotten(self) -> None:
        """Aborted; another one takes its row, longer, shorter or as long as it was."""
        draw, desk = random.Random(3), Desk(self)
        desk.put(4, old := self._history(draw, 50))
        desk.ask([1], [4], [len(old)], [4])
        for id, length in enumerate((50, 51, 54, 60, 12, 90, 1), start=2):
            desk.proposer.forget(id - 1)
            desk.put(4, known := self._history(draw, length))
            found = desk.ask([id], [4], [length], [4])[0]
            assert found == self._fresh(4, known, 4), (
                "drafts are stale: they follow the sequence that had the row before"
            )

    def test_a_sequence_may_come_back_in_another_row(self) -> None:
        """Preempted: forgotten, then there again, in a row where something else was."""
        draw, desk = random.Random(4), Desk(self)
        desk.put(0, known := self._history(draw, 40))
        desk.put(1, other := self._history(draw, 60))
        desk.ask([1, 2], [0, 1], [len(known), len(other)], [3, 3])
        desk.proposer.forget(1)
        desk.proposer.forget(2)
        desk.put(1, known := known + self._history(draw, 5))
        found = desk.ask([1], [1], [len(known)], [3])[0]
        assert found == self._fresh(1, known, 3), "drafts are stale after a preemption"

    def test_forgetting_what_was_never_seen_is_fine(self) -> None:
        desk = Desk(self)
        for id in (5, 5, 10**9):
            desk.proposer.forget(id)

    def test_nothing_is_kept_of_sequences_that_are_gone(self) -> None:
        draw, desk = random.Random(5), Desk(self)
        sizes = []
        for id in range(120):
            desk.put(id % NUM_ROWS, known := self._history(draw, 20))
            desk.ask([id], [id % NUM_ROWS], [len(known)], [2])
            desk.proposer.forget(id)
            sizes.append(sum(len(value) for value in vars(desk.proposer).values() if isinstance(value, Sized)))
        assert sizes[-1] - sizes[19] < 50, f"100 sequences came and went, and {sizes[-1] - sizes[19]} entries stayed"

    # ------------------------------------------------ how

    def _history(self, draw: random.Random, length: int) -> list[int]:
        """Tokens that repeat themselves now and then, as texts do."""
        words = [[draw.randrange(self.vocab_size) for _ in range(4)] for _ in range(3)]
        tokens: list[int] = []
        while len(tokens) < length:
            tokens += draw.choice(words)
        return tokens[:length]

    def _fresh(self, row: int, known: Sequence[int], most: int) -> list[int]:
        """What a new proposer drafts that has seen nothing else."""
        desk = Desk(self)
        desk.put(row, known)
        return desk.ask([10_000], [row], [len(known)], [most])[0]
