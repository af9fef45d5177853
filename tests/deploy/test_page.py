"""The page at / in a headless Chromium: playground, live view, documentation, without any other host."""

import json
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.e2e.live_server import LiveServer

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
expect = playwright.expect
expect.set_options(timeout=60_000)
AXE = "axe-core@4.14.1"
ANSWERED = ".message.assistant .figures"
PEOPLE = {
    "type": "object",
    "properties": {"age": {"type": "integer"}},
    "required": ["age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def live(smollm2_gguf):
    more = json.dumps({"second": {"model": str(smollm2_gguf), "max_model_len": 1024}})
    arguments = ("--model", f"first={smollm2_gguf}", "--models", more, "--max-model-len", "1024")
    with LiveServer(*arguments, "--kv-cache-memory", "128MiB", "--enable-prefix-caching") as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A tab that reaches the server alone, and what went wrong in it."""

    def __init__(self, browser, url, **options):
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 820}} | options)
        self.url, self.faults, self.foreign, self.sizes = url, [], [], []
        self.context.route("**/*", self._route)
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.expected = "nothing"  # a line of the console with this text is no fault
        self.page.on("console", self._note)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))

    def _note(self, line):
        if line.type in ("error", "warning") and self.expected not in line.text:
            self.faults.append(line.text)

    def _route(self, route):
        if route.request.url.startswith(self.url):
            route.continue_()
        else:
            self.foreign.append(route.request.url)
            route.abort()

    def open(self, path="/"):
        self.page.goto(self.url + path)
        return self.page

    def set(self, **values):
        """Sampling, as a user's settings hold it."""
        settings = {"format": "text", "tool_choice": "auto", "temperature": 0, "max_tokens": 24} | values
        self.page.evaluate("text => localStorage.setItem('plugserve.settings', text)", json.dumps(settings))
        self.page.reload()

    def ask(self, text):
        count = self.page.locator(ANSWERED).count()
        self.page.get_by_label("Your message").fill(text)
        self.page.keyboard.press("Enter")
        expect(self.page.locator(ANSWERED)).to_have_count(count + 1)
        return self.page.locator(".message.assistant").last


@pytest.fixture
def visit(browser, live):
    visits = []

    def start(**options):
        visits.append(Visit(browser, live.url, **options))
        return visits[-1]

    yield start
    for one in visits:
        one.context.close()
        assert not one.faults
        assert not one.foreign


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    """axe-core's source; $AXE_CORE names its file, else npm gets it."""
    if path := os.environ.get("AXE_CORE"):
        return Path(path).read_text()
    folder = tmp_path_factory.mktemp("axe")
    if shutil.which("npm") is None or subprocess.run(["npm", "pack", AXE], cwd=folder, capture_output=True).returncode:
        pytest.skip("axe-core is not to be had: set AXE_CORE to its axe.min.js")
    with tarfile.open(next(folder.glob("*.tgz"))) as packed:
        packed.extract("package/axe.min.js", folder, filter="data")
    return (folder / "package/axe.min.js").read_text()


def serious_faults(page, axe):
    """page.evaluate runs beside the page's policy, which allows no foreign script."""
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [(one["id"], one["nodes"][0]["target"]) for one in found if one["impact"] in ("serious", "critical")]


def test_chat_answers_stops_and_answers_again(visit):
    tab = visit()
    page = tab.open()
    tab.set(max_tokens=900)
    page.get_by_label("Your message").fill("Write a long story about a lighthouse and its keeper.")
    page.keyboard.press("Enter")
    expect(page.locator(".message.assistant .prose p, .message.assistant .prose li").first).to_be_visible()
    expect(page.get_by_role("button", name="Stop (Esc)")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(ANSWERED)).to_contain_text("stopped")
    stopped = page.locator(".message.assistant .prose").inner_text()
    tab.set(max_tokens=4)
    expect(page.locator(".message.assistant .prose")).to_have_text(stopped, use_inner_text=True)
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(ANSWERED)).to_contain_text("4 tokens")
    expect(page.locator(".message.assistant")).to_have_count(1)
    page.get_by_label("Max tokens").fill("24")
    page.locator(".message.user").hover()
    page.locator(".message.user").get_by_role("button", name="Edit this message").click()
    page.get_by_label("The message's text").fill("Name the capital of France.")
    page.get_by_role("button", name="Send again").click()
    expect(page.locator(".message.assistant .prose")).to_contain_text("Paris")


def test_another_model_is_loaded_by_the_first_question_to_it(visit):
    tab = visit()
    page = tab.open()
    tab.set()
    picker = page.get_by_label("Model or adapter")
    expect(picker.locator("option")).to_have_text(["first", "second (loads with the first request)"])
    picker.select_option("second")
    expect(tab.ask("Name the capital of France.")).to_contain_text("Paris")
    expect(page.locator(ANSWERED)).to_contain_text("second")
    expect(picker.locator("option")).to_have_text(["first", "second"])


def test_an_answer_matches_the_schema_and_a_faulty_one_is_explained(visit):
    tab = visit()
    page = tab.open()
    tab.set()
    page.get_by_text("Schema", exact=True).click()
    page.get_by_label("JSON schema").fill(json.dumps(PEOPLE))
    answer = json.loads(tab.ask("Ada is 36 years old. How old is she?").locator(".prose").inner_text())
    assert isinstance(answer["age"], int)
    page.get_by_label("JSON schema").fill('{"type": ')
    expect(page.locator("#fault-schema")).to_contain_text("JSON schema is no JSON")
    page.get_by_label("JSON schema").fill('{"type": "nothing"}')
    tab.expected = "status of 400"
    tab.ask("Ada is 36 years old. How old is she?")
    expect(page.locator(".message.assistant").last.get_by_role("alert")).to_contain_text("nothing")


def test_a_call_of_a_tool_is_shown_and_its_result_sent(visit):
    tab = visit()
    page = tab.open()
    tab.set(useTools=True, tool_choice="required", max_tokens=60)
    call = tab.ask("What is the weather in Paris?").locator(".call")
    expect(call.locator(".call-name")).to_have_text("get_weather")
    assert "city" in json.loads(call.locator("pre").inner_text())
    page.get_by_label("Tool choice").select_option("none")
    page.get_by_label("What get_weather returns").fill('{"degrees": 21}')
    page.get_by_role("button", name="Send the results").click()
    expect(page.locator(ANSWERED)).to_have_count(2)
    expect(page.locator(".message.assistant").last.get_by_role("alert")).to_have_count(0)


def test_tokens_show_their_probabilities_by_pointer_and_by_keys(visit):
    tab = visit()
    page = tab.open()
    tab.set(logprobs=True)
    tokens = tab.ask("Name the capital of France.").locator(".tokens")
    tokens.locator(".token").nth(1).hover()
    card = page.get_by_role("tooltip", include_hidden=True)
    expect(card.locator("li")).to_have_count(5)
    tokens.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(card.locator("strong")).to_contain_text("%")
    page.get_by_role("button", name="Show as text").click()
    expect(page.locator(".message.assistant .prose")).to_contain_text("Paris")


def test_text_of_a_model_is_never_html(visit):
    page = visit().open()
    text = "# T\n<img src=x onerror=alert(1)> **b** [x](javascript:alert(1)) `<b>`\n\n| a |\n|---|\n| <i>c</i> |\n"
    html = page.evaluate(
        "async text => { const { renderMarkdown } = await import('/ui/markdown.js');"
        "const box = document.createElement('div'); renderMarkdown(box, text); return box.innerHTML; }",
        text,
    )
    assert "<img" not in html
    assert "<i>" not in html
    assert "javascript:alert" in html
    assert "href" not in html
    assert "<strong>b</strong>" in html
    assert "<code>&lt;b&gt;</code>" in html


def test_conversations_survive_a_reload_and_are_renamed_and_deleted(visit):
    tab = visit()
    page = tab.open()
    tab.set()
    answer = tab.ask("Name the capital of France.").locator(".prose").inner_text()
    page.reload()
    expect(page.locator(".message.assistant .prose")).to_have_text(answer, use_inner_text=True)
    page.get_by_role("button", name="New conversation").click()
    tab.ask("Say hello.")
    listed = page.locator("#conversations .conversation")
    expect(listed).to_have_count(2)
    page.locator("#conversations li").first.hover()
    page.get_by_role("button", name="Rename: Say hello.").click()
    page.get_by_label("Name", exact=True).fill("Greeting")
    page.get_by_role("button", name="Rename", exact=True).click()
    expect(listed.first).to_contain_text("Greeting")
    page.locator("#conversations li").first.hover()
    page.get_by_role("button", name="Delete: Greeting").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(listed).to_have_count(1)
    expect(page.locator(".message.assistant .prose")).to_have_text(answer, use_inner_text=True)


def test_a_request_is_shown_as_code(visit):
    tab = visit()
    page = tab.open()
    page.get_by_label("Your message").fill("It's late?")
    page.get_by_role("button", name="The request as curl and Python").click()
    shown = page.get_by_label("The request", exact=True)
    curl = (
        shown.inner_text()
        .replace("curl -N", "curl -sN", 1)
        .replace('"stream": true', '"max_tokens": 3, "stream": true')
    )
    printed = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, check=True).stdout
    assert printed.rstrip().endswith("data: [DONE]")
    page.get_by_text("Python", exact=True).click()
    compile(shown.inner_text(), "shown", "exec")


