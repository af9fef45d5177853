"""Ranks that share a model as threads of this process: the runners of all behind one, with the calls' real codec."""

from __future__ import annotations

import threading
from collections import defaultdict
from queue import SimpleQueue
from unittest import mock

import torch
from msgspec.structs import replace

from plugserve.backends.torch.models.pipeline import ONE_STAGE
from plugserve.backends.torch.runner import loader
from plugserve.core.contracts.parallel import RankPlacement
from plugserve.core.engine.ranks.rank_calls import COLLECT, RepeatedCalls, launch_call, masks_call, read_call


class Meeting:
    """Where num_ranks threads exchange one value each."""

    def __init__(self, num_ranks):
        self._slots, self.barrier = [None] * num_ranks, threading.Barrier(num_ranks)

    def exchange(self, number, mine):
        self._slots[number] = mine
        self.barrier.wait(30)
        all_of_them = list(self._slots)
        self.barrier.wait(30)
        return all_of_them


class ThreadPipeline:
    """A Pipeline of one thread. queues are by (kind, stage of the receiver, rank in the stage)."""

    def __init__(self, placement, queues):
        self.stage, self.num_stages = placement.stage, placement.num_stages
        self._n, self._queues = placement.tensor_rank, queues

    def receive_hidden(self, num_tokens, width, dtype):
        x = self._queues["hidden", self.stage, self._n].get(timeout=30)
        assert x.shape == (num_tokens, width)
        assert x.dtype == dtype
        return x

    def send_hidden(self, x):
        self._queues["hidden", self.stage + 1, self._n].put(x)

    def receive_tokens(self, count):
        return ThreadTokens(self._queues["tokens", 0, self._n], count)

    def send_tokens(self, tokens):
        self._queues["tokens", 0, self._n].put(tokens)


class ThreadTokens:
    def __init__(self, queue, count):
        self._queue, self._count = queue, count

    def wait(self):
        tokens = self._queue.get(timeout=30)
        assert tokens.shape == (self._count,)
        return tokens


class ThreadCollectives:
    """Collectives of one thread; sums in the order of ranks, so that all get the same bits."""

    def __init__(self, placement, world, stages, queues):
        self.rank, self.num_ranks = placement.tensor_rank, placement.tensor_size
        self.pipeline = ThreadPipeline(placement, queues) if placement.num_stages > 1 else ONE_STAGE
        self._world_rank = placement.rank
        self._world, self._stage = world, stages[placement.stage]

    def join(self):
        self._world.barrier.wait(30)

    def _exchange(self, mine):
        return self._stage.exchange(self.rank, mine)

    def reduce(self, x):
        return torch.stack(self._exchange(x.clone())).sum(0)

    def gather(self, x):
        return torch.cat(self._exchange(x.clone()), 1)

    def least(self, number):
        return min(self._world.exchange(self._world_rank, number))


class ThreadRanks:
    """A ModelRunner over one runner a rank. make_runner(placement) makes them; readers[rank] reads an adapter."""

    owns_attention = False

    def __init__(self, num_ranks, make_runner, readers, num_stages=1):
        self._world, self._stages = Meeting(num_ranks), [Meeting(num_ranks // num_stages) for _ in range(num_stages)]
        queues = defaultdict(SimpleQueue)
        self._make_group = lambda placement, device: ThreadCollectives(placement, self._world, self._stages, queues)
        self._readers = readers
        self._first_of_last_stage = num_ranks - num_ranks // num_stages
        self.runners = [make_runner(RankPlacement(rank, num_ranks, num_stages=num_stages)) for rank in range(num_ranks)]
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
                for meeting in (self._world, *self._stages):
                    meeting.barrier.abort()

        with mock.patch.object(loader, "ProcessGroup", self._make_group):
            threads = [threading.Thread(target=load, args=(rank,)) for rank in range(len(self.runners))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if errors:
            raise next((one for one in errors if not isinstance(one, threading.BrokenBarrierError)), errors[0])
        assert all(replace(info, load_stages=infos[0].load_stages) == infos[0] for info in infos), "ranks differ"
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
        results = [self.runners[0].collect(), *self._repeat([COLLECT])]
        result = results[self._first_of_last_stage]
        for other in results[self._first_of_last_stage :]:
            assert other.tokens == result.tokens, "ranks drew different tokens"
            assert other.failed == result.failed
        assert not any(token for other in results[: self._first_of_last_stage] for token in other.tokens)
        return result

    def close(self):
        for runner in self.runners:
            runner.close()
