"""/v1/files: each tenant's own, within limits."""

import asyncio
import json

import openai
import pytest

from plugserve.server.batches.file_store import StorageLimits
from plugserve.server.batches.service import BatchService
from plugserve.server.operations.access import Access
from plugserve.server.worker.app import build_app
from tests.server.conftest import running
from tests.server.fakes import FakeEngine, says, served

KEYS = {"ada": {"Authorization": "Bearer ada"}, "bob": {"Authorization": "Bearer bob"}}


@pytest.fixture
def store(tokenizer, make_state, tmp_path):
    """store(limits) -> a server that stores files, with two keys."""

    def start(**limits):
        state = make_state(served(FakeEngine(says(tokenizer, "hi")), tokenizer), access=Access(keys=list(KEYS)))
        state.batches = BatchService(state, tmp_path / "store", StorageLimits(**limits), 4)
        return running(state)

    return start


async def upload(server, content=b"{}\n", who="ada", **fields):
    data = {"purpose": "batch", **fields}
    return await server.client.post(
        "/v1/files", files={"file": ("in.jsonl", content)}, data=data, headers=KEYS[who], timeout=20
    )


async def get(server, path, who="ada", **params):
    return await server.client.get(path, headers=KEYS[who], params=params)


async def test_a_file_is_stored_shown_and_deleted(store):
    async with store() as server:
        content = bytes(range(256)) * 3000 + b"\r\n--not-the-boundary\r\n"
        file = (await upload(server, content)).json()
        assert (file["object"], file["bytes"], file["filename"], file["purpose"]) == (
            "file", len(content), "in.jsonl", "batch",
        )  # fmt: skip
        assert (await get(server, f"/v1/files/{file['id']}")).json() == file
        assert (await get(server, f"/v1/files/{file['id']}/content")).content == content
        assert [one["id"] for one in (await get(server, "/v1/files")).json()["data"]] == [file["id"]]
        deleted = await server.client.delete(f"/v1/files/{file['id']}", headers=KEYS["ada"])
        assert deleted.json() == {"id": file["id"], "object": "file", "deleted": True}
        assert (await get(server, f"/v1/files/{file['id']}")).status_code == 404
        assert (await server.client.delete(f"/v1/files/{file['id']}", headers=KEYS["ada"])).status_code == 404


async def test_another_key_finds_nothing(store):
    async with store() as server:
        id = (await upload(server)).json()["id"]
        for path in (f"/v1/files/{id}", f"/v1/files/{id}/content"):
            assert (await get(server, path, "bob")).status_code == 404
        assert (await get(server, "/v1/files", "bob")).json()["data"] == []
        assert (await server.client.delete(f"/v1/files/{id}", headers=KEYS["bob"])).status_code == 404
        assert (await server.client.get(f"/v1/files/{id}")).status_code == 401
        assert (await get(server, f"/v1/files/{id}")).status_code == 200


@pytest.mark.parametrize("id", ["..", "%2e%2e%2flock", "file-", "file-" + "g" * 32, "x" * 5000, "file-" + "0" * 32])
async def test_an_id_names_no_other_place(id, store):
    async with store() as server:
        await upload(server)
        assert (await get(server, f"/v1/files/{id}/content")).status_code == 404
        assert (await server.client.delete(f"/v1/files/{id}", headers=KEYS["ada"])).status_code in (404, 405)


async def test_lists_have_pages(store):
    async with store() as server:
        ids = [(await upload(server)).json()["id"] for _ in range(5)]
        newest = [one["id"] for one in (await get(server, "/v1/files")).json()["data"]]
        assert sorted(newest) == sorted(ids)
        first = (await get(server, "/v1/files", limit=2)).json()
        assert (len(first["data"]), first["has_more"], first["last_id"]) == (2, True, newest[1])
        rest = (await get(server, "/v1/files", after=newest[1])).json()
        assert [one["id"] for one in rest["data"]] == newest[2:]
        assert not rest["has_more"]
        upwards = (await get(server, "/v1/files", order="asc")).json()["data"]
        assert [one["id"] for one in upwards] == newest[::-1]
        for wrong in ({"limit": 0}, {"limit": "x"}, {"order": "up"}, {"after": "file-x"}):
            assert (await get(server, "/v1/files", **wrong)).status_code == 400


