"""Which models are known, which upstreams are up, and how that is found out."""

import asyncio
import shutil
import ssl
import subprocess

import pytest

from plugserve.core.errors import ConfigError
from plugserve.server.router.upstream_address import read_addresses
from tests.server.router.stub_upstream import answers, plain


async def test_requests_go_to_an_upstream_that_serves_the_model(route, stubs):
    one, other = await stubs("a", "b")
    one.models, other.models = ("m", "both"), ("n", "both")
    async with route(one, other) as router:
        assert {(await router.chat(model="n")).json()["from"] for _ in range(4)} == {"b"}
        assert {(await router.chat(model="m")).json()["from"] for _ in range(4)} == {"a"}
        assert {(await router.chat(model="both")).json()["from"] for _ in range(4)} == {"a", "b"}
        listed = (await router.client.get("/v1/models")).json()
        assert [entry["id"] for entry in listed["data"]] == ["m", "both", "n"]
        assert (await router.client.get("/v1/models/n")).json()["owned_by"] == "b"
        assert (await router.client.get("/v1/models/x")).status_code == 404


async def test_an_unknown_model_is_404_in_the_apis_shape(route, stubs):
    (stub,) = await stubs("a")
    async with route(stub) as router:
        response = await router.chat(model="x")
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"
        response = await router.client.post("/v1/messages", json={"model": "x", "messages": []})
        assert response.json()["type"] == "error"


async def test_a_name_that_no_list_has_is_asked_for(route, stubs):
    one, other = await stubs("a", "b")

    async def knows_short(seen, writer):
        is_known = seen.method == "POST" or seen.path == "/v1/models/org/short"
        writer.write(plain({"from": "b"}, 200 if is_known else 404))

    one.answer = answers({}, 404)
    other.answer = knows_short
    async with route(one, other) as router:
        assert [(await router.chat(model="org/short")).json() for _ in range(4)] == [{"from": "b"}] * 4
        assert [seen.target for seen in one.seen] == ["/v1/models/org/short"]
        assert (await router.client.get("/v1/models/org/short")).json() == {"from": "b"}
        for _ in range(5):
            assert (await router.chat(model="else")).status_code == 404
        assert [seen.target for seen in one.seen][1:] == ["/v1/models/else"]  # not again for a while


async def test_a_request_without_a_model_goes_where_the_first_one_is_served(route, stubs):
    one, other = await stubs("a", "b")
    other.models = ("n",)
    async with route(one, other) as router:
        assert {(await router.chat(model=None)).json()["from"] for _ in range(4)} == {"a"}


async def test_upstreams_that_have_loaded_the_model_come_first(route, stubs):
    one, other = await stubs("a", "b", status="unloaded")
    async with route(one, other) as router:
        first = {(await router.chat()).json()["from"] for _ in range(6)}
        assert len(first) == 1  # one is made to load it, not both
        other.status = "loaded"
        await router.state.ask_upstreams()
        assert {(await router.chat()).json()["from"] for _ in range(6)} == {"b"}
        other.die()
        assert (await router.chat()).json()["from"] == "a"


async def test_a_model_whose_upstreams_are_down_is_503(route, stubs):
    one, other = await stubs("a", "b")
    other.models = ("n",)
    async with route(one, other) as router:
        other.health = 503
        await router.state.ask_upstreams()
        assert (await router.chat(model="n")).status_code == 503
        assert (await router.chat(model="m")).status_code == 200
        body = (await router.client.get("/health")).json()
        assert body["status"] == "ok"
        assert body["upstreams"]["b"]["reason"] == "its /health answers 503"
        assert [entry["id"] for entry in (await router.client.get("/v1/models")).json()["data"]] == ["m"]


async def test_probes_find_new_models_and_recoveries(route, stubs, eventually):
    one, other = await stubs("a", "b")
    other.health = 503
    async with route(one, other, probes=True, probe_interval=0.05) as router:
        assert not router.upstream("b").is_up
        other.health = 200
        one.models = ("m", "new")
        await eventually(lambda: router.upstream("b").is_up)
        await eventually(lambda: "new" in router.upstream("a").models)
        one.die()
        await eventually(lambda: not router.upstream("a").is_up)
        await one.start(one.port)
        await eventually(lambda: router.upstream("a").is_up)


async def test_a_server_without_health_is_asked_for_its_models_alone(route, stubs):
    (stub,) = await stubs("a", health=404)
    async with route(stub) as router:
        assert router.upstream("a").is_up
        await router.state.ask_upstreams()
    assert stub.num_probes == 3


async def test_probes_send_the_upstreams_key(route, stubs):
    one, other = await stubs("a", "b", key="secret")
    async with route(one, other, keys=["a=secret"]) as router:
        assert router.upstream("a").is_up
        assert "--upstream-key" in router.upstream("b").reason


