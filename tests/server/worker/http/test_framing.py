"""HTTP by RFC 9112, byte by byte: what proxies and servers may read differently is refused, the rest is served."""

import asyncio
import gzip
import json
import zlib

import pytest

from plugserve.server.operations.access import Access
from plugserve.server.operations.service_limits import ServiceLimits
from tests.server.conftest import running
from tests.server.fakes import FakeEngine, says, served

BODY = b'{"prompt":"hi"}'
ZIPPED = gzip.compress(BODY, mtime=0)
POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
KEY = "the-key"


@pytest.fixture
def start(tokenizer, make_state):
    def start(*, keys=(), limits=None):
        engine = FakeEngine(says(tokenizer, "hello world!"))
        state = make_state(served(engine, tokenizer), access=Access(keys=keys), limits=limits)
        return running(state)

    return start


async def exchange(port, *parts, pause_s=0.02, until=None):
    """What the server answers to parts until until comes, it closes, or it is silent for a moment."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)
        while (until is None or until not in answer) and (piece := await asyncio.wait_for(reader.read(65536), 0.5)):
            answer += piece
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.close()
    return answer


def status_of(answer):
    assert answer.startswith(b"HTTP/1.1 "), answer
    return int(answer[9:12])


def chunked(*pieces, end=b"0\r\n\r\n"):
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + end


def post(fields, body=b""):
    return POST + fields + b"\r\n" + body


GET = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n"

MALFORMED = {
    "no host": b"GET /v1/models HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /v1/models HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
    "two different hosts": b"GET /v1/models HTTP/1.1\r\nHost: x\r\nhOST: y\r\n\r\n",
    "two hosts in 1.0": b"GET /v1/models HTTP/1.0\r\nHost: x\r\nHost: x\r\n\r\n",
    "host with a path": b"GET /v1/models HTTP/1.1\r\nHost: x/y\r\n\r\n",
    "host with a user": b"GET /v1/models HTTP/1.1\r\nHost: a@x\r\n\r\n",
    "host with a space": b"GET /v1/models HTTP/1.1\r\nHost: x y\r\n\r\n",
    "hosts in a list": b"GET /v1/models HTTP/1.1\r\nHost: x, y\r\n\r\n",
    "bare CR in a value": GET + b"X-A: b\rX-B: c\r\n\r\n",
    "bare LF in a value": GET + b"X-A: b\nX-B: c\r\n\r\n",
    "NUL in a value": GET + b"X-A: b\x00c\r\n\r\n",
    "control character in a value": GET + b"X-A: b\x1bc\r\n\r\n",
    "DEL in a value": GET + b"X-A: b\x7fc\r\n\r\n",
    "space before the colon": GET + b"X-A : b\r\n\r\n",
    "tab before the colon": GET + b"Content-Length\t: 0\r\n\r\n",
    "space before the name": b"GET /v1/models HTTP/1.1\r\n Host: x\r\n\r\n",
    "folded line": GET + b"X-A: b\r\n c\r\n\r\n",
    "folded line with a tab": GET + b"X-A: b\r\n\tc\r\n\r\n",
    "no colon": GET + b"X-A\r\n\r\n",
    "no name": GET + b": b\r\n\r\n",
    "name with a bracket": GET + b"X(A): b\r\n\r\n",
    "name that is not ASCII": GET + b"X-\xc3\xa9: b\r\n\r\n",
    "NUL in a name": GET + b"X\x00A: b\r\n\r\n",
    "lines that end in LF": b"GET /v1/models HTTP/1.1\nHost: x\n\n",
    "request line that ends in LF": b"GET /v1/models HTTP/1.1\nHost: x\r\n\r\n",
    "request line with a bare CR": b"GET /v1/models\r HTTP/1.1\r\nHost: x\r\n\r\n",
    "forged log line": b"GET a\nERROR:forged HTTP/1.1\r\nHost: x\r\n\r\n",
    "no version": b"GET /v1/models\r\nHost: x\r\n\r\n",
    "version of one digit": b"GET /v1/models HTTP/1\r\nHost: x\r\n\r\n",
    "version in lower case": b"GET /v1/models http/1.1\r\nHost: x\r\n\r\n",
    "two spaces": b"GET  /v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
    "space at the end": b"GET /v1/models HTTP/1.1 \r\nHost: x\r\n\r\n",
    "tab between": b"GET\t/v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
    "space in the target": b"GET /v1/ models HTTP/1.1\r\nHost: x\r\n\r\n",
    "target that is not ASCII": b"GET /v1/mod\xc3\xa9ls HTTP/1.1\r\nHost: x\r\n\r\n",
    "control character in the target": b"GET /v1/\x1bmodels HTTP/1.1\r\nHost: x\r\n\r\n",
    "NUL in the target": b"GET /v1/\x00models HTTP/1.1\r\nHost: x\r\n\r\n",
    "target without a slash": b"GET v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
    "target with a fragment": b"GET /v1/models#a HTTP/1.1\r\nHost: x\r\n\r\n",
    "star for GET": b"GET * HTTP/1.1\r\nHost: x\r\n\r\n",
    "absolute target without a host": b"GET http:///v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
    "absolute target with a bad port": b"GET http://x:99999999/v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
    "authority as target": b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
    "method with a bracket": b"G(T /v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
    "empty method": b" /v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "two lengths": post(b"Content-Length: 15\r\nContent-Length: 15\r\n", BODY),
    "two different lengths": post(b"Content-Length: 15\r\nContent-Length: 16\r\n", BODY),
    "lengths in a list": post(b"Content-Length: 15, 15\r\n", BODY),
    "negative length": post(b"Content-Length: -15\r\n", BODY),
    "signed length": post(b"Content-Length: +15\r\n", BODY),
    "length with an underscore": post(b"Content-Length: 1_5\r\n", BODY),
    "length in hexadecimal": post(b"Content-Length: 0xf\r\n", BODY),
    "length with a point": post(b"Content-Length: 15.0\r\n", BODY),
    "length with a space": post(b"Content-Length: 1 5\r\n", BODY),
    "length in other digits": post(b"Content-Length: \xd9\xa1\xd9\xa5\r\n", BODY),
    "empty length": post(b"Content-Length:\r\n", BODY),
    "length and chunks": post(b"Content-Length: 15\r\nTransfer-Encoding: chunked\r\n", chunked(BODY)),
    "chunks and length": post(b"Transfer-Encoding: chunked\r\nContent-Length: 15\r\n", chunked(BODY)),
    "chunked twice": post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", chunked(BODY)),
    "chunked, chunked": post(b"Transfer-Encoding: chunked, chunked\r\n", chunked(BODY)),
    "chunked not last": post(b"Transfer-Encoding: chunked, gzip\r\n", chunked(BODY)),
    "unknown coding": post(b"Transfer-Encoding: xchunked\r\n", chunked(BODY)),
    "identity coding": post(b"Transfer-Encoding: identity\r\n", BODY),
    "empty coding": post(b"Transfer-Encoding:\r\n", chunked(BODY)),
    "quoted coding": post(b'Transfer-Encoding: "chunked"\r\n', chunked(BODY)),
    "coding with a vertical tab": post(b"Transfer-Encoding: \x0bchunked\r\n", chunked(BODY)),
    "chunks in 1.0": post(b"Transfer-Encoding: chunked\r\n", chunked(BODY)).replace(b"HTTP/1.1", b"HTTP/1.0"),
}
CHUNKS = {
    "0x": b"0xf\r\n" + BODY + b"\r\n0\r\n\r\n",
    "minus": b"-f\r\n" + BODY + b"\r\n0\r\n\r\n",
    "plus": b"+f\r\n" + BODY + b"\r\n0\r\n\r\n",
    "underscore": b"0_f\r\n" + BODY + b"\r\n0\r\n\r\n",
    "space before": b" f\r\n" + BODY + b"\r\n0\r\n\r\n",
    "space after": b"f \r\n" + BODY + b"\r\n0\r\n\r\n",
    "no size": b"\r\n" + BODY + b"\r\n0\r\n\r\n",
    "extension without size": b";a=b\r\n" + BODY + b"\r\n0\r\n\r\n",
    "not hexadecimal": b"g\r\n" + BODY + b"\r\n0\r\n\r\n",
    "other digits": b"\xd9\xa1\xd9\xa5\r\n" + BODY + b"\r\n0\r\n\r\n",
    "too many digits": b"00000000000000000000f\r\n" + BODY + b"\r\n0\r\n\r\n",
    "LF after the size": b"f\n" + BODY + b"\r\n0\r\n\r\n",
    "CR after the size": b"f\r" + BODY + b"\r\n0\r\n\r\n",
    "LF in an extension": b"f;a\nb\r\n" + BODY + b"\r\n0\r\n\r\n",
    "NUL in an extension": b"f;a\x00b\r\n" + BODY + b"\r\n0\r\n\r\n",
    "endless extension": b"f;" + b"a" * 5000,
    "chunk longer than its size": b"e\r\n" + BODY + b"\r\n0\r\n\r\n",
    "chunk shorter than its size": b"10\r\n" + BODY + b"\r\n0\r\n\r\n",
    "LF after the data": b"f\r\n" + BODY + b"\n0\r\n\r\n",
    "malformed trailer": chunked(BODY, end=b"0\r\nX A: b\r\n\r\n"),
    "folded trailer": chunked(BODY, end=b"0\r\nX-A: b\r\n c\r\n\r\n"),
    "trailer with LF": chunked(BODY, end=b"0\r\nX-A: b\n\r\n\r\n"),
}
MALFORMED |= {f"chunks: {name}": post(b"Transfer-Encoding: chunked\r\n", chunks) for name, chunks in CHUNKS.items()}


@pytest.mark.parametrize("name", MALFORMED)
async def test_malformed_framing_is_400_before_the_key_is_asked_for_and_logged_in_one_line(start, name, caplog):
    async with start(keys=[KEY]) as server:
        answer = await exchange(server.port, MALFORMED[name])
        assert status_of(answer) == 400, answer
        assert answer.count(b"HTTP/1.1 ") == 1, "what followed was read as another request"
        assert b"connection: close" in answer
        body = answer.partition(b"\r\n\r\n")[2]
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
        assert not server.engine.calls
        assert not server.state.hooks.authorized
    lines = [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert len(lines) == 1, caplog.text
    assert "malformed request refused status=400" in lines[0].getMessage()
    assert not lines[0].exc_info
    assert lines[0].getMessage().isprintable()


@pytest.mark.parametrize("name", CHUNKS)
async def test_malformed_chunks_are_refused_wherever_the_bytes_are_split(start, name):
    request = post(b"Authorization: Bearer the-key\r\nTransfer-Encoding: chunked\r\n", b"")
    async with start(keys=[KEY]) as server:
        chunks = CHUNKS[name]
        for split in (0, 1, 3, len(chunks) // 2, len(chunks) - 1):
            parts = [part for part in (chunks[:split], chunks[split:]) if part]
            answer = await exchange(server.port, request, *parts, pause_s=0.005)
            assert status_of(answer) == 400, (split, answer)
            assert answer.count(b"HTTP/1.1 ") == 1
        assert not server.engine.calls


WELL_FORMED = {
    "length": post(b"Content-Length: 15\r\n", BODY),
    "spaces around the length": post(b"Content-Length:\t 15 \t\r\n", BODY),
    "chunked": post(b"Transfer-Encoding: chunked\r\n", chunked(BODY)),
    "Chunked": post(b"Transfer-Encoding: Chunked\r\n", chunked(BODY)),
    "CHUNKED": post(b"transfer-encoding:CHUNKED\r\n", chunked(BODY)),
    "many chunks": post(b"Transfer-Encoding: chunked\r\n", chunked(*[bytes([byte]) for byte in BODY])),
    "size with zeros": post(b"Transfer-Encoding: chunked\r\n", b"000F\r\n" + BODY + b"\r\n000\r\n\r\n"),
    "extension": post(b"Transfer-Encoding: chunked\r\n", b'f ; a="b c";d\r\n' + BODY + b"\r\n0;e\r\n\r\n"),
    "trailers": post(b"Transfer-Encoding: chunked\r\n", chunked(BODY, end=b"0\r\nX-A: b\r\nX-B: c\r\n\r\n")),
    "empty lines before": b"\r\n\r\n" + post(b"Content-Length: 15\r\n", BODY),
    "absolute target": post(b"Content-Length: 15\r\n", BODY).replace(b"/v1", b"http://other:8000/v1", 1),
    "host with a port": post(b"Content-Length: 15\r\n", BODY).replace(b"Host: x", b"Host: [::1]:8000"),
    "empty host": post(b"Content-Length: 15\r\n", BODY).replace(b"Host: x", b"Host:"),
    "1.0 without a host": post(b"Content-Length: 15\r\n", BODY).replace(b"1.1\r\nHost: x", b"1.0"),
    "value that is not ASCII": post(b"X-A: \xc3\xa9\xff\r\nContent-Length: 15\r\n", BODY),
    "expect": post(b"Expect: 100-continue\r\nContent-Length: 15\r\n", BODY),
}


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize("name", WELL_FORMED)
async def test_well_formed_requests_are_served_wherever_the_bytes_are_split(start, name, size):
    request = WELL_FORMED[name]
    async with start() as server:
        parts = [request[at : at + size] for at in range(0, len(request), size)]
        answer = await exchange(server.port, *parts, pause_s=0, until=b"hello world!")
        answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert status_of(answer) == 200, answer
        assert b"hello world!" in answer
        assert b"alt-svc" not in answer


async def test_requests_of_one_connection_are_answered_in_order(start):
    async with start() as server:
        both = post(b"Transfer-Encoding: chunked\r\n", chunked(BODY)) + GET + b"\r\n"
        answer = await exchange(server.port, both * 3)
        assert answer.count(b"HTTP/1.1 200 OK") == 6
        assert answer.find(b"hello world!") < answer.find(b'"object":"list"')


# ---------------------------------------------------------------- versions, sizes, methods


@pytest.mark.parametrize("version", [b"HTTP/2.0", b"HTTP/0.9", b"HTTP/3.0"])
async def test_other_versions_are_505(start, version):
    async with start() as server:
        assert status_of(await exchange(server.port, b"GET /health " + version + b"\r\nHost: x\r\n\r\n")) == 505
    async with start() as server:
        assert status_of(await exchange(server.port, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")) == 505


async def test_coding_before_chunked_is_501(start):
    async with start() as server:
        request = post(b"Transfer-Encoding: gzip, chunked\r\n", chunked(gzip.compress(BODY, mtime=0)))
        assert status_of(await exchange(server.port, request)) == 501


@pytest.mark.parametrize("is_complete", [True, False])
async def test_large_headers_are_431_and_a_long_target_is_414(start, is_complete):
    end = b"\r\n\r\n" if is_complete else b""
    async with start(keys=[KEY]) as server:
        for large in (b"X-A: " + b"a" * 9000, b"\r\n".join(b"X-%d: a" % number for number in range(2000))):
            assert status_of(await exchange(server.port, GET + large + end)) == 431
        assert status_of(await exchange(server.port, GET + b"X-A: " + b"a" * 2_000_000 + end)) == 431
        assert status_of(await exchange(server.port, b"GET /" + b"a" * 9000 + end)) == 414
        many = b"".join(b"a:\r\n" for _ in range(200))
        assert status_of(await exchange(server.port, GET + many + b"\r\n")) == 431


async def test_expectation_other_than_continue_is_417(start):
    async with start() as server:
        answer = await exchange(server.port, post(b"Expect: 200-ok\r\nContent-Length: 15\r\n", BODY))
        assert status_of(answer) == 417


async def test_body_that_is_refused_is_not_asked_for(start):
    head = post(b"Expect: 100-continue\r\nContent-Length: 5000\r\n")
    async with start(keys=[KEY]) as server:
        assert status_of(await exchange(server.port, head)) == 401
    async with start(limits=ServiceLimits(max_body_bytes=1000)) as server:
        assert status_of(await exchange(server.port, head)) == 413
    async with start() as server:
        assert status_of(await exchange(server.port, head)) == 100


async def test_http_1_0_gets_no_chunks_and_streams_end_by_closing(start):
    body = b'{"prompt":"hi","stream":true}'
    request = b"POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%b\r\n%b"
    async with start() as server:
        for fields in (b"", b"Connection: keep-alive\r\n"):
            answer = await exchange(server.port, request % (len(body), fields, body))
            head, _, events = answer.partition(b"\r\n\r\n")
            assert status_of(head) == 200
            assert b"transfer-encoding" not in head.lower()
            assert b"connection: close" in head
            assert events.startswith(b"data: {")
            assert events.endswith(b"data: [DONE]\n\n")
        plain = await exchange(server.port, b"GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" * 2)
        assert plain.count(b"200 OK") == 2
        assert (await exchange(server.port, b"GET /health HTTP/1.0\r\n\r\n" * 2)).count(b"200 OK") == 1


async def test_head_works_wherever_get_does(start):
    async with start() as server:
        for path in ("/health", "/version", "/load", "/v1/models", "/metrics", "/openapi.json", "/v1/plugins"):
            given = await server.client.get(path)
            asked = await server.client.head(path)
            assert asked.status_code == given.status_code == 200, path
            assert asked.content == b""
            assert asked.headers["content-type"] == given.headers["content-type"]
            if path not in ("/metrics",):
                assert asked.headers["content-length"] == str(len(given.content)), path
        assert (await server.client.head("/v1/completions")).status_code == 405
        assert (await server.client.head("/nothing")).status_code == 404
        raw = await exchange(server.port, b"HEAD /v1/models HTTP/1.1\r\nHost: x\r\n\r\n" + GET + b"\r\n")
        assert raw.count(b"HTTP/1.1 200 OK") == 2


# ---------------------------------------------------------------- content codings


def raw_deflate(data):
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


@pytest.mark.parametrize(
    ("coding", "encode"),
    [
        ("gzip", gzip.compress),
        ("GZIP", gzip.compress),
        ("x-gzip", gzip.compress),
        ("gzip", lambda data: gzip.compress(data[:5], mtime=0) + gzip.compress(data[5:], mtime=0)),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
        ("identity", bytes),
    ],
)
async def test_compressed_body_is_decoded(start, coding, encode):
    headers = {"Content-Encoding": coding, "Content-Type": "application/json"}
    async with start() as server:
        response = await server.client.post("/v1/completions", content=encode(BODY), headers=headers)
        assert response.status_code == 200, response.text
        assert server.engine.calls


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "gzip, gzip", "aes128gcm", "\x7f" * 3])
async def test_other_codings_are_415_by_name(start, coding):
    headers = {"Content-Encoding": coding, "Content-Type": "application/json"}
    async with start(keys=[KEY]) as server:
        assert (await server.client.post("/v1/completions", content=BODY, headers=headers)).status_code in (400, 401)
        if coding.isprintable():
            headers["x-api-key"] = KEY
            response = await server.client.post("/v1/completions", content=BODY, headers=headers)
            assert response.status_code == 415
            assert coding in response.json()["error"]["message"]
            assert response.headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize("encode", [gzip.compress, zlib.compress, raw_deflate])
async def test_decoded_size_is_bounded(start, encode):
    coding = "gzip" if encode is gzip.compress else "deflate"
    bomb = encode(b" " * 3_000_000)
    headers = {"Content-Encoding": coding, "Content-Type": "application/json"}
    async with start(limits=ServiceLimits(max_body_bytes=100_000)) as server:
        response = await server.client.post("/v1/completions", content=bomb, headers=headers)
        assert response.status_code == 413
        assert not server.engine.calls
        many = gzip.compress(b" " * 50_000, mtime=0) * 3
        response = await server.client.post(
            "/v1/completions", content=many, headers={**headers, "Content-Encoding": "gzip"}
        )
        assert response.status_code == 413


@pytest.mark.parametrize(
    "body", [b"nonsense", b"\x1f\x8b", gzip.compress(BODY, mtime=0)[:-9], gzip.compress(BODY, mtime=0) + b"x"]
)
@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_body_that_is_not_of_its_coding_is_400(start, coding, body):
    headers = {"Content-Encoding": coding, "Content-Type": "application/json"}
    async with start() as server:
        response = await server.client.post("/v1/completions", content=body, headers=headers)
        assert response.status_code == 400, response.text
        assert (await server.complete()).status_code == 200
