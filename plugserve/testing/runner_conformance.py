"""Pytest cases for model runners: subclass RunnerConformance and override make_runner.

A runner is compared with itself: a prompt must generate the same tokens alone in a single step at a time as in every
batch, in any order, in chunks, with steps in flight, and in reused rows and blocks.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from plugserve.core.contracts.runner import ModelRunner, RunnerInfo
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.testing.runner_driver import GREEDY, MAX_TOKENS, Row, RunnerDriver


def _shuffled(seed: int, rows: list[Row]) -> list[Row]:
    rows = list(rows)
    random.Random(seed * 1000 + sum(row.num_computed for row in rows)).shuffle(rows)
    return rows


ORDERS = {
    "by arrival": list[Row],
    "backwards": lambda rows: list(reversed(rows)),
    "by rotation": lambda rows: rows[rows[0].num_computed % len(rows) :] + rows[: rows[0].num_computed % len(rows)],
    "shuffled": lambda rows: _shuffled(1, rows),
}


class RunnerConformance:
    """Subclass it, name the subclass Test..., and override make_runner.

    The runner needs 8 rows, 60 blocks and sequences of 128 tokens. honours_sampling and honours_logprobs are False for
    a runner that ignores sampling parameters (a fake). prompts are token ids of its vocabulary.
    """

    honours_sampling: bool = True
    honours_logprobs: bool = True
    honours_masks: bool = True

    def make_runner(self) -> ModelRunner:
        """Returns a new runner that is not loaded yet."""
        raise NotImplementedError("override make_runner: return a new model runner")

    def prompts(self, info: RunnerInfo) -> Sequence[Sequence[int]]:
        """Prompts to generate from; their outputs must not all be the same."""
        draw = random.Random(0)
        return [[draw.randrange(info.vocab_size) for _ in range(length)] for length in (5, 16, 33, 1, 40)]

    # ------------------------------------------------ declarations

    def test_it_is_a_model_runner(self) -> None:
        runner = self.make_runner()
        assert isinstance(runner, ModelRunner), f"{type(runner).__name__} lacks a part of ModelRunner"
        assert isinstance(runner.owns_attention, bool)

    def test_info_has_valid_sizes(self) -> None:
        with self._driver() as driver:
            info = driver.info
            assert isinstance(info, RunnerInfo), f"load returned {type(info).__name__}, not a RunnerInfo"
            for name in ("vocab_size", "max_model_len", "max_num_batched_tokens", "num_blocks", "block_size"):
                assert getattr(info, name) > 0, f"{name} is {getattr(info, name)}"
            assert info.block_size & (info.block_size - 1) == 0, f"block_size {info.block_size} is no power of two"

    # ------------------------------------------------ rows and results

    @pytest.mark.parametrize("order", ORDERS)
    @pytest.mark.parametrize("num_in_flight", [1, 2])
    def test_each_row_gets_its_own_tokens(self, order: str, num_in_flight: int) -> None:
        with self._driver() as driver:
            prompts = self.prompts(driver.info)
            alone = self._alone(driver, prompts)
            rows = driver.generate(prompts, 8, num_in_flight=num_in_flight, order=ORDERS[order])
            self._compare(rows, alone, f"a batch {order}, {num_in_flight} steps in flight")

    @pytest.mark.parametrize("chunk", [1, 3, 16, 17])
    def test_prompts_may_come_in_chunks(self, chunk: int) -> None:
        with self._driver() as driver:
            prompts = self.prompts(driver.info)
            alone = self._alone(driver, prompts)
            self._compare(driver.generate(prompts, 8, chunk=chunk), alone, f"chunks of {chunk} tokens")

    def test_rows_that_do_not_sample_return_nothing(self) -> None:
        with self._driver() as driver:
            prompts = self.prompts(driver.info)
            long, short = driver.start(prompts[2]), driver.start(prompts[0])
            driver.launch([(long, 10), (short, len(prompts[0]))])
            result = driver.collect()
            assert [len(tokens) for tokens in result.tokens] == [0, 1], (
                f"only a whole prompt samples a token, not a chunk of one, got {result.tokens}"
            )

    def test_rows_and_blocks_can_be_reused(self) -> None:
        with self._driver() as driver:
            prompts = self.prompts(driver.info)
            alone = self._alone(driver, prompts)
            for n in range(12):
                again = [*prompts[n % 5 :], *prompts[: n % 5]]
                expected = [*alone[n % 5 :], *alone[: n % 5]]
                self._compare(driver.generate(again, 8, order=ORDERS["shuffled"]), expected, f"use {n + 2}")

    def test_rows_may_start_and_end_between_steps(self) -> None:
        with self._driver() as driver:
            prompts = self.prompts(driver.info)
            alone = self._alone(driver, prompts)
            first, second = driver.start(prompts[0]), driver.start(prompts[1])
            driver.launch([(first, first.num_tokens), (second, second.num_tokens)])
            driver.collect()
            driver.end(first)
            third = driver.start(prompts[2])
            driver.launch([(third, third.num_tokens), (second, 1)])
            for _ in range(4):
                driver.launch([(second, 1), (third, 1)])
                driver.collect()
            driver.collect()
            assert second.tokens == alone[1][: len(second.tokens)], "a row's tokens changed when another row ended"
            assert third.tokens == alone[2][: len(third.tokens)], "a sequence in a freed row has wrong tokens"

    def test_blocks_can_be_shared(self) -> None:
        """Two sequences with a common prefix read the same block, as with a prefix cache."""
        with self._driver() as driver:
            beginning = list(self.prompts(driver.info)[2])[: driver.info.block_size]
            prompts = [[*beginning, *end] for end in self.prompts(driver.info)[:2]]
            alone = self._alone(driver, prompts, must_differ=False)
            one = driver.start(prompts[0])
            driver.launch([(one, one.num_tokens)])
            other = driver.start(prompts[1], shared=one.blocks[:1])
            driver.launch([(other, other.num_tokens - other.num_computed), (one, 1)])
            for _ in range(4):
                driver.collect()
                driver.launch([(one, 1), (other, 1)])
            driver.collect()
            driver.collect()
            assert one.tokens == alone[0][: len(one.tokens)]
            assert other.tokens == alone[1][: len(other.tokens)], "the contents of a shared block are not used"

    def test_blocks_are_copied_to_host_memory_and_back(self) -> None:
        """One step copies a block out and overwrites it; a later step copies it in and reads it."""
        with self._driver() as driver:
            if not driver.info.num_host_slots:
                pytest.skip("this runner keeps no blocks in host memory")
            size = driver.info.block_size
            beginning = list(self.prompts(driver.info)[2])[:size]
            prompts = [[*beginning, beginning[0]], [*beginning[::-1], beginning[1]]]  # two blocks each
            alone = self._alone(driver, prompts, must_differ=False)
            one = driver.start(prompts[0])
            driver.launch([(one, size + 1)])
            driver.collect()
            driver.end(one)
            other = driver.start(prompts[1])
            driver.launch([(other, size + 1)], copy_out=[(one.blocks[0], 0)])
            assert one.blocks[0] in other.blocks
            block = driver.take_block()
            again = driver.start(prompts[0], shared=[block])
            driver.launch([(again, 1), (other, 1)], copy_in=[(0, block)])
            driver.collect()
            for _ in range(4):
                driver.collect()
                driver.launch([(again, 1), (other, 1)])
            driver.collect()
            assert again.tokens == alone[0][: len(again.tokens)], "a block copied in differs from the block copied out"
            assert other.tokens == alone[1][: len(other.tokens)], (
                "a copy out must be made before its step writes the block"
            )

    def test_a_block_is_copied_to_host_memory_and_back_by_one_step(self) -> None:
        """All copies out come before all copies in, and both before anything is computed."""
        with self._driver() as driver:
            if not driver.info.num_host_slots:
                pytest.skip("this runner keeps no blocks in host memory")
            size = driver.info.block_size
            beginning = list(self.prompts(driver.info)[2])[:size]
            prompts = [[*beginning, beginning[0]], [*beginning[::-1], beginning[1]]]
            alone = self._alone(driver, prompts, must_differ=False)
            one = driver.start(prompts[0])
            driver.launch([(one, size + 1)])
            driver.collect()
            driver.end(one)
            other, block = driver.start(prompts[1]), driver.take_block()
            again = driver.start(prompts[0], shared=[block])
            driver.launch([(other, size + 1), (again, 1)], copy_out=[(one.blocks[0], 0)], copy_in=[(0, block)])
            assert one.blocks[0] in other.blocks
            for _ in range(4):
                driver.launch([(other, 1), (again, 1)])
                driver.collect()
            driver.collect()
            assert again.tokens == alone[0][: len(again.tokens)], "a step's copies in must follow its copies out"
            assert other.tokens == alone[1][: len(other.tokens)], "a copy changed another block"

    def test_a_preempted_sequence_continues_with_the_same_tokens(self) -> None:
        with self._driver() as driver:
            prompts = self.prompts(driver.info)
            alone = self._alone(driver, prompts)
            for prompt, expected in zip(prompts, alone, strict=True):
                row = driver.start([*prompt, *expected[:4]], num_prompt_tokens=len(prompt))
                driver.launch([(row, row.num_tokens)])
                driver.collect()
                driver.end(row)
                assert row.tokens == expected[4:5], "a recomputed sequence continues with another token"

    # ------------------------------------------------ sampling

    def test_seeded_sampling_does_not_depend_on_the_batch(self) -> None:
        self._needs(self.honours_sampling, "honours_sampling")
        with self._driver() as driver:
            prompts = [self.prompts(driver.info)[0]] * 5
            params = [SamplingParams(max_tokens=MAX_TOKENS, seed=seed, temperature=1.5) for seed in (1, 2, 1, 3, 2)]
            alone = [driver.generate([prompts[n]], 8, params=[params[n]])[0].tokens for n in range(5)]
            rows = driver.generate(prompts, 8, params=params, order=ORDERS["shuffled"])
            self._compare(rows, alone, "seeded sampling")
            assert alone[0] == alone[2]
            assert alone[0] != alone[1], "different seeds give the same tokens"

    def test_each_row_keeps_its_own_parameters(self) -> None:
        self._needs(self.honours_sampling, "honours_sampling")
        with self._driver() as driver:
            prompts = self.prompts(driver.info)
            only = [n % driver.info.vocab_size for n in (3, 5, 7, 11, 13)]
            params = [SamplingParams(max_tokens=MAX_TOKENS, seed=0, allowed_token_ids=(token,)) for token in only]
            rows = driver.generate(prompts, 4, params=params, order=ORDERS["backwards"])
            assert [row.tokens for row in rows] == [[token] * 4 for token in only], (
                "a row was sampled with another row's parameters"
            )
            params = [GREEDY if n % 2 else params[n] for n in range(5)]
            alone = self._alone(driver, prompts)
            rows = driver.generate(prompts, 4, params=params)
            for n in (1, 3):
                assert rows[n].tokens == alone[n][:4], "a reused row keeps its former sequence's parameters"

    def test_stop_ids_are_held_back_until_min_tokens(self) -> None:
        self._needs(self.honours_sampling, "honours_sampling")
        with self._driver() as driver:
            prompt = self.prompts(driver.info)[0]
            greedy = driver.generate([prompt], 1)[0].tokens
            params = SamplingParams(max_tokens=MAX_TOKENS, seed=0, temperature=0.0, min_tokens=1)
            row = driver.start(prompt, params, stop_ids=(greedy[0],))
            driver.launch([(row, row.num_tokens)])
            driver.collect()
            assert row.tokens != greedy, "a stop id was sampled before min_tokens"

    def test_masks_apply_to_their_own_rows(self) -> None:
        self._needs(self.honours_masks, "honours_masks")
        import numpy as np

        with self._driver() as driver:
            prompts = self.prompts(driver.info)[:3]
            rows = [driver.start(prompt) for prompt in prompts]
            driver.launch([(row, row.num_tokens) for row in rows], constrained=[0, 2])
            masks = np.zeros((2, -(-driver.info.vocab_size // 32)), dtype=np.uint32)
            for line, token in enumerate((2, 9)):
                masks[line, token // 32] = np.uint32(1 << (token % 32))
            driver.provide_masks(masks)
            driver.collect()
            for row in rows:
                driver.end(row)
            free = driver.generate([prompts[1]], 1)[0].tokens
            assert [row.tokens for row in rows] == [[2], free, [9]], "a mask must apply to its own row"

    def test_logprobs_go_with_their_rows(self) -> None:
        self._needs(self.honours_logprobs, "honours_logprobs")
        with self._driver() as driver:
            prompts = self.prompts(driver.info)
            params = [
                SamplingParams(max_tokens=MAX_TOKENS, seed=0, temperature=0.0, num_logprobs=2 if n % 2 else None)
                for n in range(5)
            ]
            rows = driver.generate(prompts, 4, params=params, order=ORDERS["backwards"])
            for n, row in enumerate(rows):
                assert len(row.logprobs) == (4 if n % 2 else 0), f"row {n} has {len(row.logprobs)} logprobs"
                for entry, token in zip(row.logprobs, row.tokens, strict=False):
                    assert entry.token_id == token, "a logprob belongs to another row's token"
                    assert entry.logprob <= 1e-5
                    assert entry.rank == 1, "greedy sampling takes the most likely token"
                    assert len(entry.top_ids) == 2

    # ------------------------------------------------ helpers

    @contextmanager
    def _driver(self) -> Iterator[RunnerDriver]:
        runner = self.make_runner()
        driver = RunnerDriver(runner)
        try:
            yield driver
        finally:
            runner.close()

    def _alone(
        self, driver: RunnerDriver, prompts: Sequence[Sequence[int]], *, must_differ: bool = True
    ) -> list[list[int]]:
        """8 greedy tokens of each prompt alone."""
        alone = [driver.generate([prompt], 8)[0].tokens for prompt in prompts]
        assert all(len(tokens) == 8 for tokens in alone), f"8 tokens were asked for, got {alone}"
        do_differ = len({tuple(tokens) for tokens in alone}) > 1 or not must_differ
        assert do_differ, "every prompt has the same output; override prompts"
        return alone

    @staticmethod
    def _compare(rows: Sequence[Row], expected: Sequence[Sequence[int]], where: str) -> None:
        for n, (row, tokens) in enumerate(zip(rows, expected, strict=True)):
            assert row.tokens == list(tokens), f"row {n} generated {row.tokens}, alone {list(tokens)} ({where})"

    @staticmethod
    def _needs(is_supported: bool, name: str) -> None:
        if not is_supported:
            pytest.skip(f"{name} is False")