async def test_pauses_between_probes_of_a_dead_upstream_grow(route, stubs):
    (stub,) = await stubs("a")
    async with route(stub) as router:
        stub.die()
        await router.state.ask_upstreams()
        upstream = router.upstream("a")
        assert [upstream.next_pause_s() for _ in range(5)] == [0.5, 1, 2, 4, 5]
        await stub.start(stub.port)
        await router.state.ask_upstreams()
        assert upstream.next_pause_s() == 5


async def test_requests_that_break_off_in_a_row_leave_an_upstream_out(route, stubs):
    one, other = await stubs("a", "b")

    async def dies(seen, writer):
        writer.transport.abort()

    one.answer = dies
    async with route(one, other) as router:
        statuses = [(await router.chat()).status_code for _ in range(12)]
        assert statuses.count(502) == 3
        assert not router.upstream("a").is_up
        await router.state.ask_upstreams()  # it says that it is well
        assert not router.upstream("a").is_up


async def test_the_last_upstream_is_not_left_out_for_requests_that_break_off(route, stubs):
    one, other = await stubs("a", "b")

    async def dies(seen, writer):
        writer.transport.abort()

    one.answer = other.answer = dies
    async with route(one, other) as router:
        for _ in range(20):
            assert (await router.chat()).status_code == 502
        assert router.state.fleet.num_up == 1
        one.answer = other.answer = answers({})
        assert (await router.chat()).status_code == 200


async def test_requests_of_an_upstream_that_hangs_are_ended(route, stubs, eventually, monkeypatch):
    (stub,) = await stubs("a")
    monkeypatch.setattr("plugserve.server.router.probes._PROBE_S", 0.05)
    monkeypatch.setattr("plugserve.server.router.probes._GIVE_UP_S", 0.1)

    async def hangs(seen, writer):
        await asyncio.sleep(30)

    stub.answer = hangs
    async with route(stub, probes=True, probe_interval=0.05) as router:
        waiting = asyncio.create_task(router.chat())
        await eventually(lambda: stub.seen)
        stub.hangs = True
        response = await waiting
    assert response.status_code == 502


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make certificates")
async def test_https_upstreams_are_checked(route, stubs, tmp_path, monkeypatch):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    words = [*command.split(), "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(words, check=True, capture_output=True)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(cert, key)
    (stub,) = await stubs("a", tls=tls)
    async with route(stub) as router:
        assert "certificate verify failed" in router.upstream("a").reason
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    async with route(stub) as router:
        for _ in range(3):
            assert (await router.chat()).json() == {"from": "a"}
        assert router.upstream("a").client.num_connections == 1


async def test_metrics_count_by_upstream(route, stubs):
    one, other = await stubs("a", "b")
    other.answer = answers({}, 400)
    async with route(one, other) as router:
        for _ in range(4):
            await router.chat()
        assert await router.metric("upstream_requests_total", upstream="a", status="200") == 2
        assert await router.metric("upstream_requests_total", upstream="b", status="400") == 2
        assert await router.metric("upstream_up", upstream="a") == 1
        assert await router.metric("choices_total", reason="round-robin") == 4
        assert await router.metric("upstream_seconds_count", upstream="a") == 2


async def test_prefix_affinity_is_counted(route, stubs):
    one, other = await stubs("a", "b")
    async with route(one, other, policy="prefix") as router:
        answered = {(await router.chat("text " * 300)).json()["from"] for _ in range(5)}
        assert len(answered) == 1
        assert await router.metric("choices_total", reason="hit") == 4
        assert 0 < await router.metric("prefix_hit_bytes_total") < await router.metric("prefix_bytes_total")


# ---- addresses


def test_addresses_are_read():
    named, plain, v6 = read_addresses(
        ["big=https://big.example/api/v1/", "http://10.0.0.1:8000", "http://[::1]:9"], ["all=", "big=k=1"][1:]
    )
    assert (named.name, named.url, named.port, named.path, named.key) == (
        "big",
        "https://big.example/api",
        443,
        "/api",
        "k=1",
    )
    assert (plain.name, plain.url, plain.key) == ("10.0.0.1:8000", "http://10.0.0.1:8000", None)
    assert v6.host_field == "[::1]:9"


@pytest.mark.parametrize(
    ("upstreams", "keys", "says"),
    [
        ([], [], "--upstream http://HOST:PORT"),
        (["localhost:8000"], [], "got 'localhost:8000'"),
        (["ftp://x"], [], "http://HOST:PORT or https"),
        (["http://x:99999"], [], "http://HOST:PORT"),
        (["http://u:p@x"], [], "--upstream-key"),
        (["http://x?y"], [], "path only"),
        (["http://x", "http://x"], [], "two upstreams are named 'x'"),
        (["a b=http://x"], [], "the name may hold"),
        (["http://x"], ["k", "l"], "given twice for every upstream"),
        (["a=http://x"], ["a="], "--upstream-key must be"),
    ],
)
def test_faulty_addresses_are_one_line(upstreams, keys, says):
    with pytest.raises(ConfigError) as error:
        read_addresses(upstreams, keys)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
