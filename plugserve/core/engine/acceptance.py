"""Chooses how many drafts each sequence has verified in its next step. Torch-free.

A sequence whose drafts are accepted with probability a each gains a + a^2 + ... + a^k tokens from k of them (Leviathan
et al. 2023, equation 1). A draft costs what one more token in a step costs. So the j-th draft pays while a^j tokens
take longer to generate at the present rate than that cost. With a large batch, whose steps are bound by arithmetic, few
drafts pay. Acceptance and costs are measured; to measure the cost of drafts, some steps run without them.
"""

from __future__ import annotations

from math import log

from plugserve.core.engine.step_time import StepTimeFit

_KEEP = 0.9  # decay of a sequence's counts at each verified step
_KEEP_ALL = 0.995  # the same over all sequences
_PACE = 0.1  # how fast the batch's own rates are followed
_PRIOR_TRIALS = 2.0
_FIRST_GUESS = 0.7
_FIRST_PAUSE, _LONGEST_PAUSE = 16, 256
_BARE_STEPS = frozenset({2, 4, 8, 16})  # without drafts, to compare with; later each _BARE_EVERY-th
_BARE_EVERY = 32


class Acceptance:
    """Counts of one sequence's accepted and refused drafts. pause counts the steps until a paused sequence drafts
    again; is_warm: it has drafted since it started or paused, so that the next draft computes no earlier tokens."""

    __slots__ = ("accepted", "is_warm", "pause", "pause_length", "trials")

    def __init__(self) -> None:
        self.accepted = self.trials = 0.0
        self.is_warm = False
        self.pause = 0
        self.pause_length = _FIRST_PAUSE

    def observe(self, num_drafted: int, num_accepted: int, keep: float = _KEEP) -> None:
        """Each draft up to the first refused one was a trial."""
        self.is_warm = True
        self.accepted = keep * self.accepted + num_accepted
        self.trials = keep * self.trials + min(num_accepted + 1, num_drafted)

    def rate(self, prior: float) -> float:
        """The probability that a draft is accepted, from little data near prior."""
        return (self.accepted + _PRIOR_TRIALS * prior) / (self.trials + _PRIOR_TRIALS)


class DraftPolicy:
    """Chooses draft lengths up to max_num_drafts; is_adaptive False always takes the most."""

    def __init__(self, max_num_drafts: int, is_adaptive: bool = True) -> None:
        self.max_num_drafts = max_num_drafts
        self._is_adaptive = is_adaptive
        self._overall = Acceptance()
        self._step_time = StepTimeFit()  # of steps that decode alone: seconds over tokens
        self._num_tokens_seen: set[int] = set()  # up to two sizes of steps: a slope needs both
        self._num_drafted = self._num_kept = 0.0  # a sequence and step
        self._threshold = 0.0
        self._num_steps = 0
        self._is_bare = False

    def observe_step(self, num_sequences: int, num_tokens: int, num_new_tokens: int, duration_s: float) -> None:
        """A step of decoding sequences alone took duration_s for num_tokens computed, of which num_new_tokens were
        kept."""
        self._step_time.observe(0, num_tokens, 0, duration_s)
        if len(self._num_tokens_seen) < 2:
            self._num_tokens_seen.add(num_tokens)
        self._num_drafted += _PACE * (num_tokens / num_sequences - 1 - self._num_drafted)
        self._num_kept += _PACE * (num_new_tokens / num_sequences - 1 - self._num_kept)

    def observe_sequence(self, acceptance: Acceptance, num_drafted: int, num_accepted: int) -> None:
        """A sequence's drafts were verified."""
        if num_drafted:
            acceptance.observe(num_drafted, num_accepted)
            self._overall.observe(num_drafted, num_accepted, _KEEP_ALL)
            if num_accepted == num_drafted:
                acceptance.pause_length = _FIRST_PAUSE

    def begin_step(self, num_sequences: int, num_tokens: int) -> None:
        """Compute the gain at which a draft pays in a step of num_sequences sequences and num_tokens tokens without
        drafts."""
        self._num_steps += 1
        self._is_bare = self._num_steps in _BARE_STEPS or self._num_steps % _BARE_EVERY == 0
        self._threshold = 0.0
        if len(self._num_tokens_seen) > 1:
            step_time = self._step_time.fit()
            duration_s = step_time.base_s + step_time.per_row_s * (num_tokens + num_sequences * self._num_drafted)
            if duration_s > 0:
                self._threshold = step_time.per_row_s * num_sequences * (1 + self._num_kept) / duration_s

    def num_drafts(self, acceptance: Acceptance) -> int:
        """The number of drafts that pay for a sequence in this step."""
        most = self.max_num_drafts
        if not self._is_adaptive:
            return most
        if self._is_bare:
            return 0
        if acceptance.pause:
            acceptance.pause -= 1
            return 0 if acceptance.pause else 1  # one draft, to measure acceptance again
        rate = acceptance.rate(self._overall.rate(_FIRST_GUESS))
        threshold = self._threshold
        if threshold <= 0.0 or rate >= 1.0:
            return most
        if rate < threshold:
            acceptance.is_warm = False
            acceptance.pause = acceptance.pause_length
            acceptance.pause_length = min(2 * acceptance.pause_length, _LONGEST_PAUSE)
            return 0
        return min(most, int(log(threshold) / log(rate)))