def test_live_view_and_timeline_show_a_request(visit):
    tab = visit()
    page = tab.open()
    tab.set(max_tokens=150)
    page.get_by_label("Your message").fill("Write a long story about a lighthouse.")
    page.keyboard.press("Enter")
    page.get_by_role("link", name="Live").click()
    expect(page.locator("#live-state")).to_have_text("Live")
    expect(page.locator(".tile", has_text="Running").locator("strong")).to_have_text("1")
    expect(page.get_by_role("img", name="Map of KV blocks").first).to_be_visible()
    first = page.locator("#timeline li").first
    expect(first.locator(".badge")).to_have_text("running")
    expect(first.locator(".badge")).to_be_hidden()
    expect(first.locator(".total")).to_contain_text("s")
    first.locator("summary").click()
    expect(first.locator("dl")).to_contain_text("Prefill")
    expect(page.locator("#plugins")).to_contain_text("schedule")
    page.get_by_role("link", name="Chat").click()
    expect(page.locator(ANSWERED)).to_be_visible()


def test_examples_of_the_documentation_are_sent(visit):
    tab = visit()
    page = tab.open("/docs")
    chat = page.locator("#post-v1-chat-completions")
    expect(chat.get_by_role("textbox", name="Body of")).to_have_value(re.compile('"model": "first"'))
    chat.get_by_role("button", name="Send").click()
    expect(chat.locator(".outcome")).to_have_text("200 OK")
    expect(chat.locator(".answer")).to_contain_text("data: [DONE]")
    made = page.locator("#post-v1-responses")
    made.get_by_role("button", name="Send").click()
    expect(made.locator(".answer")).to_contain_text('"object": "response"')
    again = page.locator("#get-v1-responses-response_id")
    expect(again.get_by_role("textbox")).to_have_value(re.compile("/v1/responses/resp_"))
    again.get_by_role("button", name="Send").click()
    expect(again.locator(".outcome")).to_have_text("200 OK")
    upload = page.locator("#post-v1-files")
    upload.get_by_role("button", name="Send").click()
    expect(upload.locator(".outcome")).to_have_text("200 OK")
    batch = page.locator("#post-v1-batches")
    expect(batch.get_by_role("textbox")).to_have_value(re.compile('"input_file_id": "file-'))
    feed = page.locator("#get-live")
    feed.get_by_role("button", name="Send").click()
    expect(feed.locator(".answer")).to_contain_text("uptime_s")
    feed.get_by_role("button", name="Send").click()
    expect(feed.locator(".outcome")).to_have_text("Stopped")


