"""Calls reach ranks in order, messages come back, and over TCP nobody without a rank's keys takes part."""

from __future__ import annotations

import queue
import time

import msgspec
import pytest
import zmq

from plugserve.core.wire.rank_channel import Door, RankChannel, RankChannelEnd


@pytest.fixture(params=["ipc", "tcp"])
def channel(request, tmp_path):
    place = f"ipc://{tmp_path}" if request.param == "ipc" else "tcp://127.0.0.1"
    heard, lost = queue.Queue(), queue.Queue()
    channel = RankChannel(place, 3, lambda *message: heard.put(message), lost.put)
    yield channel, heard, lost
    channel.close()


def through_json(door):
    return msgspec.json.decode(msgspec.json.encode(door), type=Door)


def test_every_rank_gets_all_calls_in_order_and_answers(channel):
    rank_0, heard, _ = channel
    ends = [RankChannelEnd(through_json(door)) for door in rank_0.doors]
    rank_0.send([b"first", b"of two"])
    rank_0.send([b"second"])
    for end in ends:
        assert [end.receive(), end.receive()] == [[b"first", b"of two"], [b"second"]]
    ends[1].send(b"well")
    assert heard.get(timeout=5) == (2, b"well")
    for end in ends:
        end.close()


def test_a_rank_that_goes_is_lost_unless_it_was_to(channel):
    rank_0, _, lost = channel
    first, second = (RankChannelEnd(door) for door in rank_0.doors)
    rank_0.send([b"call"])
    first.receive()
    second.receive()
    first.close()
    assert lost.get(timeout=5) == 1
    rank_0.expect_ends()
    second.close()
    time.sleep(0.3)
    assert lost.empty()


def test_over_a_network_a_stranger_gets_no_call_and_sends_no_message():
    heard = queue.Queue()
    channel = RankChannel("tcp://127.0.0.1", 2, lambda *message: heard.put(message))
    door = channel.doors[0]
    for key in (zmq.curve_keypair()[0].decode(), ""):
        stranger = msgspec.structs.replace(door, key=key)
        end = RankChannelEnd(stranger)
        end.send(b"forged")
        assert not end._calls.poll(300)
        end.close()
    rank = RankChannelEnd(door)
    channel.send([b"secret"])
    rank.send(b"mine")
    assert rank.receive() == [b"secret"]
    assert heard.get(timeout=5) == (1, b"mine")
    assert heard.empty()
    rank.close()
    channel.close()
