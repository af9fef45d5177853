// Makes each example of the documentation a form that sends it.

import { address, apiKey, ask, askForKey, askJson } from "./api.js";
import { $, copy, h, icon, say } from "./dom.js";
import { chooseTheme } from "./theme_switch.js";

const MOST = 20000; // characters of an answer that are shown
const KINDS = [[/embeddings/, "embed"], [/rerank|score/, "score"]];

class Example {
  constructor(pre) {
    const { method, path, kind } = pre.dataset;
    Object.assign(this, { method, path, kind, abort: null });
    this.target = h("input", { value: path, "aria-label": `Path of ${method} ${path}`, spellcheck: "false" });
    const text = kind === "none" ? null : pre.textContent;
    this.body = text === null ? null : h("textarea", { rows: Math.min(14, text.split("\n").length + 1), spellcheck: "false", "aria-label": `Body of ${method} ${path}` });
    if (this.body) this.body.value = text;
    this.button = h("button", { type: "submit", class: "button primary", text: "Send", "aria-label": `Send ${method} ${path}` });
    const curl = h("button", { type: "button", class: "button", text: "Copy as curl", onclick: () => copy(this.asCurl(), curl) });
    this.outcome = h("span", { class: "outcome" });
    this.answer = h("pre", { class: "answer", tabindex: "0", "aria-label": `Answer of ${method} ${path}` });
    this.answer.hidden = true;
    const form = h("form", { class: "try" }, path.includes("{") || method === "GET" ? this.target : null, this.body,
      h("div", { class: "row wrap" }, this.button, curl, this.outcome), this.answer);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.abort) this.abort.abort();
      else this.send();
    });
    pre.replaceWith(form);
  }

  /** Puts a model's name in the place of MODEL. */
  name(models) {
    const kind = KINDS.find(([path]) => path.test(this.path))?.[1] ?? "generate";
    const model = models.find((one) => one.kind === kind) ?? models[0];
    if (!model) return;
    if (this.body) this.body.value = this.body.value.replace('"MODEL"', JSON.stringify(model.id));
    this.target.value = this.target.value.replace("{model_id}", model.id);
  }

  asCurl() {
    const key = apiKey() ? ' -H "Authorization: Bearer $PLUGSERVE_API_KEY"' : "";
    const start = `curl -X ${this.method} '${address(this.target.value)}'${key}`;
    const quoted = this.body?.value.replaceAll("'", "'\\''");
    if (this.kind === "json") return `${start} -H "Content-Type: application/json" -d '${quoted}'`;
    return this.kind === "file" ? `printf '%s' '${quoted}' | ${start} -F purpose=batch -F 'file=@-;filename=requests.jsonl'` : start;
  }

  content() {
    if (this.kind !== "file") return this.body?.value;
    const form = new FormData();
    form.append("purpose", "batch");
    form.append("file", new Blob([this.body.value]), "requests.jsonl");
    return form;
  }

  async send(isAgain = false) {
    this.abort = new AbortController();
    this.button.textContent = "Stop";
    this.outcome.className = "outcome";
    this.outcome.textContent = "Sent";
    this.answer.textContent = "";
    this.answer.hidden = false;
    let status = 0;
    try {
      const response = await ask(this.target.value, { method: this.method, body: this.content(), signal: this.abort.signal, raw: true });
      status = response.status;
      this.outcome.textContent = `${response.status} ${response.statusText}`;
      this.outcome.classList.toggle("bad", !response.ok);
      await this.read(response);
    } catch (error) {
      this.outcome.textContent = error.name === "AbortError" ? "Stopped" : error.message;
      this.outcome.classList.toggle("bad", error.name !== "AbortError");
    }
    this.abort = null;
    this.button.textContent = "Send";
    say(`Answer: ${this.outcome.textContent}`);
    if (status === 401 && !isAgain && (await askForKey())) await this.send(true);
  }

  async read(response) {
    const isJson = response.headers.get("Content-Type")?.includes("json");
    const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    while (reader) {
      const { done, value } = await reader.read();
      if (done) break;
      text += value;
      if (!isJson) this.answer.textContent = text.slice(-MOST);
      if (!isJson && text.length > 50 * MOST) text = text.slice(-MOST);
    }
    if (!isJson) return;
    const answer = JSON.parse(text);
    this.answer.textContent = JSON.stringify(answer, null, 2).slice(0, MOST);
    if (response.ok) remember(answer);
  }
}

/** Puts the id of what was made into the examples that need one. */
function remember(answer) {
  const name = { response: "response_id", file: "file_id", batch: "batch_id" }[answer.object];
  if (!name) return;
  for (const example of examples) {
    if (example.path.includes(`{${name}}`)) example.target.value = example.path.replace(`{${name}}`, answer.id);
    if (name === "file_id" && example.path === "/v1/batches" && example.body) {
      example.body.value = example.body.value.replace(/("input_file_id": )"[^"]*"/, `$1${JSON.stringify(answer.id)}`);
    }
  }
}

const examples = [...document.querySelectorAll("pre.example")].map((pre) => new Example(pre));
$("enter-key").append(icon("key"));
$("enter-key").addEventListener("click", async () => {
  if (await askForKey("Sent as Authorization: Bearer with each request of this page.")) nameModels();
});
$("theme").addEventListener("click", chooseTheme);

async function nameModels() {
  try {
    const { data } = await askJson("/v1/models");
    for (const example of examples) example.name(data);
  } catch {
    // the examples keep MODEL; sending one says what is wrong
  }
}

nameModels();
