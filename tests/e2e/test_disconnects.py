"""Clients that disconnect at random moments: their memory is freed, others are unaffected. A smaller run of
benchmarks/disconnects.py."""

from benchmarks.disconnects import Plan, is_good, plans, request_bytes, run, text_of


def test_half_of_the_clients_disconnect(server):
    found = run(server, 32, seed=3, max_tokens=8)
    assert is_good(found | {"blocks_free_s": 0.0}), found  # the benchmark checks how fast
    assert found["blocks_free_s"] is not None, "blocks were never freed"
    assert found["left"] > 2
    assert found["stayed_streaming"] > 2
    assert server.metric("num_requests_running") == 0


def test_half_of_the_planned_clients_disconnect_in_every_way():
    some = plans(500, 2.0, seed=0)
    leaving = [plan for plan in some if plan.disconnects_after_s is not None]
    assert len(leaving) == 250
    assert {plan.is_stream for plan in leaving} == {plan.resets for plan in leaving} == {True, False}
    assert any(plan.sends_part for plan in leaving)
    assert not any(plan.sends_part for plan in some if plan.disconnects_after_s is None)


def test_wrong_and_refused_texts_are_not_counted_as_exact():
    plain = b'HTTP/1.1 200 OK\r\n\r\n{"choices": [{"text": "wet"}]}'
    assert text_of(plain, is_stream=False) == "wet"
    events = b'HTTP/1.1 200 OK\r\n\r\ndata: {"choices": [{"text": "w"}]}\n\ndata: {"choices": [{"text": "et"}]}\n\n'
    assert text_of(events, is_stream=True) == "wet"
    assert "refused" in text_of(b"HTTP/1.1 503 No\r\n\r\n{}", is_stream=False)
    good = {"num_wrong_texts": 0, "zombies": 0, "engine_restarts": 0.0, "blocks_free_s": 0.5}
    good |= {"same_processes": True, "answers_afterwards": True}
    assert is_good(good)
    for broken in ({"num_wrong_texts": 1}, {"zombies": 1}, {"blocks_free_s": None}, {"blocks_free_s": 1.2}):
        assert not is_good(good | broken)
    assert b"Content-Length: " in request_bytes(Plan("a", True, None, False, False))
