import asyncio
import json
import os
import re
import signal
import subprocess
import sys

import pytest

from plugserve.core.errors import ModelError, RequestError
from plugserve.server.text.chat_template import ChatTemplate

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = """{{- bos_token }}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim }}
        {{- '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' }}{{- tool_call.arguments | tojson }}
        {{- "}<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set ns = namespace(count=0) %}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (ns.count % 2 == 0) %}
        {{- raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif %}
    {%- set ns.count = ns.count + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- else %}
        {{- " " + message["content"] + eos_token}}
    {%- endif %}
{%- endfor %}
"""
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
    "{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- if message.role == "user" %}
        {%- set ns.last = (messages|length - 1) - loop.index0 %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "system" %}{%- continue %}{%- endif %}
    {%- if message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\\n<think>' + reasoning_content.strip('\\n') + '</think>\\n' }}
        {%- generation %}
        {{- content }}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
                {{- '\\n<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}{{- tool_call.arguments }}
                {%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
        {%- endgeneration %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
INDENTED = """
{% for message in messages %}
    {% if message.role == "user" %}
User: {{ message.content }}
    {% else %}
{{ message.role | capitalize }}: {{ message.content }}
    {% endif %}
{% endfor %}
{{ dict(a=1) | tojson }} {{ "é<&" | tojson }} {{ {"b": 1, "a": [1, 2]} | tojson(indent=2, sort_keys=True) }}
"""
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "mistral": MISTRAL, "gemma": GEMMA, "qwen": QWEN, "plain": INDENTED}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
USER = [{"role": "user", "content": "Héllo <b>&'\" 日本"}]
TALK = [*USER, {"role": "assistant", "content": " Yes. "}, {"role": "user", "content": "And\n\nthen?"}]
SYSTEM = [{"role": "system", "content": " Be brief. "}, *TALK]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "é", "parameters": {"type": "object"}}}]
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": "ü", "n": 1}}}
TOOL_TALK = [
    *USER,
    {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning": "Let me see."},
    {"role": "tool", "content": "42"},
]


def from_transformers(template, messages, *, tools=None, **options) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    ((text,), _) = render_jinja_template([messages], chat_template=template, tools=tools, **SPECIAL, **options)
    return text


def expected_of(template, messages, **options) -> tuple[str, str]:
    """What transformers renders, or the message of the error that stops it."""
    try:
        return from_transformers(template, messages, **options), ""
    except Exception as error:  # templates run into jinja2's errors and any of Python's
        return "", str(error)


@pytest.fixture
async def make_template():
    made = []

    def make(source, special_tokens=SPECIAL, **options):
        made.append(ChatTemplate(source, special_tokens, **options))
        return made[-1]

    yield make
    for template in made:
        await template.close()


@pytest.mark.parametrize("name", TEMPLATES)
async def test_known_templates_render_as_transformers_renders_them(make_template, name):
    template = make_template(TEMPLATES[name])
    compared = 0
    for messages in (USER, TALK, SYSTEM, TOOL_TALK):
        for tools in (None, TOOLS):
            for add_generation_prompt in (True, False):
                options = {"tools": tools, "add_generation_prompt": add_generation_prompt}
                expected, refusal = expected_of(TEMPLATES[name], messages, **options)
                if refusal:
                    with pytest.raises(RequestError, match=re.escape(refusal)):
                        await template.render(messages, **options)
                else:
                    assert await template.render(messages, **options) == expected
                    compared += 1
    assert compared >= 8


async def test_default_models_template_renders_as_transformers_renders_it(make_template, smollm2_gguf, cache_home):
    from plugserve.core.model_files.model_source import load_text_model, resolve

    text = load_text_model(resolve(None))
    template = make_template(text.chat_template, text.special_tokens)
    for messages in (USER, TALK, SYSTEM):
        expected = from_transformers(text.chat_template, messages, add_generation_prompt=True)
        assert await template.render(messages) == expected


async def test_extra_variables_reach_the_template_and_may_replace_special_tokens(make_template):
    template = make_template(QWEN)
    rendered = await template.render(USER, kwargs={"enable_thinking": False})
    assert rendered.endswith("<think>\n\n</think>\n\n")
    assert await make_template("{{ bos_token }}").render(USER, kwargs={"bos_token": "X"}) == "X"


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt", "chat_template"])
async def test_variables_of_the_request_itself_may_not_be_replaced(make_template, name):
    with pytest.raises(RequestError, match=f"may not set '{name}'") as caught:
        await make_template(CHATML).render(USER, kwargs={name: 1})
    assert caught.value.param == "chat_template_kwargs"


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma", "qwen"])
@pytest.mark.parametrize("ending", ["The answer is", "The answer is ", "  trailing \n"])
async def test_the_final_message_can_be_continued(make_template, name, ending):
    messages = [*USER, {"role": "assistant", "content": ending}]
    expected = from_transformers(TEMPLATES[name], messages, add_generation_prompt=False, continue_final_message=True)
    rendered = await make_template(TEMPLATES[name]).render(
        messages, add_generation_prompt=False, continue_final_message=True
    )
    assert rendered == expected
    assert rendered.rstrip().endswith(ending.strip())


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% for m in messages %}{% if m.role == 'system' %}S:{{ m.content }}{% endif %}{% endfor %}", "S:be kind"),
        ("{% for m in messages %}{% if m.role == 'developer' %}D:{{ m.content }}{% endif %}{% endfor %}", "D:be kind"),
    ],
)
async def test_a_developer_is_the_system_to_templates_that_know_none(make_template, source, text):
    template = make_template(source)
    assert await template.render([{"role": "developer", "content": "be kind"}]) == text


