"""The OpenAPI document and the page: every route is there, and nothing is fetched from elsewhere."""

import re

from plugserve.server.api.chat.body import ChatBody
from plugserve.server.api.openapi.document import openapi_document
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


async def test_page_works_offline(server):
    response = await server.client.get("/docs")
    assert response.headers["content-type"].startswith("text/html")
    page = response.text
    assert "/v1/chat/completions" in page
    assert "max_completion_tokens" in page
    assert "<script" not in page
    assert "http://" not in page
    assert "https://" not in page
