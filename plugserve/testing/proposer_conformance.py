"""Pytest cases for draft proposers: subclass ProposerConformance and override make_proposer.

A proposer that has processed other sequences is compared with a new one. The entries of a row past its known tokens are
invalid ids, so a proposer that reads them drafts tokens outside the vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Sequence, Sized
from typing import TYPE_CHECKING

from plugserve.core.contracts.attention import AttentionSpec
from plugserve.core.contracts.drafting import DraftProposer, Drafts, DraftStep
from plugserve.core.contracts.factories import DraftProposerContext
from plugserve.testing.contexts import settings_view
from plugserve.testing.fake_runner import mix

if TYPE_CHECKING:
    import torch

NUM_ROWS = 8
MAX_LEN = 256


class FakeDraftRunner:
    """A DraftRunner whose keys and values are hashes, so that a stale or missing key gives another token.

    It reads the rows tokens [num_rows, max_len] and samples the token that a hash of the row's keys gives.
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
            assert count > 0, "forward needs at least one token"
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


class _ProposerDriver:
    """Device rows with sequences, and a proposer that drafts for them."""

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

    def set_row(self, row: int, known: Sequence[int]) -> None:
        """Set row's known tokens; the entries past them are scratch space with invalid ids."""
        import torch

        self.tokens[row, : len(known)] = torch.tensor(known, dtype=torch.int32)
        self.tokens[row, len(known) :] = self._vocab_size + 7

    def draft(
        self, ids: Sequence[int], rows: Sequence[int], lengths: Sequence[int], most: Sequence[int]
    ) -> list[list[int]]:
        """The drafts of each row. Raises AssertionError if they break the contract."""
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
            assert 0 <= count <= wanted, f"row {i} got {count} drafts, at most {wanted} were asked for"
            row = drafts.tokens[i, :count].tolist()
            assert len(row) == count, f"counts has {count} drafts for row {i}, tokens has {len(row)}"
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
                assert float(drafts.probs[i, j, token]) > 0, (
                    f"row {i} drafts token {token}, whose probability in probs is 0"
                )


class ProposerConformance:
    """Subclass it, name the subclass Test..., and override make_proposer.

    context has build_runner and reserve_kv for proposers with a model; build_runner returns a FakeDraftRunner.
    """

    vocab_size: int = 500

    def make_proposer(self, context: DraftProposerContext) -> DraftProposer:
        """Returns a new proposer, as the plugin's factory does."""
        raise NotImplementedError("override make_proposer: return a new draft proposer")

    def test_it_is_a_draft_proposer(self) -> None:
        proposer = _ProposerDriver(self).proposer
        assert isinstance(proposer, DraftProposer), f"{type(proposer).__name__} lacks propose or forget"

    def test_drafts_are_in_the_vocabulary_and_within_their_number(self) -> None:
        draw = random.Random(0)
        for number in range(30):
            driver, count = _ProposerDriver(self), draw.randint(1, NUM_ROWS)
            rows = draw.sample(range(NUM_ROWS), count)
            histories = [self._history(draw, draw.choice([1, 2, 3, 20, 100])) for _ in rows]
            for row, known in zip(rows, histories, strict=True):
                driver.set_row(row, known)
            ids = [number * 100 + row for row in rows]
            driver.draft(ids, rows, [len(known) for known in histories], [draw.randint(1, 6) for _ in rows])

    def test_drafts_do_not_depend_on_the_batch(self) -> None:
        """A row's drafts are the same alone and in a batch of any order."""
        draw = random.Random(1)
        histories = [self._history(draw, length) for length in (40, 7, 90, 1, 60)]
        rows = [3, 0, 6, 1, 5]
        alone = [self._fresh(row, known, 4) for row, known in zip(rows, histories, strict=True)]
        for order in (range(5), reversed(range(5)), (2, 0, 4, 1, 3)):
            driver, places = _ProposerDriver(self), list(order)
            for row, known in zip(rows, histories, strict=True):
                driver.set_row(row, known)
            lengths = [len(histories[n]) for n in places]
            found = driver.draft(places, [rows[n] for n in places], lengths, [4] * 5)
            assert found == [alone[n] for n in places], (
                f"in the order {places} the drafts differ from those of each row alone"
            )

    def test_drafts_follow_the_accepted_tokens(self) -> None:
        """A sequence grows by all of its drafts, by some of them, and by other tokens."""
        draw, driver = random.Random(2), _ProposerDriver(self)
        known = self._history(draw, 30)
        for step in range(20):
            driver.set_row(2, known)
            found = driver.draft([7], [2], [len(known)], [4])[0]
            assert found == self._fresh(2, known, 4), f"after {step} steps the drafts differ from a new proposer's"
            known = known + found[: draw.randint(0, len(found))] + self._history(draw, draw.choice([1, 1, 2]))

    def test_drafts_ignore_the_rows_former_sequence(self) -> None:
        """After an abort another sequence gets the row: longer, shorter or equally long."""
        draw, driver = random.Random(3), _ProposerDriver(self)
        driver.set_row(4, old := self._history(draw, 50))
        driver.draft([1], [4], [len(old)], [4])
        for id, length in enumerate((50, 51, 54, 60, 12, 90, 1), start=2):
            driver.proposer.forget(id - 1)
            driver.set_row(4, known := self._history(draw, length))
            found = driver.draft([id], [4], [length], [4])[0]
            assert found == self._fresh(4, known, 4), "drafts are stale: they follow the row's former sequence"

    def test_a_preempted_sequence_may_continue_in_another_row(self) -> None:
        """A preempted sequence is forgotten and then returns in another sequence's former row."""
        draw, driver = random.Random(4), _ProposerDriver(self)
        driver.set_row(0, known := self._history(draw, 40))
        driver.set_row(1, other := self._history(draw, 60))
        driver.draft([1, 2], [0, 1], [len(known), len(other)], [3, 3])
        driver.proposer.forget(1)
        driver.proposer.forget(2)
        driver.set_row(1, known := known + self._history(draw, 5))
        found = driver.draft([1], [1], [len(known)], [3])[0]
        assert found == self._fresh(1, known, 3), "drafts are stale after a preemption"

    def test_forget_accepts_unknown_sequences(self) -> None:
        driver = _ProposerDriver(self)
        for id in (5, 5, 10**9):
            driver.proposer.forget(id)

    def test_forgotten_sequences_leave_no_state(self) -> None:
        draw, driver = random.Random(5), _ProposerDriver(self)
        sizes = []
        for id in range(120):
            driver.set_row(id % NUM_ROWS, known := self._history(draw, 20))
            driver.draft([id], [id % NUM_ROWS], [len(known)], [2])
            driver.proposer.forget(id)
            sizes.append(sum(len(value) for value in vars(driver.proposer).values() if isinstance(value, Sized)))
        assert sizes[-1] - sizes[19] < 50, f"{sizes[-1] - sizes[19]} entries of 100 forgotten sequences are kept"

    # ------------------------------------------------ helpers

    def _history(self, draw: random.Random, length: int) -> list[int]:
        """Tokens with repetitions, as in texts."""
        words = [[draw.randrange(self.vocab_size) for _ in range(4)] for _ in range(3)]
        tokens: list[int] = []
        while len(tokens) < length:
            tokens += draw.choice(words)
        return tokens[:length]

    def _fresh(self, row: int, known: Sequence[int], most: int) -> list[int]:
        """The drafts of a new proposer."""
        driver = _ProposerDriver(self)
        driver.set_row(row, known)
        return driver.draft([10_000], [row], [len(known)], [most])[0]
