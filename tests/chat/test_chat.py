"""`plugserve chat` in a pseudo terminal, and in a pipe."""

import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time

import pytest

from plugserve.chat.api_client import ApiClient, ChatError
from plugserve.chat.arguments import read_arguments
from plugserve.chat.conversation import Conversation
from plugserve.cli import main
from plugserve.core.errors import ConfigError, UserError
from tests.chat.stub_server import StubServer

PROMPT = "> "


class Typist:
    """plugserve chat in a pseudo terminal. It types, and waits for what comes."""

    def __init__(self, *words, env):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "plugserve", "chat", *words],
            stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(slave)
        self.seen = ""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)

    def wait_for(self, text):
        """Read until text comes; returns what came before it. What was read is gone."""
        deadline = time.monotonic() + 30
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], 0.1)
            try:
                data = os.read(self.master, 65536) if ready else b""
            except OSError:  # the program has ended
                raise AssertionError(self.seen) from None
            self.seen += re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", data.decode()).replace("\r", "")
            assert time.monotonic() < deadline, self.seen
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, text):
        os.write(self.master, text.encode())

    def interrupt(self, text):
        """Type Ctrl-C and wait for text. Python misses one that comes just before it waits for a key: type it again."""
        for _ in range(15):
            self.type("\x03")
            if select.select([self.master], [], [], 2)[0]:
                break
        return self.wait_for(text)

    def ask(self, text):
        """Type a line and return what comes until the next prompt, without the echo."""
        self.type(text + "\n")
        return self.wait_for(PROMPT).partition("\n")[2]

    def end(self):
        return self.process.wait(20)


@pytest.fixture
def environ(tmp_path):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PLUGSERVE_")}
    return {**kept, "XDG_STATE_HOME": str(tmp_path), "TERM": "xterm", "HOME": str(tmp_path)}


@pytest.fixture
def typing(environ):
    def start(stub, *words, **more):
        typist = Typist("--url", stub.url, *words, env=environ | more)
        typist.wait_for(PROMPT)
        return typist

    return start


def test_messages_are_answered_with_the_whole_conversation(typing):
    with StubServer() as stub, typing(stub, "--system", "Be kind.", "--set", "temperature=0.5") as typist:
        assert typist.ask("hello") == "You said: hello\n"
        assert typist.ask("again") == "You said: again\n"
        typist.type("\x04")
        assert typist.end() == 0
    first, second = stub.bodies
    assert first["messages"] == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hello"}]
    assert [one["content"] for one in second["messages"]] == ["Be kind.", "hello", "You said: hello", "again"]
    assert (second["temperature"], second["model"], second["stream"]) == (0.5, "org/one", True)


def test_ctrl_c_stops_the_answer_and_not_the_chat(typing):
    with StubServer(lambda body: ["part", "never"]) as stub, typing(stub) as typist:
        stub.goes_on.clear()
        typist.type("hello\n")
        typist.wait_for("part")
        typist.type("\x03")
        assert "(stopped)" in typist.wait_for(PROMPT)
        assert stub.left.wait(10)  # the server sees it, and stops generating
        stub.goes_on.set()
        stub.answer = lambda body: ["next"]
        assert typist.ask("go on") == "next\n"
        assert [one["content"] for one in stub.bodies[1]["messages"]] == ["hello", "part", "go on"]


def test_ctrl_c_at_the_prompt_clears_the_line(typing):
    with StubServer() as stub, typing(stub) as typist:
        typist.type("unwanted")
        typist.wait_for("unwanted")
        assert "Ctrl-D or /quit" in typist.interrupt(PROMPT)
        assert typist.ask("wanted") == "You said: wanted\n"
        assert [body["messages"][-1]["content"] for body in stub.bodies] == ["wanted"]


def test_commands(typing, tmp_path):
    with StubServer() as stub, typing(stub) as typist:
        assert "/retry" in typist.ask("/help")
        assert "there is no command /x" in typist.ask("/x")
        typist.ask("one")
        typist.ask("/system Be brief.")
        typist.ask("/set temperature 0.25")
        assert "'temperature' is" not in typist.ask("/set max-tokens=7")
        assert typist.ask("/retry") == "You said: one\n"
        assert stub.bodies[-1]["messages"] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "one"},
        ]
        assert (stub.bodies[-1]["temperature"], stub.bodies[-1]["max_tokens"]) == (0.25, 7)
        typist.ask("/set temperature")
        assert "org/one  (in use)" in typist.ask("/model")
        assert "no model 'three'; it has org/one, two" in typist.ask("/model three")
        typist.ask("/model two")
        assert "saved" in typist.ask(f"/save {tmp_path}/chat.json")
        typist.ask("/clear")
        typist.ask("two")
        assert len(stub.bodies[-1]["messages"]) == 2
        assert "temperature" not in stub.bodies[-1]
        assert stub.bodies[-1]["model"] == "two"
        assert "messages: 2" in typist.ask(f"/load {tmp_path}/chat.json")
        typist.ask("three")
        assert [one["content"] for one in stub.bodies[-1]["messages"]] == ["Be brief.", "one", "You said: one", "three"]
        assert "can't be read" in typist.ask("/load /no/such/file")
        assert typist.ask("//text") == "You said: /text\n"
        typist.type("/quit\n")
        assert typist.end() == 0
    assert (tmp_path / "chat.json").stat().st_mode & 0o777 == 0o600


def test_messages_of_several_lines(typing):
    with StubServer() as stub, typing(stub) as typist:
        typist.type("one\\\ntwo\n")
        typist.wait_for(PROMPT)
        typist.type('"""first\n  second\nthird"""\n')
        typist.wait_for(PROMPT)
    assert [body["messages"][-1]["content"] for body in stub.bodies] == ["one\ntwo", "first\n  second\nthird"]