def test_page_is_small_and_names_no_other_host(visit):
    tab = visit()
    answers = []
    tab.page.on("requestfinished", lambda request: answers.append(request))
    page = tab.open()
    expect(page.get_by_label("Model or adapter").locator("option").first).to_be_attached()
    page.wait_for_load_state("networkidle")
    assert len(answers) > 10
    assert sum(one.sizes()["responseBodySize"] + one.sizes()["responseHeadersSize"] for one in answers) < 300_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 820), (390, 800)], ids=["desktop", "phone"])
def test_every_view_is_accessible_and_fits(visit, axe, scheme, size):
    tab = visit(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, reduced_motion="reduce")
    page = tab.open()
    tab.set(logprobs=True, format="schema", max_tokens=40)
    assert serious_faults(page, axe) == []
    tab.ask("How old is Ada, who is 36?")
    assert serious_faults(page, axe) == []
    if size[0] < 500:
        page.get_by_role("button", name="Settings").click()
    assert serious_faults(page, axe) == []
    page.keyboard.press("Escape")
    page.get_by_role("link", name="Live").click()
    expect(page.locator("#timeline li").first).to_be_visible()
    assert serious_faults(page, axe) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    page.get_by_role("link", name="API").click()
    expect(page.get_by_role("button", name="Send POST /v1/chat/completions")).to_be_visible()
    assert serious_faults(page, axe) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]


def test_page_asks_for_the_key_and_sends_it(browser, smollm2_gguf):
    with LiveServer("--model", f"m={smollm2_gguf}", "--max-model-len", "512", "--api-key", "secret") as server:
        tab = Visit(browser, server.url)
        tab.expected = "status of 401"
        page = tab.open()
        page.get_by_role("dialog").get_by_label("API key").fill("wrong")
        page.get_by_role("button", name="Use this key").click()
        expect(page.get_by_role("dialog")).to_contain_text("needs an API key")
        page.get_by_role("dialog").get_by_label("API key").fill("secret")
        page.get_by_role("button", name="Use this key").click()
        expect(page.get_by_label("Model or adapter").locator("option")).to_have_text(["m"])
        tab.set()
        expect(tab.ask("Name the capital of France.")).to_contain_text("Paris")
        page.get_by_role("link", name="Live").click()
        expect(page.locator("#live-state")).to_have_text("Live")
        assert not tab.faults
        assert not tab.foreign
        tab.context.close()
