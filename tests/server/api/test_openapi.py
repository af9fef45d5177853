"""The OpenAPI document and the page: every route is there, and nothing is fetched from elsewhere."""

import html
import json
import re

import pytest

from plugserve.server.api.chat.body import ChatBody
from plugserve.server.api.openapi.document import OPERATIONS, openapi_document
from plugserve.server.api.openapi.examples import BODIES
from plugserve.server.api.openapi.field_texts import FIELD_TEXTS, OWN_TEXTS
from plugserve.server.worker.app import build_app


def refs_in(value):
    if isinstance(value, dict):
        for name, part in value.items():
            if name == "$ref":
                yield part
            yield from refs_in(part)
    elif isinstance(value, list):
        for part in value:
            yield from refs_in(part)


async def test_every_route_is_in_the_document(make_state):
    app = build_app(make_state(), is_optimised=False)
    routes = set()
    for route in app.router.routes:
        if hasattr(route.ctx, "is_undocumented"):
            continue  # there to say clearly that it isn't served
        path = "/" + re.sub(r"<(\w+)(:\w+)?>", r"{\1}", route.path)
        routes |= {(method.lower(), path) for method in route.methods}
    paths = openapi_document("1")["paths"]
    assert {(method, path) for path, methods in paths.items() for method in methods} == routes


async def test_document_is_whole(server):
    document = (await server.client.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    assert document["info"]["version"] == "1.2.3"
    schemas = document["components"]["schemas"]
    refs = set(refs_in(document))
    assert refs
    assert all(ref.removeprefix("#/components/schemas/") in schemas for ref in refs)
    assert set(ChatBody.model_fields) == set(schemas["ChatBody"]["properties"])
    assert "prompt" in schemas["CompletionBody"]["required"]
    ids = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(ids) == len(set(ids))


def test_every_field_is_explained_and_no_explanation_is_left_over():
    schemas = openapi_document("1")["components"]["schemas"]
    named = {(name, field) for name, schema in schemas.items() for field in schema.get("properties", {})}
    assert all(schemas[name]["properties"][field]["description"] for name, field in named)
    named |= {("Error", field) for field in schemas["Error"]["properties"]["error"]["properties"]}
    assert set(FIELD_TEXTS) | {field for _, field in OWN_TEXTS} == {field for _, field in named}
    assert set(OWN_TEXTS) <= named


@pytest.mark.parametrize("operation", [one for one in OPERATIONS if one.body], ids=lambda one: one.path)
def test_the_example_of_an_operation_fits_its_schema(operation):
    example = BODIES[operation.path]
    operation.body.model_validate(example)
    assert set(example) <= set(operation.body.model_fields)


async def test_documentation_explains_fields_and_holds_examples(server):
    response = await server.client.get("/docs")
    assert response.headers["content-type"].startswith("text/html")
    assert "script-src 'self'" in response.headers["content-security-policy"]
    page = html.unescape(response.text)
    for path, body in BODIES.items():
        assert f'data-path="{path}"' in page
        assert json.dumps(body, indent=2) in page
    assert "max_completion_tokens" in page
    assert FIELD_TEXTS["min_p"] in page
    assert not re.search(r"<script(?![^>]*\bsrc=)|https?://", page.replace("http://www.w3.org", ""))
    known = await server.client.get("/docs", headers={"if-none-match": response.headers["etag"]})
    assert known.status_code == 304


async def test_documentation_needs_nothing_else_without_the_page(serve):
    async with serve(state={"serves_page": False}) as server:
        response = await server.client.get("/docs")
    assert "max_completion_tokens" in response.text
    assert not re.search(r"<script|<link|https?://|=\"ui/", response.text)
    assert "script" not in response.headers["content-security-policy"]