def test_errors_are_one_line_and_retry_sends_again(typing):
    with StubServer(lambda body: (400, "The prompt\nis too long.")) as stub, typing(stub) as typist:
        assert typist.ask("hello") == "error: The prompt is too long.\n"
        stub.answer = lambda body: ["a", {"error": {"message": "The engine died."}}]
        assert typist.ask("/retry") == "a\nerror: The engine died.\n"
        stub.answer = lambda body: ["well"]
        assert typist.ask("/retry") == "well\n"
        assert [len(body["messages"]) for body in stub.bodies] == [1, 1, 1]


def test_an_answer_can_not_command_the_terminal(typing):
    with StubServer(lambda body: ["\x1b]0;title\x07\x1b[2Jx\tü\n"]) as stub, typing(stub) as typist:
        assert typist.ask("hello") == "]0;title[2Jx\tü\n\n"


def test_reasoning_and_cut_answers_are_shown(typing):
    with (
        StubServer(lambda body: [{"choices": [{"delta": {"reasoning": "hm"}}]}, "yes"]) as stub,
        typing(stub) as typist,
    ):
        stub.finish_reason = "length"
        assert typist.ask("hello").startswith("hm\n\nyes\n(cut off: the limit of tokens is reached")


def test_typed_lines_are_kept_for_the_next_chat(typing, tmp_path):
    file = tmp_path / "plugserve" / "chat_history"
    with StubServer() as stub:
        with typing(stub) as typist:
            typist.ask("remember me")
            typist.type("\x04")
            typist.end()
        assert file.stat().st_mode & 0o777 == 0o600
        with typing(stub) as typist:
            typist.type("\x1b[A\n")  # the arrow up
            typist.wait_for("You said: remember me")
        file.unlink()
        with typing(stub, "--no-history") as typist:
            typist.ask("forget me")
            typist.type("\x04")
            typist.end()
        assert not file.exists()


# ---- pipes


def piped(environ, text, *words):
    return subprocess.run(
        [sys.executable, "-m", "plugserve", "chat", *words], input=text, capture_output=True, text=True, env=environ
    )


def test_a_pipe_gets_the_answer_and_nothing_else(environ):
    with StubServer(key="secret") as stub:
        found = piped(environ | {"PLUGSERVE_API_KEY": "secret"}, "hi\nthere\n", "--url", stub.url + "/v1/")
        assert (found.stdout, found.stderr, found.returncode) == ("You said: hi\nthere\n", "", 0)
        with pytest.raises(ChatError, match="The API key is wrong"):
            next(ApiClient(stub.url, "other").answer("m", [], {}))


def test_faults_are_one_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("hi"))
    assert main(["chat", "--url", "http://127.0.0.1:1"]) == 1
    assert capsys.readouterr().err == "plugserve: error: http://127.0.0.1:1: no server listens there\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(" \n"))
    assert main(["chat", "--url", "http://127.0.0.1:1"]) == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--url", "localhost:8000"], "--url must be http://HOST:PORT"),
        (["--url"], "--url needs a value"),
        (["--url", "http://x", "--dtype", "float16"], "unexpected argument '--dtype'"),
        (["hello"], "a message comes from a pipe"),
        (["--set", "temperature"], "NAME=VALUE"),
        (["--set", "messages=[]"], "can't set messages"),
        (["--system", "a", "--system", "b"], "given twice"),
    ],
)
def test_faulty_arguments_are_refused(words, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        read_arguments(words, {})


def test_arguments_are_read():
    words = ["--set", "top_p=0.5", '--set=stop=["a"]', "--set", "user=me", "--model", "m", "--dtype", "x"]
    read = read_arguments(words, {"PLUGSERVE_API_KEY": "k"})
    assert read.fields == {"top_p": 0.5, "stop": ["a"], "user": "me"}
    assert (read.model, read.api_key, read.words) == ("m", "k", ["--dtype", "x"])


@pytest.mark.parametrize(
    "content",
    ["{", "3", '{"messages": 1}', '[{"role": "user", "content": "unanswered"}]', '[{"role": "tool", "content": "x"}]'],
)
def test_files_that_hold_no_chat_are_refused(tmp_path, content):
    (tmp_path / "chat").write_text(content)
    talk = Conversation("m", messages=[{"role": "user", "content": "kept"}])
    with pytest.raises(UserError) as error:
        talk.load(str(tmp_path / "chat"))
    assert "\n" not in str(error.value)
    assert talk.messages == [{"role": "user", "content": "kept"}]


def test_a_list_of_messages_can_be_loaded(tmp_path):
    messages = [{"role": role, "content": role} for role in ("system", "user", "assistant")]
    (tmp_path / "chat").write_text(json.dumps(messages))
    talk = Conversation("m")
    talk.load(str(tmp_path / "chat"))
    assert (talk.system, len(talk.messages)) == ("system", 2)


def test_a_stream_that_breaks_off_is_an_error():
    with StubServer() as stub:
        stub.finish_reason = None
        client = ApiClient(stub.url, None)
        stub.answer = lambda body: ["a", {"choices": None}]
        assert next(client.answer("m", [], {})).text == "a"
    with pytest.raises(ChatError, match="no server listens there"):
        client.models()


def test_a_signal_ends_it(typing):
    with StubServer() as stub, typing(stub) as typist:
        while typist.process.poll() is None:  # readline handles one that comes before it waits with the next one
            typist.process.send_signal(signal.SIGTERM)
            time.sleep(0.05)
        assert typist.end() == 128 + signal.SIGTERM
