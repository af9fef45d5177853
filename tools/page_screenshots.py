"""Takes the pictures of docs/page.md from a running server: python tools/page_screenshots.py URL FOLDER.

Needs Chromium, playwright and pngquant; the server should have a prefix cache and few rows, so that requests wait.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Page, sync_playwright

_SETTINGS = {"format": "text", "tool_choice": "auto", "temperature": 0, "max_tokens": 90}
_DESKTOP = {"width": 1280, "height": 800}
_PHONE = {"width": 390, "height": 780}
_SYSTEM = "You are a patient teacher. Explain each thing in short sentences, with an example where one helps. " * 6


def main() -> None:
    url, folder = sys.argv[1].rstrip("/"), Path(sys.argv[2])
    with sync_playwright() as started:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        context = browser.new_context(viewport=_DESKTOP, color_scheme="light")
        page = context.new_page()
        _open(page, url)
        _ask(page, "Write a Python function that adds two numbers, and say what it does.")
        _shoot(page, folder / "page-chat-light.png")
        page.emulate_media(color_scheme="dark")
        page.get_by_role("button", name="New conversation").click()
        _set(page, logprobs=True)
        _ask(page, "What is the capital of France? Say one thing about it.")
        page.locator(".token").nth(5).hover()
        _shoot(page, folder / "page-tokens-dark.png")
        state = context.storage_state()
        _load(url)
        page.goto(f"{url}/#live")
        page.locator("#timeline li").first.wait_for()
        time.sleep(11)
        _shoot(page, folder / "page-live-dark.png")
        page.emulate_media(color_scheme="light")
        page.locator("#timeline").scroll_into_view_if_needed()
        page.mouse.wheel(0, 330)
        time.sleep(1)
        _shoot(page, folder / "page-timeline-light.png")
        phone = browser.new_context(viewport=_PHONE, color_scheme="light", device_scale_factor=2, storage_state=state)
        page = phone.new_page()
        page.goto(url)
        page.locator("#conversations .conversation").last.dispatch_event("click")
        time.sleep(0.5)
        _shoot(page, folder / "page-phone-light.png")
        page.emulate_media(color_scheme="dark")
        page.goto(f"{url}/#live")
        page.locator("#timeline li").first.wait_for()
        time.sleep(5)
        _shoot(page, folder / "page-phone-dark.png")
        browser.close()


def _open(page: Page, url: str) -> None:
    page.goto(url)
    page.set_default_timeout(120_000)
    _set(page)


def _set(page: Page, **values: Any) -> None:
    page.evaluate("text => localStorage.setItem('plugserve.settings', text)", json.dumps(_SETTINGS | values))
    page.reload()
    page.locator("#model option").first.wait_for(state="attached")
    page.get_by_role("button", name="New conversation").click()


def _ask(page: Page, text: str) -> None:
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")
    page.locator(".message.assistant .figures").last.wait_for()


def _load(url: str) -> None:
    """Requests of many lengths in the background: some wait, some find their prefix cached."""

    def send(index: int) -> None:
        words = "Tell me more about it. " * (60 if index % 5 == 0 else 3)
        messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": f"{index}: {words}"}]
        body = {"messages": messages, "max_tokens": 20 + 35 * (index % 4), "temperature": 0.7, "ignore_eos": True}
        httpx.post(f"{url}/v1/chat/completions", json=body, timeout=300)

    for index in range(22):
        threading.Timer(0.9 * index, send, [index]).start()


def _shoot(page: Page, file: Path) -> None:
    """A picture with a palette, which is small."""
    time.sleep(0.4)
    picture = subprocess.run(["pngquant", "128", "-"], input=page.screenshot(), capture_output=True, check=True)
    file.write_bytes(picture.stdout)
    print(f"{file}: {file.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
