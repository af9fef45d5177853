"""/docs: the OpenAPI document as one page of static text. With the page at / it has its style, and its script, which
sends the examples; without, it needs nothing else."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from plugserve.server.api.openapi.document import JSON, OPERATIONS, REF, Operation, openapi_document
from plugserve.server.api.openapi.examples import BODIES, UPLOADS
from plugserve.server.ui.page_files import with_base

_GROUPS: Final[Mapping[str, tuple[str, ...]]] = {
    "Answers": ("/v1/chat", "/v1/completions", "/v1/responses", "/v1/messages", "/invocations"),
    "Vectors and ranks": ("/v1/embeddings", "/v1/rerank", "/rerank", "/v2/rerank", "/v1/score", "/score"),
    "Tokens": ("/tokenize", "/v1/tokenize", "/detokenize", "/v1/detokenize"),
    "Files and batches": ("/v1/files", "/v1/batches"),
    "Models and adapters": ("/v1/models", "/models", "/v1/load_lora", "/v1/unload_lora"),
    "Operation": ("/",),
}
_STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem}"
    "h3{border-top:1px solid #8886;padding-top:1rem}code{background:#8882;padding:.1em .3em;border-radius:.2em}"
    "pre code{background:none}pre{background:#8882;padding:.6rem;overflow:auto}nav ul{columns:2}"
    "table{border-collapse:collapse}td,th{padding:.2rem .8rem .2rem 0;text-align:left;vertical-align:top}"
    ":root{color-scheme:light dark}"
)
_HEADER: Final = (
    '<header class="top"><h1 class="brand"><a href="."><img src="ui/icon.svg" alt="plugserve" width="24" height="24">'
    '<span aria-hidden="true">plugserve</span></a></h1><nav aria-label="Views"><a href=".#chat">Chat</a>'
    '<a href=".#live">Live</a><a href="docs" aria-current="page">API</a></nav><span class="grow"></span>'
    '<button type="button" class="icon-button" id="enter-key" aria-label="API key" title="API key"></button>'
    '<button type="button" class="icon-button" id="theme" aria-label="Theme"></button></header>'
)
_STATUS: Final = '<p id="status" class="offscreen" role="status" aria-live="polite"></p>'
_FILES: Final = (
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta name="color-scheme" content="light dark">'
    '<link rel="icon" href="ui/icon.svg" type="image/svg+xml"><link rel="stylesheet" href="ui/base.css">'
    '<link rel="stylesheet" href="ui/docs.css"><script src="ui/theme.js"></script>'
    '<script src="ui/docs.js" type="module"></script>'
)


def docs_page(version: str, root_path: str = "", *, has_script: bool = False) -> bytes:
    """has_script: the files of the page at / are served."""
    schemas = openapi_document(version)["components"]["schemas"]
    groups = {name: list(_of_group(name)) for name in _GROUPS}
    contents = "".join(_contents(name, operations) for name, operations in groups.items())
    sections = "".join(
        f"<h2>{name}</h2>" + "".join(_section(one, schemas) for one in operations)
        for name, operations in groups.items()
    )
    errors = "".join(
        f"<h4>{name}</h4>{_table(schemas[name]['properties']['error'])}" for name in ("Error", "AnthropicError")
    )
    level = 2 if has_script else 1  # with the script, the header has the first heading
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>API · plugserve {html.escape(version)}'
        f"</title>{_FILES if has_script else f'<style>{_STYLE}</style>'}</head><body>{_HEADER if has_script else ''}"
        f'<div class="docs"><nav class="contents" aria-label="Contents">{contents}</nav><main>'
        f'<h{level} class="title">The API of plugserve {html.escape(version)}</h{level}>'
        '<p class="intro">Made from the schemas that check requests; <a href="openapi.json">openapi.json</a> is the '
        "same for machines. With a key set, requests carry it as <code>Authorization: Bearer KEY</code> or "
        f"<code>x-api-key: KEY</code>; this page needs none.</p>{sections}<h2>Errors</h2>"
        f"<p>The object under <code>error</code>:</p>{errors}</main></div>{_STATUS if has_script else ''}</body></html>"
    )
    return with_base(page.encode(), root_path if has_script else "")


def _of_group(name: str) -> Iterator[Operation]:
    """The operations whose path begins as one of the group's, and as none of a group before."""
    for operation in OPERATIONS:
        first = next(one for one, starts in _GROUPS.items() if operation.path.startswith(starts))
        if first == name and operation.method != "head":
            yield operation


def _anchor(operation: Operation) -> str:
    return f"{operation.method}{operation.path.replace('/', '-').replace('{', '').replace('}', '')}"


def _contents(name: str, operations: list[Operation]) -> str:
    links = "".join(
        f'<li><a href="docs#{_anchor(one)}">{_method(one)} {html.escape(one.path)}</a></li>' for one in operations
    )
    return f"<p>{name}</p><ul>{links}</ul>"


def _method(operation: Operation) -> str:
    return f'<b class="method {operation.method}">{operation.method.upper()}</b>'


def _section(operation: Operation, schemas: Mapping[str, Any]) -> str:
    parts = [
        f'<section id="{_anchor(operation)}"><h3>{_method(operation)} '
        f"<code>{html.escape(operation.path)}</code></h3><p>{html.escape(operation.summary)}.</p>"
    ]
    parts.append(_example(operation))
    if operation.body is not None:
        fields = _table(schemas[operation.body.__name__])
        parts.append(f"<details><summary>Fields of the request: {operation.body.__name__}</summary>{fields}</details>")
    if operation.media_type == JSON:
        fields = _table(schemas[operation.answer])
        parts.append(f"<details><summary>Fields of the answer: {operation.answer}</summary>{fields}</details>")
    return "".join(parts) + "</section>"


def _example(operation: Operation) -> str:
    """What the script makes a form of."""
    path = operation.path
    upload = UPLOADS.get(path) if operation.method == "post" else None
    body = json.dumps(BODIES[path], indent=2) if operation.body is not None else upload or ""
    kind = "json" if operation.body is not None else "file" if upload else "none"
    return (
        f'<pre class="example" data-method="{operation.method.upper()}" data-path="{html.escape(path)}" '
        f'data-kind="{kind}"><code>{html.escape(body or f"{operation.method.upper()} {path}")}</code></pre>'
    )


def _table(schema: Mapping[str, Any]) -> str:
    required = schema.get("required", [])
    rows = "".join(
        f'<tr><th scope="row"><code>{html.escape(name)}</code></th>'
        f"<td>{html.escape(_type_of(field))}{' <em>required</em>' if name in required else ''}</td>"
        f"<td>{html.escape(field.get('description', ''))}</td></tr>"
        for name, field in schema.get("properties", {}).items()
    )
    return f'<div class="table"><table>{rows}</table></div>' if rows else "<p>An object.</p>"


def _type_of(schema: Mapping[str, Any]) -> str:
    """A schema as a short text."""
    if "$ref" in schema:
        return str(schema["$ref"]).removeprefix(REF)
    if "anyOf" in schema:
        return " or ".join(_type_of(part) for part in schema["anyOf"] if part.get("type") != "null")
    if "enum" in schema or "const" in schema:
        return " or ".join(repr(value) for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type", "anything")
    if isinstance(kind, list):
        return " or ".join(kind)
    if kind == "array" and "items" in schema:
        return f"list of {_type_of(schema['items'])}"
    limits = [
        f"{sign} {schema[name]}"
        for name, sign in (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<"))
        if name in schema
    ]
    return " ".join([str(kind), *limits])
