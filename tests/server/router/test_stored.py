"""Requests about what one upstream has stored, and requests that all upstreams get."""

import json

import pytest

from plugserve.server.operations.access import Access
from plugserve.server.router.stored_ids import IdReader, StoredId, StoredIds, asked_id
from tests.server.router.stub_upstream import answers, plain, streams


def stores(stub, number=0):
    """Responses with ids of the stub's own; it knows only those."""

    async def answer(seen, writer):
        if seen.method == "POST":
            writer.write(plain({"object": "response", "id": f"resp_{stub.name}{len(stub.seen):04}", "output": []}))
        else:
            is_mine = seen.path.split("/")[3].startswith(f"resp_{stub.name}")
            writer.write(plain({"from": stub.name}, 200 if is_mine else 404))

    stub.answer = answer


@pytest.fixture
async def stored(stubs):
    made = await stubs("aa", "bb")
    for stub in made:
        stores(stub)
    return made


async def ask(router, **fields):
    return await router.client.post("/v1/responses", json={"model": "m", "input": "x", **fields})


async def test_a_conversation_stays_with_the_upstream_that_stored_it(route, stored):
    async with route(*stored) as router:
        first = [(await ask(router)).json()["id"] for _ in range(2)]
        assert {id[:7] for id in first} == {"resp_aa", "resp_bb"}
        for id in first:
            for _ in range(3):
                assert (await ask(router, previous_response_id=id)).json()["id"][:7] == id[:7]
            assert (await router.client.get(f"/v1/responses/{id}")).json()["from"] == id[5:7]
            assert (await router.client.delete(f"/v1/responses/{id}")).json()["from"] == id[5:7]


async def test_ids_are_read_from_streams(route, stubs):
    one, other = await stubs("aa", "bb")
    for stub in (one, other):
        event = {"type": "response.created", "response": {"id": f"resp_{stub.name}0001", "object": "response"}}
        stub.answer = streams(b"event: response.created\ndata: " + json.dumps(event).encode() + b"\n\n")
    async with route(one, other) as router:
        for _ in range(2):
            await ask(router, stream=True)
        for _ in range(3):
            await ask(router, previous_response_id="resp_bb0001", stream=True)
    assert (len(one.seen), len(other.seen)) == (1, 4)


async def test_an_unknown_id_is_searched_at_every_upstream(route, stored):
    async with route(*stored) as router:
        for _ in range(2):
            assert (await router.client.get("/v1/responses/resp_bb0009")).json()["from"] == "bb"
        assert (await ask(router, previous_response_id="resp_bb0008")).json()["id"].startswith("resp_bb")
        assert (await router.client.get("/v1/responses/resp_cc0000")).status_code == 404


async def test_the_holder_being_down_is_503_not_404(route, stored):
    async with route(*stored) as router:
        id = (await ask(router)).json()["id"]
        holder = next(stub for stub in stored if stub.name == id[5:7])
        holder.health = 503
        await router.state.ask_upstreams()
        response = await ask(router, previous_response_id=id)
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")


async def test_what_one_key_stored_is_not_found_with_another(route, stored):
    async with route(*stored, access=Access(keys=["one", "two"]), keys=["shared"]) as router:
        router.client.headers["authorization"] = "Bearer one"
        id = (await ask(router)).json()["id"]
        assert (await router.client.get(f"/v1/responses/{id}")).status_code == 200
        router.client.headers["authorization"] = "Bearer two"
        assert (await router.client.get(f"/v1/responses/{id}")).status_code == 404
        assert (await ask(router, previous_response_id=id)).status_code == 404


@pytest.mark.parametrize(
    ("path", "body", "found"),
    [
        ("/v1/responses/resp_1234", None, StoredId("responses", "resp_1234")),
        ("/v1/responses/resp_1234/cancel", {}, StoredId("responses", "resp_1234")),
        ("/v1/files/file-1234/content", None, StoredId("files", "file-1234")),
        ("/v1/batches/batch_1234", None, StoredId("batches", "batch_1234")),
        ("/v1/batches", {"input_file_id": "file-1234"}, StoredId("files", "file-1234")),
        ("/v1/responses", {"previous_response_id": "resp_1234"}, StoredId("responses", "resp_1234")),
        ("/v1/responses", {"previous_response_id": "../../x"}, None),
        ("/v1/responses", {"previous_response_id": None}, None),
        ("/v1/responses/compact", {}, None),
        ("/v1/chat/completions", {}, None),
    ],
)
def test_ids_are_found_in_paths_and_bodies(path, body, found):
    assert asked_id(path, body) == found


def test_ids_are_bounded_and_kept_by_use():
    ids = StoredIds(max_ids=10)
    ids.note("me", "first", "a")
    for number in range(50):
        ids.note("me", f"id{number}", "b")
        assert ids.find("me", "first") == "a"
    assert len(ids) == 10
    assert ids.find("you", "first") is None


def test_a_batch_names_its_output_file():
    reader = IdReader("GET", "/v1/batches/batch_1234", 200)
    assert reader.read(b'{"id": "batch_1234", "output_file_id": "file-out1"}') == ["batch_1234", "file-out1"]
    assert not IdReader("GET", "/v1/responses/resp_1", 200).is_reading
    assert not IdReader("POST", "/v1/responses", 400).is_reading


# ---- to all


async def load(router, path="/v1/load_lora_adapter", **fields):
    body = {"lora_name": "l", "lora_path": "/x", "base_model_name": "m", **fields}
    return await router.client.post(path, json=body)


async def test_an_adapter_is_loaded_on_every_upstream_of_its_model(route, stubs):
    one, other, third = await stubs("a", "b", "c")
    third.models = ("n",)

    def loads(stub):
        async def answer(seen, writer):
            stub.models = (*stub.models, "l")
            writer.write(plain({"status": "ok"}))

        return answer

    for stub in (one, other, third):
        stub.answer = loads(stub)
    async with route(one, other, third) as router:
        assert (await load(router)).json() == {"status": "ok"}
        assert [len(stub.seen) for stub in (one, other, third)] == [1, 1, 0]
        listed = [entry["id"] for entry in (await router.client.get("/v1/models")).json()["data"]]
        assert listed == ["m", "l", "n"]  # known before the answer


async def test_a_load_that_failed_on_some_can_be_repeated(route, stubs):
    one, other = await stubs("a", "b")
    one.models = ("m", "l")
    other.answer = answers({"error": {"message": "no such file"}}, 400)
    async with route(one, other) as router:
        assert (await load(router)).status_code == 400
        assert (len(one.seen), len(other.seen)) == (0, 1)
        await load(router, load_inplace=True)
        assert (len(one.seen), len(other.seen)) == (1, 2)


async def test_a_load_that_fails_on_some_says_on_which(route, stubs):
    one, other = await stubs("a", "b")
    other.answer = answers({"error": {"message": "no such file"}}, 400)
    async with route(one, other) as router:
        response = await load(router)
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "1 of 2 servers failed: b: no such file"


async def test_an_adapter_is_unloaded_where_it_is(route, stubs):
    one, other = await stubs("a", "b")
    other.models = ("m", "l")
    async with route(one, other) as router:
        await load(router, "/v1/unload_lora_adapter")
    assert (len(one.seen), len(other.seen)) == (0, 1)
