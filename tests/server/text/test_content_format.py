"""--chat-template-content-format and --default-chat-template-kwargs: what a chat template gets."""

import pytest

from plugserve.core.errors import ConfigError
from plugserve.server.text.chat_template import ChatTemplate, PartedText, check_template_variables

TEXTS = "{% for message in messages %}[{{ message['content'] }}]{% endfor %}"
PARTS = "{% for m in messages %}{% for part in m.content %}<{{ part.text }}>{% endfor %}{% endfor %}"
BOTH = (
    "{% for m in messages %}{% if m['content'] is string %}[{{ m['content'] }}]{% else %}"
    "{% for part in m['content'] %}<{{ part['text'] }}>{% endfor %}{% endif %}{% endfor %}"
)
MACRO = (
    "{% macro write(content) %}{% if content is string %}[{{ content }}]{% else %}{% for part in content %}"
    "<{{ part.text }}>{% endfor %}{% endif %}{% endmacro %}{% for m in messages %}{{ write(m.content) }}{% endfor %}"
)
SET = (
    "{% for m in messages %}{% set c = m.content %}{% for part in c | list %}<{{ part.text }}>{% endfor %}{% endfor %}"
)
SPLIT = "{% for m in messages %}{% for line in m.content.split('\n') %}({{ line }}){% endfor %}{% endfor %}"
TEXT = {"role": "user", "content": "a"}
TWO = {"role": "user", "content": PartedText.of(["a", "b"])}


@pytest.fixture
async def render():
    made = []

    async def render(source, message, **options):
        arguments = options.pop("arguments", {})
        made.append(ChatTemplate(source, {}, **options))
        return await made[-1].render([message], **arguments)

    yield render
    for template in made:
        await template.close()


@pytest.mark.parametrize(
    ("source", "text", "two"),
    [
        (TEXTS, "[a]", "[a\nb]"),
        (PARTS, "<a>", "<a><b>"),
        (BOTH, "[a]", "<a><b>"),
        (MACRO, "[a]", "<a><b>"),
        (SET, "<a>", "<a><b>"),
        (SPLIT, "(a)", "(a)(b)"),
    ],
)
async def test_auto_gives_a_template_what_it_goes_by(render, source, text, two):
    assert await render(source, TEXT) == text
    assert await render(source, TWO) == two


async def test_string_is_always_one_text(render):
    assert await render(BOTH, TWO, content_format="string") == "[a\nb]"


async def test_openai_is_always_parts(render):
    assert await render(BOTH, TEXT, content_format="openai") == "<a>"
    assert await render(PARTS, TWO, content_format="openai") == "<a><b>"


async def test_parts_are_the_clients_text(render):
    spans = (await render("x" + PARTS, TWO)).client_spans
    assert spans == (await render("x" + PARTS, TWO, content_format="openai")).client_spans
    assert list(spans) == [2, 3, 5, 6]


async def test_the_last_part_of_an_answer_can_be_continued(render):
    answer = {"role": "assistant", "content": PartedText.of(["a", "b"])}
    arguments = {"add_generation_prompt": False, "continue_final_message": True}
    assert await render(PARTS, answer, arguments=arguments) == "<a><b"


async def test_a_requests_own_template_gets_the_form_that_it_goes_by():
    template = ChatTemplate(None, {}, default_kwargs={"mood": "calm"})
    assert await template.render_with(PARTS + "{{ mood }}", [TWO]) == "<a><b>calm"
    await template.close()


# ---- default variables


async def test_default_variables_reach_the_template_and_a_requests_own_win(render):
    source = "{{ mood }} {{ size }}"
    options = {"default_kwargs": {"mood": "calm", "size": 1}}
    assert await render(source, TEXT, **options) == "calm 1"
    assert await render(source, TEXT, **options, arguments={"kwargs": {"size": 2}}) == "calm 2"


def test_variables_of_the_server_are_refused():
    check_template_variables({"enable_thinking": False})
    with pytest.raises(ConfigError, match="--default-chat-template-kwargs can't set 'messages'"):
        check_template_variables({"messages": []})