async def test_the_last_text_part_is_continued(make_template):
    source = "{% for m in messages %}{% for part in m.content %}[{{ part.text }}]{% endfor %}{% endfor %}"
    messages = [{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b "}]}]
    options = {"add_generation_prompt": False, "continue_final_message": True}
    with pytest.raises(RequestError, match="does not work with this model's chat template"):
        await make_template("{{ messages[0].text }}").render(messages, **options)
    assert await make_template(source).render(messages, **options) == "[a][b "


@pytest.mark.parametrize(
    ("source", "messages", "message"),
    [
        (CHATML, [{"role": "assistant", "content": None}], "needs a final message with content"),
        (CHATML, [], "needs a final message with content"),
        ("{{ messages[0].role }} content", USER, "does not keep the final message's text"),
    ],
)
async def test_what_cannot_be_continued_is_refused(make_template, source, messages, message):
    with pytest.raises(RequestError, match=message):
        await make_template(source).render(messages, add_generation_prompt=False, continue_final_message=True)


async def test_continuing_and_a_new_answer_exclude_each_other(make_template):
    with pytest.raises(RequestError, match="can't both be true"):
        await make_template(CHATML).render(USER, add_generation_prompt=True, continue_final_message=True)


async def test_a_model_without_template_says_what_to_do(make_template):
    with pytest.raises(RequestError, match=r"no chat template: .*--chat-template, or use /v1/completions") as caught:
        await make_template(None).render(USER)
    assert caught.value.status == 400


@pytest.mark.parametrize("source", ["{% if %}", "{{ x", "{% endfor %}", "{{ x | }}", "{% mystery %}"])
def test_a_template_that_is_no_jinja_is_reported_when_it_is_loaded(source):
    with pytest.raises(ModelError, match=r"not valid Jinja: line 1: .*--chat-template"):
        ChatTemplate(source, {})


async def test_what_compiling_finds_is_reported_at_start(make_template):
    template = make_template("\n{{ messages | of_mars }}")
    with pytest.raises(ModelError, match="can't be compiled: line 2: No filter named 'of_mars'"):
        await template.start()
    with pytest.raises(RequestError, match="No filter named 'of_mars'"):
        await template.render(USER)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('only users here') }}", "^only users here$"),
        ("{{ messages[0].absent.name }}", "has no attribute 'absent'"),
        ("{{ 'a' + none }}", "TypeError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ messages.__init__.__globals__ }}", "unsafe"),
        ("{% set n = namespace(a=1) %}{% set n.__class__ = 1 %}", "underscore"),
        ("{{ namespace(__class__=1) }}", "underscore"),
        ("{{ cycler.__init__.__globals__.os }}", "unsafe"),
        ("{% include 'x' %}", "no loader"),
        ("{{ 'a' * 10 ** 10 }}", "too much memory"),
        ("{{ (messages[0].content * 10 ** 9) | length }}", "too much memory"),
        ("{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}", "larger than 4194304"),
        ("{{ messages[0].content * 10 ** 6 }}", "larger than 4194304"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "nests too deeply"),
    ],
)
async def test_a_template_that_goes_wrong_is_the_clients_error_and_the_next_one_works(make_template, source, message):
    """Of the two templates' branches the first misbehaves and the second, in the same child, does not."""
    template = make_template("{% if messages[0].role == 'bad' %}" + source + "{% else %}fine{% endif %}")
    with pytest.raises(RequestError, match=message) as caught:
        await template.render([{"role": "bad", "content": "hello"}])
    assert caught.value.status == 400
    assert await template.render(USER) == "fine"


async def test_long_input_may_have_long_output(make_template):
    text = "x" * (6 << 20)
    assert len(await make_template(CHATML).render([{"role": "user", "content": text}])) > len(text)


ENDLESS = (
    "{% if messages[0].role == 'bad' %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    "{% endif %}{{ messages[0].content }}"
)


