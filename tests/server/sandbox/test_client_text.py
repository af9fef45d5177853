"""Chat templates work on the client's strings as on any other, and what they write remembers whose it is."""

import json
import random

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from plugserve.server.sandbox.client_text import ClientText, client_spans, concatenated, marks_of, of_client
from plugserve.server.sandbox.template_process import Compiled, render

TALK = [
    {"role": "user", "content": " Hé <|im_end|>\n there ", "name": "bob"},
    {"role": "assistant", "content": '<think>no</think>yes\\ "quoted"', "tags": ["x", "y"]},
    {"role": "odd", "content": ""},
]
LOOP = "{% for m in messages %}<|{{ EXPRESSION }}|>{% endfor %}"


def rendered(source, messages=TALK, **kwargs):
    """(text, the client's parts of it)."""
    request = {"messages": messages, "tools": kwargs.pop("tools", None), "kwargs": kwargs}
    request |= {"add_generation_prompt": True, "continue_final_message": False}
    text = render(Compiled.of(source, "auto"), {"bos_token": "<s>"}, request, 1 << 20)
    spans = client_spans(text)
    parts = [str.__str__(text)[start:end] for start, end in zip(spans[::2], spans[1::2], strict=True)]
    return str.__str__(text), parts


def as_ever(source, messages=TALK, **kwargs):
    """What the same template writes where nothing is marked."""
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    plain.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    return plain.from_string(source).render(messages=messages, bos_token="<s>", tools=kwargs.get("tools"))


EXPRESSIONS = {
    "m.content": [" Hé <|im_end|>\n there ", '<think>no</think>yes\\ "quoted"'],
    "m.content | trim": ["Hé <|im_end|>\n there", '<think>no</think>yes\\ "quoted"'],
    "'[' + m.content.strip() + ']'": ["Hé <|im_end|>\n there", '<think>no</think>yes\\ "quoted"'],
    "'[' ~ m.content.strip() ~ ']'": ["Hé <|im_end|>\n there", '<think>no</think>yes\\ "quoted"'],
    "m.content[1:4]": ["Hé ", "thi"],
    "m.content[::-1][:3]": [" er", '"de'],
    "m.content[2] if m.content else ''": ["é", "h"],
    "m.content.upper()": [" HÉ <|IM_END|>\n THERE ", '<THINK>NO</THINK>YES\\ "QUOTED"'],
    "m.content | upper | lower": [" hé <|im_end|>\n there ", '<think>no</think>yes\\ "quoted"'],
    "m.content | tojson": ['" Hé <|im_end|>\\n there "', '"<think>no</think>yes\\\\ \\"quoted\\""'],
    "('a' + m.content + 'b').split('<think>')[-1]": [" Hé <|im_end|>\n there ", 'no</think>yes\\ "quoted"'],
    "('a ' + m.content + ' b').split() | join('+')": [
        "Hé",
        "<|im_end|>",
        "there",
        "<think>no</think>yes\\",
        '"quoted"',
    ],
    "m.content.split('</think>')[-1]": [" Hé <|im_end|>\n there ", 'yes\\ "quoted"'],
    "('-' ~ m.content).rsplit('</think>', 1)[0]": [" Hé <|im_end|>\n there ", "<think>no"],
    "('<s>' + m.content).partition('think')[2]": ['>no</think>yes\\ "quoted"'],
    "('<s>' + m.content).replace('think', bos_token)": [" Hé <|im_end|>\n there ", "<", ">no</", '>yes\\ "quoted"'],
    "'<c>'.replace('c', m.content)": [" Hé <|im_end|>\n there ", '<think>no</think>yes\\ "quoted"'],
    "'a%sb%s' % (m.content, 1)": ["Hé <|im_end|>\n there", 'think>no</think>yes\\ "quoted'],
    "'a{}b'.format(m.content)": ["Hé <|im_end|>\n there", 'think>no</think>yes\\ "quoted'],
    "'a%sb' | format(m.content)": ["Hé <|im_end|>\n there", 'think>no</think>yes\\ "quoted'],
    "['a', m.content, 'b'] | join('|')": [" Hé <|im_end|>\n there ", '<think>no</think>yes\\ "quoted"'],
    "'|'.join(['a', m.content])": [" Hé <|im_end|>\n there ", '<think>no</think>yes\\ "quoted"'],
    "m.content | length": [],
    "m.content == '' or 'think' in m.content": [],
    "m.name | default('nobody')": ["bob"],
    "{'bob': '<|x|>'}[m.name] if m.name else ''": [],
    "{'bob': '<|x|>'}.get(m.name)": [],
    "m.tags | join(',')": ["x", "y"],
    "m.tags": ["['x', 'y']"],
    "m.tags | string": ["['x', 'y']"],
    "m.name ~ 3 ~ none": ["bob"],
    "m.content.encode().decode()": [" Hé <|im_end|>\n there ", '<think>no</think>yes\\ "quoted"'],
    "m.content | list | join": [" Hé <|im_end|>\n there ", '<think>no</think>yes\\ "quoted"'],
    "m.content | reverse": ["\u0020ereht \n>|dne_mi|< éH ", '"detouq" \\sey>kniht/<on>kniht<'],
    "(m.content | e) if 'im' in m.content else ''": ["Hé", "|im_end|", "there"],
    "'<i>' + (m.content | tojson | safe)": None,
    "m.content | replace('\\n', '<n>')": [" Hé <|im_end|>", " there ", '<think>no</think>yes\\ "quoted"'],
    "m.content.splitlines() | last | default('')": [" there ", '<think>no</think>yes\\ "quoted"'],
    "(m.content ~ '<|a|>') | indent(2)": None,
    "m.content * 2": [" Hé <|im_end|>\n there " * 2, '<think>no</think>yes\\ "quoted"' * 2],
    "m.content.startswith(' H') and m.content[1] == 'H'": [],
    "m.role": ["odd"],
    "m | dictsort | string | length": [],
    "m.items() | list | length": [],
    "m.content.title()": [" Hé <|Im_End|>\n There ", '<Think>No</Think>Yes\\ "Quoted"'],
}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_writes_what_it_wrote_and_knows_the_clients_part(expression):
    source = LOOP.replace("EXPRESSION", expression)
    text, parts = rendered(source)
    assert text == as_ever(source)
    if EXPRESSIONS[expression] is not None:
        assert parts == EXPRESSIONS[expression]
    else:
        assert "Hé" in "".join(parts)
        assert "<|a|>" not in "".join(parts)


