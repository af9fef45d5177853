"""Speculation: proposers of draft tokens, and the draft models that they may use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch


@dataclass(slots=True)
class DraftStep:
    """Rows that a step will verify drafts of. Row i is sequence ids[i] on device row rows[i]: its known tokens are
    tokens[rows[i], :lengths[i]], and at most num_drafts[i] (1 or more) drafts of its next tokens are needed.

    tokens [num_rows, max_len + 1] int32 lies on the device. A row's entries after its known tokens are scratch space
    that a proposer may write (a draft model writes its drafts there, to read them back).
    """

    ids: list[int]
    rows: list[int]
    lengths: list[int]
    num_drafts: list[int]
    tokens: torch.Tensor


@dataclass(slots=True)
class Drafts:
    """A proposer's drafts: tokens [B, k] of which the first counts[i] of row i count.

    probs [B, k, V] are the distributions that the tokens were drawn from (each row sums to 1), independently of the
    target's draws; None when the tokens follow from the history alone, without chance. Core's verification is exact in
    both cases; more likely drafts are accepted more often.
    """

    tokens: torch.Tensor
    counts: list[int]
    probs: torch.Tensor | None = None


@runtime_checkable
class DraftProposer(Protocol):
    """Proposes drafts of the next tokens. Called in the engine process, on the runner's thread.

    Drafts can't change what is generated, only how fast: verification is core's. An exception is counted, and that step
    has no drafts; after three in a row the proposer is switched off.
    """

    def propose(self, step: DraftStep, k: int) -> Drafts:
        """Drafts for the rows of step; k is the largest of step.num_drafts. Called once a step that speculates. Between
        two calls a sequence may have grown by any number of tokens, accepted drafts or others."""

    def forget(self, id: int) -> None:
        """Sequence id has left its row: it finished, was aborted or preempted. It may get a row again, with other
        blocks."""


class DraftRunner(Protocol):
    """A draft model that reads the rows and block tables of the served one and has keys and values of its own."""

    @property
    def kv_bytes_per_token(self) -> int:
        """For reserve_kv."""

    def forward(self, rows: list[int], starts: list[int], counts: list[int]) -> torch.Tensor:
        """Compute tokens starts[i] to starts[i] + counts[i] - 1 of each row; float32 logits [B, V] after the last one
        of each. Keys and values before starts must have been computed and not been overwritten since."""

    def sample(
        self, logits: torch.Tensor, rows: list[int], num_known: list[int]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Tokens [B] by each row's own sampling parameters, and the distributions [B, V] that they were drawn from (one
        token has it all where temperature is 0; None where it is 0 in all rows). num_known[i] is where row i's token
        will stand. logits are changed in place."""
