"""--root-path: a proxy serves this server below a path, and strips it or doesn't."""

import pytest

from plugserve.server.operations.access import Access
from plugserve.server.supervisor.substitute_server import SubstituteServer
from plugserve.server.worker.http.root_path import without_root_path
from tests.core.settings.reading import message, settings
from tests.server.conftest import running
from tests.server.fakes import FakeEngine, says, served


@pytest.fixture
async def server(tokenizer, make_state):
    state = make_state(
        served(FakeEngine(says(tokenizer, "hello")), tokenizer), root_path="/llm", access=Access(keys=["secret"])
    )
    async with running(state, root_path="/llm") as server:
        server.client.headers["authorization"] = "Bearer secret"
        yield server


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/llm/v1/models", "/v1/models"),
        ("/llm", "/"),
        ("/llm/", "/"),
        ("/llm?a=/llm", "/?a=/llm"),
        ("/llm/llm/x", "/llm/x"),
        ("/v1/models", "/v1/models"),
        ("/llms/x", "/llms/x"),
        ("http://host/llm/x", "http://host/x"),
        ("http://host", "http://host"),
        ("*", "*"),
    ],
)
def test_the_path_is_taken_off_once(target, expected):
    assert without_root_path(target, "/llm") == expected
    assert without_root_path(target, "") == target


@pytest.mark.parametrize("prefix", ["", "/llm"])
async def test_requests_with_and_without_the_path_are_served(server, prefix):
    body = {"messages": [{"role": "user", "content": "hi"}]}
    assert (await server.client.post(f"{prefix}/v1/chat/completions", json=body)).status_code == 200
    assert (await server.client.get(f"{prefix}/docs")).status_code == 200
    assert (await server.client.get(f"{prefix}/v1/models/model")).json()["id"] == "fake/model"
    assert (await server.client.get(f"{prefix}/nothing")).status_code == 404


@pytest.mark.parametrize("prefix", ["", "/llm"])
async def test_the_path_changes_nothing_about_who_is_let_in(server, prefix):
    del server.client.headers["authorization"]
    assert (await server.client.get(f"{prefix}/health")).status_code == 200
    assert (await server.client.get(f"{prefix}/v1/models")).status_code == 401


@pytest.mark.parametrize("path", ["/llm", "/llm/", "/"])
async def test_the_root_sends_browsers_to_the_page_and_names_it_to_programs(server, path):
    answer = await server.client.get(path, headers={"accept": "text/html,*/*"})
    assert '<base href="/llm/">' in answer.text
    assert (await server.client.get(path)).json()["docs"] == "/llm/docs"


async def test_the_document_names_the_path(server):
    assert (await server.client.get("/openapi.json")).json()["servers"] == [{"url": "/llm"}]


async def test_without_the_setting_the_redirect_follows_the_proxys_path(serve):
    async with serve(state={"serves_page": False}) as server:
        answer = await server.client.get("/", headers={"accept": "text/html"})
        assert answer.headers["location"] == "docs"
        assert "servers" not in (await server.client.get("/openapi.json")).json()


def test_probes_get_an_answer_below_the_path_while_all_workers_hang():
    substitute = SubstituteServer(None, root_path="/llm")
    assert b'"status":"hung"' in substitute._response(b"GET /llm/health HTTP/1.1\r\n\r\n")
    assert b'"status":"hung"' in substitute._response(b"GET /health HTTP/1.1\r\n\r\n")


@pytest.mark.parametrize("given", ["/llm", "llm", "/llm/", " /llm "])
def test_any_spelling_of_the_path_is_one(given):
    assert settings("--root-path", given).root_path == "/llm"


@pytest.mark.parametrize("given", ["/v1", "v1/llm", "/a b", "/a?b", "/a//b", "/../x", "http://host/llm"])
def test_a_path_that_is_none_or_the_apis_own_is_refused(given):
    assert message("--root-path", given).startswith("--root-path must be a path such as /llm")


def test_a_slash_is_no_path():
    assert settings("--root-path", "/").root_path == ""