async def test_an_endless_render_is_killed_and_those_that_wait_are_answered(make_template):
    template = make_template(ENDLESS, timeout_s=0.3)
    await template.start()
    first = template._sandbox.process.pid
    bad = [{"role": "bad", "content": ""}]
    good = [[{"role": "user", "content": f"message {i}"}] for i in range(5)]
    renders = [template.render(bad), *(template.render(messages) for messages in good[:3])]
    renders += [template.render(bad), *(template.render(messages) for messages in good[3:])]
    answers = await asyncio.gather(*renders, return_exceptions=True)
    for killed in (answers[0], answers[4]):
        assert isinstance(killed, RequestError)
        assert str(killed) == "the chat template took longer than 0.3 s"
        assert killed.status == 400
    assert [*answers[1:4], *answers[5:]] == [f"message {i}" for i in range(5)]
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


async def test_a_client_that_goes_away_does_not_mix_up_the_answers(make_template):
    template = make_template("{{ messages[0].content }}")
    await template.start()
    for number in range(20):
        leaving = asyncio.create_task(template.render([{"role": "user", "content": f"left {number}"}]))
        for _ in range(number % 5):
            await asyncio.sleep(0)
        leaving.cancel()
        assert await template.render([{"role": "user", "content": f"stays {number}"}]) == f"stays {number}"


async def test_concurrent_renders_get_their_own_answers(make_template):
    template = make_template(CHATML)
    answers = await asyncio.gather(*(template.render([{"role": "user", "content": f"<{i}>"}]) for i in range(50)))
    assert [f"<{i}>" in answer for i, answer in enumerate(answers)] == [True] * 50


async def test_a_child_that_died_is_replaced(make_template):
    template = make_template(CHATML)
    expected = await template.render(USER)
    os.kill(template._sandbox.process.pid, signal.SIGKILL)
    assert await template.render(USER) == expected


async def test_closing_ends_the_child_and_refuses_more(make_template):
    template = make_template(ENDLESS)
    await template.start()
    process = template._sandbox.process
    under_way = asyncio.create_task(template.render([{"role": "bad", "content": ""}]))
    await asyncio.sleep(0.05)
    await template.close()
    assert process.returncode is not None
    with pytest.raises(asyncio.CancelledError):
        await under_way
    with pytest.raises(RequestError, match="shutting down"):
        await template.render(USER)


async def test_half_a_surrogate_pair_is_refused(make_template):
    with pytest.raises(RequestError, match="surrogate"):
        await make_template(CHATML).render([{"role": "user", "content": "\ud83d"}])


def frame(value) -> bytes:
    body = json.dumps(value).encode()
    return len(body).to_bytes(4, "little") + body


def start_child(**options) -> subprocess.Popen:
    command = [sys.executable, "-m", "plugserve.server.sandbox.template_process"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options)


def test_the_child_leaves_when_its_parent_is_gone():
    child = start_child()
    child.stdin.write(frame({"template": "x"}))
    child.stdin.flush()
    assert child.stdout.read(4) == len(child.stdout.read(12)).to_bytes(4, "little")
    child.stdin.close()
    assert child.wait(timeout=10) == 0
    child.stdout.close()


def endless_request() -> bytes:
    request = {"messages": [{"role": "bad"}], "tools": None, "kwargs": {}}
    request |= {"add_generation_prompt": True, "continue_final_message": False}
    return frame({"template": ENDLESS}) + frame(request)


def test_an_endless_render_ends_with_its_parent():
    """Sooner than by its alarm."""
    child = start_child()
    child.stdin.write(endless_request())
    child.stdin.close()
    assert child.wait(timeout=10) == 0
    child.stdout.close()


def test_a_render_that_nobody_stops_is_ended_by_its_alarm():
    code = "import plugserve.server.sandbox.template_process as t; t.ALARM_S = 1; t.main()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdin.write(endless_request())
    child.stdin.flush()
    assert child.wait(timeout=20) == -signal.SIGALRM
    child.stdin.close()
    child.stdout.close()


PARENT = """
import asyncio, os, signal, sys
from plugserve.server.text.chat_template import ChatTemplate
async def main():
    template = ChatTemplate(sys.argv[1], {}, timeout_s=60)
    await template.start()
    asyncio.create_task(template.render([{"role": "bad", "content": ""}]))
    await asyncio.sleep(0.2)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


def test_no_orphan_remains_when_the_worker_is_killed_in_the_middle_of_a_render():
    """The child shares the worker's stderr: that ends when both are gone, and the child's alarm would be too late."""
    command = [sys.executable, "-c", PARENT, ENDLESS]
    done = subprocess.run(command, capture_output=True, check=False, timeout=12)
    assert done.returncode == -signal.SIGKILL


def test_the_child_imports_neither_torch_nor_the_tokenizers():
    code = (
        "import sys; import plugserve.server.sandbox.template_process;"
        "sys.exit(' '.join({'torch', 'transformers', 'tokenizers', 'sanic', 'numpy'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
