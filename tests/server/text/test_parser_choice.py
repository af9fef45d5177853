"""Which parsers read a model's answers: flags first, then what the chat template speaks of."""

import functools

import pytest

from plugserve.core.errors import PluginError
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.settings import Settings
from plugserve.plugins.reasoning_parsers.think_tags import ThinkTags
from plugserve.server.pipeline.prompts import answer_prefix
from plugserve.server.text.answer_parsers import Thinking
from plugserve.server.text.chat_template import ChatTemplate
from plugserve.server.text.parser_choice import choose_parsers

CALL = '{"name": "f", "arguments": {"x": 1}}'


@pytest.fixture(scope="module")
def host():
    return PluginHost.load(Settings().selection())


def calls_in(parsers, text):
    parser = parsers.new_tools([])
    told = [parser.feed(text), parser.finish()]
    return [call.name for delta in told for call in delta.calls if call.name]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("... <tool_call> ...", f"<tool_call>{CALL}</tool_call>"),
        ("... [TOOL_CALLS] ...", f"[TOOL_CALLS][{CALL}]"),
        ("... Environment: ipython ...", f"<|python_tag|>{CALL}"),
        ("... [func_name1(params_name1=params_value1)] ...", "[f(x=1)]"),
        ("no word of tools", f"```json\n{CALL}\n```"),
    ],
)
def test_tool_parser_follows_the_template(host, template, text):
    parsers = choose_parsers(Settings(model="m", enable_auto_tool_choice=True), host, template)
    assert calls_in(parsers, text) == ["f"]
    assert parsers.reads_json == text.startswith("```")


@pytest.mark.parametrize("name", ["mistral", "tool-parsers/mistral"])
def test_flag_wins_over_the_template(host, name):
    settings = Settings(model="m", enable_auto_tool_choice=True, tool_call_parser=name)
    assert calls_in(choose_parsers(settings, host, "<tool_call>"), f"[TOOL_CALLS][{CALL}]") == ["f"]


@pytest.mark.parametrize(("given", "text"), [("llama3_json", CALL), ("generic_json", f"[{CALL}]")])
def test_other_servers_spelling_is_understood(host, given, text):
    settings = Settings(model="m", enable_auto_tool_choice=True, tool_call_parser=given)
    assert calls_in(choose_parsers(settings, host, ""), text) == ["f"]
    settings = Settings(model="m", reasoning_parser="deepseek_r1")
    assert choose_parsers(settings, host, "").thinking("") == Thinking("<think>", "</think>", True)


def test_auto_is_off_unless_asked_for_and_on_for_the_embedded_model(host):
    assert choose_parsers(Settings(model="m"), host, "<tool_call>").new_tools([]) is None
    assert choose_parsers(Settings(), host, "<tool_call>").new_tools([]) is not None


@pytest.mark.parametrize(
    ("given", "template", "thinks"),
    [
        (None, "... <think> ...", True),
        (None, "... content.split('</think>') ...", True),
        (None, "no word of it", False),
        ("none", "... <think> ...", False),
        ("think-tags", "no word of it", True),
    ],
)
def test_reasoning_parser_follows_flag_and_template(host, given, template, thinks):
    parsers = choose_parsers(Settings(model="m", reasoning_parser=given), host, template)
    assert (parsers.thinking("") is not None) == thinks
    assert ("</think>" in parsers.special_tokens) == thinks


@pytest.mark.parametrize("fields", [{"tool_call_parser": "hermess"}, {"reasoning_parser": "think-tag"}])
def test_unknown_parsers_are_refused_with_a_hint(host, fields):
    with pytest.raises(PluginError, match=r"Did you mean '(hermes|think-tags)'"):
        choose_parsers(Settings(model="m", enable_auto_tool_choice=True, **fields), host, "")


class OnePlugin:
    """A host whose only plugin provides broken parsers."""

    def __init__(self, factory):
        self._factory = factory

    def names(self, kind):
        return ["mine"]

    def factory(self, kind, name):
        return self._factory, "plug"

    def note_failure(self, plugin, call, error, policy):
        raise AssertionError


def explode(argument):
    raise ZeroDivisionError("boom")


@pytest.mark.parametrize(
    ("factory", "message"), [(explode, "ZeroDivisionError: boom"), (lambda _: 5, "is a int without")]
)
@pytest.mark.parametrize("flag", ["tool_call_parser", "reasoning_parser"])
def test_parsers_that_cannot_work_stop_the_start(factory, message, flag):
    settings = Settings(model="m", enable_auto_tool_choice=flag == "tool_call_parser", **{flag: "mine"})
    with pytest.raises(PluginError, match=rf"plugin 'plug': .*{message}"):
        choose_parsers(settings, OnePlugin(factory), "")


def test_errors_of_parsers_are_counted_with_the_plugins_others():
    host = PluginHost.load(Settings().selection())
    parsers = choose_parsers(Settings(model="m", reasoning_parser="think-tags"), host, "")
    broken = parsers.new_reasoning("")
    broken._parser.feed = explode
    assert broken.feed("hello") == ("", "hello")
    assert host.errors["reasoning-parsers", "plugserve_reasoning_parsers"] == 1


TALK = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
HEAD = "{% if add_generation_prompt %}<|im_start|>assistant\n"
CLOSES = (
    HEAD + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
OPENS = HEAD + "<think>\n{% endif %}"
NOTHING = HEAD + "{% endif %}"


async def parser_after(source, messages, *, is_continued, kwargs=None):
    """A parser for the answer to messages."""
    template = ChatTemplate(source, {})
    render = functools.partial(template.render, messages, continue_final_message=is_continued, kwargs=kwargs)
    try:
        rendered = await render(add_generation_prompt=not is_continued)
        return ThinkTags(await answer_prefix(rendered, messages[-1], render, is_continued))
    finally:
        await template.close()


MUST, MAY, NOT = (True, False), (False, True), (False, False)


@pytest.mark.parametrize(
    ("template", "kwargs", "thinking"),
    [
        (CLOSES, {}, MAY),
        (CLOSES, {"enable_thinking": True}, MAY),
        (CLOSES, {"enable_thinking": False}, NOT),
        (OPENS, {}, MUST),
        (NOTHING, {}, MAY),
    ],
)
@pytest.mark.parametrize("question", ["hello", " what does <think> mean? ", "</think>", "a", "<think>\n\n</think>", ""])
async def test_what_the_template_writes_says_whether_the_answer_thinks(template, kwargs, thinking, question):
    messages = [{"role": "user", "content": question}]
    parser = await parser_after(TALK + template, messages, is_continued=False, kwargs=kwargs)
    assert (parser.is_thinking, parser.may_think) == thinking


@pytest.mark.parametrize(
    ("content", "thinking"), [("<think>let me", MUST), ("<think>hm</think>so", NOT), ("So, ", MAY)]
)
async def test_what_a_continued_message_holds_says_whether_it_thinks(content, thinking):
    messages = [{"role": "user", "content": "<think>"}, {"role": "assistant", "content": content}]
    parser = await parser_after(TALK + OPENS, messages, is_continued=True)
    assert (parser.is_thinking, parser.may_think) == thinking
