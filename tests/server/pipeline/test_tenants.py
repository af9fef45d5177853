"""What belongs to one API key is not another key's: stored responses, cached prefixes, request ids."""

from __future__ import annotations

import asyncio

import pytest

from plugserve import Identity
from plugserve.server.operations.access import Access
from plugserve.server.operations.service_limits import ServiceLimits

ADA, BOB = {"Authorization": "Bearer ada-key"}, {"Authorization": "Bearer bob-key"}


def with_keys(**limits):
    return {"state": {"access": Access(keys=["ada-key", "bob-key"]), "limits": ServiceLimits(**limits)}}


async def stored_by_ada(server):
    response = await server.client.post("/v1/responses", json={"input": "my secret"}, headers=ADA)
    assert response.status_code == 200
    return response.json()["id"]


async def test_owner_reads_continues_and_deletes_a_response(serve):
    async with serve(**with_keys()) as server:
        id = await stored_by_ada(server)
        assert (await server.client.get(f"/v1/responses/{id}", headers=ADA)).json()["id"] == id
        asked = {"input": "go on", "previous_response_id": id}
        assert (await server.client.post("/v1/responses", json=asked, headers=ADA)).status_code == 200
        assert (await server.client.delete(f"/v1/responses/{id}", headers=ADA)).json()["deleted"]


async def test_response_of_another_key_is_not_found(serve):
    async with serve(**with_keys()) as server:
        id = await stored_by_ada(server)
        asked = {"input": "go on", "previous_response_id": id}
        assert (await server.client.get(f"/v1/responses/{id}", headers=BOB)).status_code == 404
        response = await server.client.post("/v1/responses", json=asked, headers=BOB)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "previous_response_not_found")
        assert (await server.client.delete(f"/v1/responses/{id}", headers=BOB)).status_code == 404
        assert (await server.client.get(f"/v1/responses/{id}", headers=ADA)).status_code == 200


async def test_tenant_of_a_plugin_owns_what_its_users_store(serve):
    async with serve() as server:
        server.state.hooks.refusal = Identity("ada", tenant="acme")
        id = (await server.client.post("/v1/responses", json={"input": "x"})).json()["id"]
        server.state.hooks.refusal = Identity("bob", tenant="acme")
        assert (await server.client.get(f"/v1/responses/{id}")).status_code == 200
        server.state.hooks.refusal = Identity("eve", tenant="other")
        assert (await server.client.get(f"/v1/responses/{id}")).status_code == 404


async def salts(server, **fields):
    for headers in (ADA, BOB):
        await server.client.post("/v1/completions", json={"prompt": "hi", **fields}, headers=headers)
    return [request.cache_salt for request in server.engine.calls]


async def test_cached_prefixes_are_kept_apart_by_key(serve):
    async with serve(**with_keys()) as server:
        ada, bob = await salts(server)
        assert ada != bob
        assert "ada-key" not in ada


async def test_salts_of_clients_stay_apart_from_other_keys(serve):
    async with serve(**with_keys()) as server:
        plain = await salts(server)
        salted = (await salts(server, cache_salt="mine"))[2:]
        assert len({*plain, *salted}) == 4


async def test_prefixes_may_be_shared(serve):
    async with serve(**with_keys(shares_prefixes=True)) as server:
        assert await salts(server) == ["", ""]


@pytest.mark.parametrize("by_header", [False, True])
async def test_requests_of_one_id_and_different_keys_never_meet(serve, by_header):
    async with serve("a" * 40, **with_keys()) as server:

        async def ask(headers, prompt):
            fields = {} if by_header else {"request_id": "same"}
            extra = {"X-Request-Id": "same"} if by_header else {}
            body = {"prompt": prompt, "max_tokens": 20, **fields}
            return await server.client.post("/v1/completions", json=body, headers=headers | extra)

        answers = await asyncio.gather(ask(ADA, "one"), ask(BOB, "two"))
        assert [answer.status_code for answer in answers] == [200, 200]
        assert len({view.key for view in server.state.hooks.authorized}) == 2
        assert len(server.engine.calls) == 2
