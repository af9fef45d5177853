"""Certificates and keys are replaced together or not at all, while the server runs."""

import asyncio
import shutil
import ssl
import subprocess

import pytest

from plugserve.core.errors import ConfigError
from plugserve.core.settings.settings import Settings
from plugserve.server.operations.access import Access
from plugserve.server.operations.tls import tls_context
from plugserve.server.worker.http.connection_limits import ConnectionLimits
from plugserve.server.worker.reload import reload_files
from tests.server.conftest import running
from tests.server.fakes import FakeEngine, says, served

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make certificates")


def make_certificate(folder, name):
    """Writes cert.pem and key.pem for name."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", folder / "key.pem", "-out", folder / "cert.pem", "-days", "2", "-subj", f"/CN={name}"]
    subprocess.run(command, check=True, capture_output=True)


def served_certificate(port):
    return ssl.get_server_certificate(("127.0.0.1", port), timeout=10)


async def test_reload_swaps_certificates_and_keys_and_keeps_them_when_a_file_is_bad(
    tmp_path, tokenizer, make_state, caplog
):
    make_certificate(tmp_path, "first")
    keys = tmp_path / "keys"
    keys.write_text("old-key")
    settings = Settings(
        api_key_file=str(keys), ssl_certfile=str(tmp_path / "cert.pem"), ssl_keyfile=str(tmp_path / "key.pem")
    )
    state = make_state(served(FakeEngine(says(tokenizer, "hi")), tokenizer), access=Access(keys=["old-key"]))
    async with running(state, tls=tls_context(settings)) as server:
        server.client.base_url = f"https://127.0.0.1:{server.port}"

        async def status(key):
            return (await server.client.get("/v1/models", headers={"x-api-key": key})).status_code

        first = await asyncio.to_thread(served_certificate, server.port)
        assert await status("old-key") == 200
        make_certificate(tmp_path, "second")
        keys.write_text("new-key")
        reload_files(settings, state.access, server.http)
        second = await asyncio.to_thread(served_certificate, server.port)
        assert second == (tmp_path / "cert.pem").read_text()
        assert second != first
        assert (await status("old-key"), await status("new-key")) == (401, 200)

        (tmp_path / "cert.pem").write_text("no certificate")
        keys.write_text("third-key")
        reload_files(settings, state.access, server.http)
        assert await asyncio.to_thread(served_certificate, server.port) == second
        assert (await status("third-key"), await status("new-key")) == (401, 200)
    assert "reload failed; keys and certificates stay as they were: --ssl-certfile" in caplog.text


async def test_https_answers_and_streams(tmp_path, tokenizer, make_state):
    make_certificate(tmp_path, "only")
    settings = Settings(ssl_certfile=str(tmp_path / "cert.pem"), ssl_keyfile=str(tmp_path / "key.pem"))
    state = make_state(served(FakeEngine(says(tokenizer, "hello world!")), tokenizer))
    async with running(state, tls=tls_context(settings)) as server:
        server.client.base_url = f"https://127.0.0.1:{server.port}"
        assert (await server.complete()).json()["choices"][0]["text"] == "hello world!"
        assert len(await server.complete_events()) > 1
        large = await server.client.post("/v1/completions", content=b"x" * 40_000_000)
        assert large.status_code == 413


async def test_https_connections_beyond_the_limit_are_closed_cleanly(tmp_path, tokenizer, make_state):
    """A client gets TLS's close alert and the connection's end, not a reset."""
    make_certificate(tmp_path, "here")
    settings = Settings(ssl_certfile=str(tmp_path / "cert.pem"), ssl_keyfile=str(tmp_path / "key.pem"))
    state = make_state(served(FakeEngine(says(tokenizer, "hi")), tokenizer))
    limits = ConnectionLimits(max_connections=1)
    async with running(state, tls=tls_context(settings), limits=limits) as server:
        server.client.base_url = f"https://127.0.0.1:{server.port}"
        assert (await server.client.get("/health")).status_code == 200  # takes the only place, and keeps it
        for hello in (b"", b"\x16\x03\x01" + bytes(4000)):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(hello)
            assert await reader.read() == bytes([21, 3, 1, 0, 2, 1, 0])
            writer.close()
        context = ssl.create_default_context()
        with pytest.raises(ssl.SSLError):  # no ConnectionResetError
            await asyncio.open_connection("127.0.0.1", server.port, ssl=context)
        assert (await server.client.get("/health")).status_code == 200


# ---- files that can't be used


def fault(cert, key):
    with pytest.raises(ConfigError) as caught:
        tls_context(Settings(ssl_certfile=str(cert), ssl_keyfile=str(key)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_each_fault_of_certificate_and_key_names_its_file(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        make_certificate(tmp_path / name, name)
    cert, key, other = tmp_path / "one" / "cert.pem", tmp_path / "one" / "key.pem", tmp_path / "two" / "key.pem"
    assert fault(cert, other) == f"--ssl-keyfile {other} is not the key of the certificate in --ssl-certfile {cert}"
    assert fault(key, key) == f"--ssl-certfile {key} holds no certificate in PEM form"
    assert fault(cert, cert) == f"--ssl-keyfile {cert} holds no private key in PEM form"
    assert (
        fault(cert, tmp_path / "none") == f"--ssl-keyfile {tmp_path / 'none'} can't be read: No such file or directory"
    )


def test_an_encrypted_key_is_refused_without_asking_for_a_passphrase(tmp_path):
    make_certificate(tmp_path, "name")
    sealed = tmp_path / "sealed.pem"
    command = ["openssl", "pkey", "-in", tmp_path / "key.pem", "-out", sealed, "-aes128", "-passout", "pass:secret"]
    subprocess.run(command, check=True, capture_output=True)
    assert fault(tmp_path / "cert.pem", sealed).startswith(f"--ssl-keyfile {sealed} is encrypted; save it without")
