"""Communication between the stages of a pipeline, each of which holds some of a model's layers.

Hidden states go from each stage to the next; the tokens that the last one draws go to the first, which embeds them in
the next step of their rows. A rank exchanges them with the ranks of its own number in the other stages.
"""

from __future__ import annotations

from typing import Protocol

import torch


class ComingTokens(Protocol):
    """Tokens that the last stage will draw."""

    def wait(self) -> torch.Tensor:
        """[B] int32. On a GPU it is the stream that waits."""


class Pipeline(Protocol):
    """This process's end of it: stage, counted from 0, of num_stages. Messages of one kind come in the order in which
    they were sent; no send waits for its receiver."""

    stage: int
    num_stages: int

    def receive_hidden(self, num_tokens: int, width: int, dtype: torch.dtype) -> torch.Tensor:
        """Hidden states [num_tokens, width] of the stage before, which its next step needs."""

    def send_hidden(self, x: torch.Tensor) -> None:
        """To the stage after this one; x is not written any more."""

    def receive_tokens(self, count: int) -> ComingTokens:
        """On the first stage: the tokens that the last one draws in the step of its next message."""

    def send_tokens(self, tokens: torch.Tensor) -> None:
        """On the last stage: [B] int32, to the first one."""


class OneStage:
    """A model whose layers are all here."""

    stage = 0
    num_stages = 1

    def receive_hidden(self, num_tokens: int, width: int, dtype: torch.dtype) -> torch.Tensor:
        raise AssertionError("there is no stage before the first")

    def send_hidden(self, x: torch.Tensor) -> None:
        raise AssertionError("there is no stage after the last")

    def receive_tokens(self, count: int) -> ComingTokens:
        raise AssertionError("the only stage draws its tokens itself")

    def send_tokens(self, tokens: torch.Tensor) -> None:
        raise AssertionError("the only stage keeps its tokens")


ONE_STAGE = OneStage()
