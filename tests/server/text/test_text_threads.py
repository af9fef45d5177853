"""Texts of many lengths, tokenised at the same time."""

import threading

from plugserve.server.text.text_threads import LONG_TEXT, TextThreads


def test_no_number_of_long_texts_holds_up_a_short_one():
    threads, may_end = TextThreads(), threading.Event()
    try:
        long = [threads.of_length(LONG_TEXT).submit(may_end.wait) for _ in range(20)]
        assert threads.of_length(LONG_TEXT - 1).submit(lambda: "short").result(timeout=20) == "short"
        assert not any(work.done() for work in long)
    finally:
        may_end.set()
        threads.shutdown()


def test_long_texts_take_one_processor_at_most():
    threads, running, most, lock = TextThreads(), set(), [], threading.Lock()

    def work(number):
        with lock:
            running.add(number)
            most.append(len(running))
        threading.Event().wait(0.001)
        with lock:
            running.discard(number)

    for future in [threads.of_length(LONG_TEXT).submit(work, number) for number in range(20)]:
        future.result(timeout=20)
    assert max(most) == 1
    threads.shutdown()