async def test_a_tenants_files_are_bounded_in_number_and_bytes(store):
    async with store(max_count=2, max_bytes=1000) as server:
        assert (await upload(server, b"x" * 1001)).json()["error"]["code"] == "storage_limit_reached"
        assert (await upload(server, b"x" * 400)).status_code == 200
        assert (await upload(server, b"x" * 800)).status_code == 413
        id = (await upload(server, b"x" * 100)).json()["id"]
        refused = await upload(server, b"x")
        assert refused.status_code == 413
        assert "2 files are stored, as many as this server keeps (--max-files)" in refused.json()["error"]["message"]
        assert (await upload(server, b"x" * 900, who="bob")).status_code == 200
        await server.client.delete(f"/v1/files/{id}", headers=KEYS["ada"])
        assert (await upload(server, b"x")).status_code == 200


async def test_uploads_at_the_same_time_stay_within_the_limit(store):
    async with store(max_count=3) as server:
        answers = await asyncio.gather(*(upload(server) for _ in range(8)))
        assert sorted(answer.status_code for answer in answers) == [200] * 3 + [413] * 5


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content-Type": "application/json"}, b"{}", 415),
        ({"Content-Type": "multipart/form-data"}, b"x", 400),
        ({"Content-Type": "multipart/form-data; boundary=b"}, b"x", 400),
        ({"Content-Type": "multipart/form-data; boundary=b"}, b"--b\r\n\r\n", 400),
        ({"Content-Type": "multipart/form-data; boundary=b"}, b"--b\r\nContent-Disposition: x\r\n\r\n", 400),
        ({"Content-Type": "multipart/form-data; boundary=b"}, b"--b--\r\n", 400),
        ({"Content-Type": "multipart/form-data; boundary=b"}, b"--b\r\nA: b\r\n\r\nx\r\n--b--", 400),
        ({"Content-Type": "multipart/form-data; boundary=b"}, b"--b" + b"\r\nA: b\r\n\r\nx\r\n--b" * 99, 400),
    ],
)
async def test_a_form_that_cant_be_read_is_refused(headers, body, status, store):
    async with store() as server:
        answer = await server.client.post("/v1/files", content=body, headers={**KEYS["ada"], **headers})
        assert answer.status_code == status
        assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_fields_are_checked(store):
    async with store() as server:
        assert (await upload(server, purpose="fine-tune")).json()["error"]["param"] == "purpose"
        data = {"purpose": "batch", "file": "text, not a file"}
        answer = await server.client.post("/v1/files", files={"x": b"x"}, data=data, headers=KEYS["ada"])
        assert answer.json()["error"]["param"] == "file"
        life = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
        file = (await upload(server, **life)).json()
        assert file["expires_at"] == file["created_at"] + 3600
        assert (await upload(server, **{**life, "expires_after[seconds]": "5"})).status_code == 400


async def test_an_expired_file_is_gone(store, monkeypatch):
    async with store() as server:
        life = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
        file = (await upload(server, **life)).json()
        monkeypatch.setattr("plugserve.server.batches.file_store.time.time", lambda: file["expires_at"])
        assert (await get(server, f"/v1/files/{file['id']}")).status_code == 404


async def test_a_server_without_a_store_says_so(server):
    for path in ("/v1/files", "/v1/batches"):
        answer = await server.client.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unsupported_endpoint")


async def test_openais_client_uploads_and_downloads(store):
    async with store() as server:
        base = f"http://127.0.0.1:{server.port}/v1"
        async with openai.AsyncOpenAI(base_url=base, api_key="ada") as client:
            content = json.dumps({"custom_id": "ü"}).encode()
            file = await client.files.create(file=("ü.jsonl", content), purpose="batch")
            assert (file.filename, file.bytes, file.status) == ("ü.jsonl", len(content), "processed")
            assert (await client.files.content(file.id)).content == content
            assert [one.id async for one in client.files.list()] == [file.id]
            assert (await client.files.delete(file.id)).deleted


def test_routes_are_there(make_state):
    paths = {"/" + route.path for route in build_app(make_state(), is_optimised=False).router.routes}
    assert {"/v1/files", "/v1/files/<file_id:str>/content", "/v1/batches"} <= paths
