"""Ranks that share a model as threads of this process: the runners of all behind one, with the calls' real codec."""

from __future__ import annotations

import threading
from unittest import mock

import torch

from plugserve.backends.torch.runner import loader
from plugserve.core.contracts.parallel import RankPlacement
from plugserve.core.engine.ranks.rank_calls import COLLECT, RepeatedCalls, launch_call, masks_call, read_call


class ThreadCollectives:
    """Collectives of one thread; sums in the order of ranks, so that all get the same bits."""

    def __init__(self, rank, num_ranks, slots, barrier):
        self.rank, self.num_ranks = rank, num_ranks
        self._slots, self._barrier = slots, barrier

    def join(self):
        self._barrier.wait(30)

    def _exchange(self, mine):
        self._slots[self.rank] = mine
        self._barrier.wait(30)
        all_of_them = list(self._slots)
        self._barrier.wait(30)
        return all_of_them

    def reduce(self, x):
        return torch.stack(self._exchange(x.clone())).sum(0)

    def gather(self, x):
        return torch.cat(self._exchange(x.clone()), 1)

    def least(self, number):
        return min(self._exchange(number))


class ThreadRanks:
    """A ModelRunner over one runner a rank. make_runner(placement) makes them; readers[rank] reads an adapter."""

    owns_attention = False

    def __init__(self, num_ranks, make_runner, readers):
        slots, barrier = [None] * num_ranks, threading.Barrier(num_ranks)
        self._barrier = barrier
        self._make_group = lambda placement, device: ThreadCollectives(placement.rank, num_ranks, slots, barrier)
        self._readers = readers
        self.runners = [make_runner(RankPlacement(rank, num_ranks)) for rank in range(num_ranks)]
        self._followers = [
            RepeatedCalls(runner, lambda folder, rank=rank: self._readers[rank](folder))
            for rank, runner in enumerate(self.runners)
        ][1:]
        self._num_read = 0

    @property
    def loaded(self):
        return self.runners[0].loaded

    def load(self):
        infos, errors = [None] * len(self.runners), []

        def load(rank):
            try:
                infos[rank] = self.runners[rank].load()
            except BaseException as error:
                errors.append(error)
                self._barrier.abort()

        with mock.patch.object(loader, "ProcessGroup", self._make_group):
            threads = [threading.Thread(target=load, args=(rank,)) for rank in range(len(self.runners))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if errors:
            raise next((one for one in errors if not isinstance(one, threading.BrokenBarrierError)), errors[0])
        assert all(info == infos[0] for info in infos)
        return infos[0]

    def read(self, folder):
        """An adapter on all ranks: (number, rank 0's share)."""
        self._num_read += 1
        self._repeat(read_call(self._num_read, folder))
        return self._num_read, self._readers[0](folder)

    def _repeat(self, call):
        return [follower.repeat(call) for follower in self._followers]

    def launch(self, step):
        loaded = step.adapters
        step.adapters = [(slot, one and one[0]) for slot, one in loaded]
        call = launch_call(step)
        step.adapters = [(slot, one and one[1]) for slot, one in loaded]
        self._repeat(call)
        self.runners[0].launch(step)

    def provide_masks(self, step_id, masks):
        self._repeat(masks_call(step_id, masks))
        self.runners[0].provide_masks(step_id, masks)

    def collect(self):
        result = self.runners[0].collect()
        for other in self._repeat([COLLECT]):
            assert other.tokens == result.tokens, "ranks drew different tokens"
            assert other.failed == result.failed
        return result

    def close(self):
        for runner in self.runners:
            runner.close()
