"""Tokenising as the server does it."""

import threading

from plugserve.core.model_files.text_model import TextModel
from tests.server.fakes import byte_level_tokenizer

_LONG = " " * 1_000_000


def turns_of_another_thread_during(work):
    """How often another thread gets to run while work() runs."""
    turns, is_done = 0, threading.Event()

    def turn():
        nonlocal turns
        while not is_done.wait(0.001):
            turns += 1

    thread = threading.Thread(target=turn)
    thread.start()
    try:
        work()
    finally:
        is_done.set()
        thread.join()
    return turns


def test_other_threads_run_while_a_long_text_is_tokenised():
    text = TextModel(byte_level_tokenizer())
    text.encode("loads what is loaded once")
    assert turns_of_another_thread_during(lambda: text.encode(_LONG)) >= 10


def test_a_text_has_the_tokens_that_the_tokenizer_gives_it():
    tokenizer = byte_level_tokenizer()
    for sample in ("hello world", "", "<|user|>hello<|eos|>", " é 🙂 \n"):
        assert TextModel(tokenizer).encode(sample) == tokenizer.encode(sample).ids