def test_macros_blocks_and_namespaces_keep_the_marks():
    source = (
        "{% macro turn(role, text) %}<|{{ role }}|>{{ text }}<|end|>{% endmacro %}"
        "{% set ns = namespace(last='') %}{% for m in messages %}{% set ns.last = ns.last ~ m.name %}"
        "{{ turn('user', m.content) }}{% endfor %}"
        "{% set block %}<b>{{ messages[0].name }}</b>{% endset %}{{ block }}{{ ns.last }}"
        "{% filter upper %}<c>{{ messages[0].name }}{% endfilter %}"
        "{% macro box() %}<d>{{ caller() }}{% endmacro %}{% call box() %}{{ messages[0].name }}{% endcall %}"
    )
    text, parts = rendered(source)
    assert text == as_ever(source)
    assert parts == [TALK[0]["content"], TALK[1]["content"], "bob", "bob", "BOB", "bob"]


@pytest.mark.parametrize("source", ["{{ messages[0].values() }}", "{{ namespace(a=messages[0].name) }}"])
def test_what_can_hold_the_clients_text_counts_as_the_clients(source):
    text, parts = rendered(source)
    assert parts == [text]


def test_tools_documents_and_extra_variables_are_the_clients():
    tools = [{"type": "function", "function": {"name": "<|a|>", "parameters": {"<|key|>": 1}}}]
    source = (
        "<t>{{ tools | tojson }}</t>{% for name in tools[0].function.parameters %}{{ name }}{% endfor %}{{ extra }}"
    )
    _, parts = rendered(source, tools=tools, extra="<|b|>")
    assert parts == [json.dumps(tools), "<|key|><|b|>"]


def test_special_tokens_are_the_templates_unless_a_client_names_others():
    assert rendered("{{ bos_token }}") == ("<s>", [])
    assert rendered("{{ bos_token }}", bos_token="</s>") == ("</s>", ["</s>"])


def test_escaped_output_is_traced_as_a_whole():
    source = "<a>{% autoescape true %}{{ messages[0].name }}[INST]{{ bos_token }}{% endautoescape %}"
    text, parts = rendered(source)
    assert text == as_ever(source)
    assert parts == ["bob"]


def test_random_slices_and_sums_agree_with_marks_kept_by_hand():
    seed = random.Random(7)
    for _ in range(500):
        parts = []
        for _ in range(seed.randrange(1, 5)):
            text = "".join(seed.choices("ab <|>\n", k=seed.randrange(0, 6)))
            parts.append(ClientText(text) if seed.random() < 0.5 else text)
        whole = concatenated(parts)
        pairs = list(zip(str.__str__(whole), marks_of(whole), strict=True))
        if not isinstance(whole, ClientText):
            continue
        start, stop, step = seed.randrange(-8, 8), seed.randrange(-8, 8), seed.choice((None, 1, 2, -1))
        cut = whole[start:stop:step]
        assert list(zip(cut, marks_of(cut), strict=True)) == pairs[start:stop:step]
        for pieces in (
            whole.split("|"),
            whole.split(),
            whole.splitlines(),
            whole.rsplit("<|", 1),
            whole.partition(">"),
        ):
            for piece in pieces:
                if len(piece) > 0:
                    assert any(
                        pairs[at : at + len(piece)] == list(zip(piece, marks_of(piece), strict=True))
                        for at in range(len(pairs))
                    )
        assert str.__str__(whole.replace("|", "--")) == str.__str__(whole).replace("|", "--")


def test_client_json_is_marked_down_to_its_keys():
    marked = of_client({"a": ["b", 1, None, {"c": True}]})
    assert marked == {"a": ["b", 1, None, {"c": True}]}
    assert all(isinstance(name, ClientText) for name in marked)
    assert isinstance(marked["a"][0], ClientText)
