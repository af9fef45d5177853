"""The routes of the page: its files, their headers, keys, and a server without it."""

import gzip
import re

import pytest

from plugserve.server.operations.access import Access
from plugserve.server.ui.page_files import page_files

BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


async def test_browsers_get_the_page_and_programs_the_paths(server):
    page = await server.client.get("/", headers=BROWSER)
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "accept" in page.headers["vary"].lower()
    assert (await server.client.get("/")).json()["docs"] == "/docs"
    assert (await server.client.head("/", headers=BROWSER)).headers["etag"] == page.headers["etag"]


async def test_every_file_that_the_page_names_is_served(server):
    page = (await server.client.get("/", headers=BROWSER)).text
    named = set(re.findall(r'(?:src|href)="ui/([^"]+)"', page))
    for source in (file.plain.decode() for name, file in page_files().items() if name.endswith(".js")):
        named |= set(re.findall(r'from "\./([^"]+)"', source))
    assert {"app.js", "chat.js", "base.css", "icon.svg"} <= named
    for name in named:
        answer = await server.client.get(f"/ui/{name}")
        assert answer.status_code == 200, name
        assert answer.headers["x-content-type-options"] == "nosniff"
    missing = await server.client.get("/ui/..%2fpage_files.py")
    assert missing.status_code == 404


async def test_a_strict_policy_fits_the_page(server):
    page = await server.client.get("/", headers=BROWSER)
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", page.text)


def test_the_page_is_small_and_names_no_other_host():
    files = page_files()
    assert sum(len(file.plain) for file in files.values()) < 300_000
    for name, file in files.items():
        hosts = set(re.findall(r"https?://[\w.]+", file.plain.decode())) - {"http://www.w3.org"}
        assert not hosts, (name, hosts)


async def test_a_browser_keeps_files_and_asks_whether_they_changed(server):
    plain = await server.client.get("/ui/app.js", headers={"accept-encoding": "identity"})
    packed = await server.client.get("/ui/app.js", headers={"accept-encoding": "gzip, br"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.content == plain.content == gzip.decompress(page_files()["app.js"].packed)
    assert plain.headers["etag"] != packed.headers["etag"]
    known = await server.client.get("/ui/app.js", headers={"if-none-match": packed.headers["etag"]})
    assert (known.status_code, known.content) == (304, b"")


async def test_without_the_page_browsers_are_sent_to_the_documentation(serve):
    async with serve(state={"serves_page": False}) as server:
        assert (await server.client.get("/", headers=BROWSER)).headers["location"] == "docs"
        assert (await server.client.get("/ui/app.js")).status_code == 404


@pytest.mark.parametrize(("path", "headers"), [("/", BROWSER), ("/ui/app.js", {}), ("/docs", {})])
async def test_the_page_opens_without_a_key_and_data_does_not(serve, path, headers):
    async with serve(state={"access": Access(keys=["secret"])}) as server:
        assert (await server.client.get(path, headers=headers)).status_code == 200
        for guarded in ("/", "/v1/models", "/live", "/live/requests", "/openapi.json"):
            assert (await server.client.get(guarded)).status_code == 401, guarded
        assert (await server.client.get("/", headers={"x-api-key": "secret"})).json()["models"] == "/v1/models"
