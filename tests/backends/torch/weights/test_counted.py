"""The share of a model that has been read, from its tensors' sizes."""

import torch

from plugserve.backends.torch.weights.counted import counted


def test_progress_is_the_share_of_numbers_and_never_more_than_all():
    tensors = [("a", torch.zeros(3, 10)), ("b", torch.zeros(10)), ("extra", torch.zeros(100))]
    shares = []
    read = counted(tensors, lambda: {"a": (3, 10), "b": (10,), "c": (60,)}, shares.append)
    assert [name for name, _ in read] == ["a", "b", "extra"]
    assert shares == [0.3, 0.4, 1.0]
