// A request as a curl command and as a Python program; the key is taken from the environment, never written.

import { address, apiKey } from "./api.js";
import { copy, dialog, h } from "./dom.js";

export function asCurl(body) {
  const key = apiKey() ? ` \\\n  -H "Authorization: Bearer $PLUGSERVE_API_KEY"` : "";
  const text = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  return `curl ${body.stream ? "-N " : ""}${address("/v1/chat/completions")} \\\n  -H "Content-Type: application/json"${key} \\\n  -d '${text}'`;
}

const OPENAI = new Set(["model", "messages", "temperature", "top_p", "presence_penalty", "frequency_penalty", "max_tokens", "seed",
  "stop", "logprobs", "top_logprobs", "response_format", "tools", "tool_choice", "reasoning_effort", "stream"]);

export function asPython(body) {
  const known = Object.entries(body).filter(([name]) => OPENAI.has(name));
  const extra = Object.fromEntries(Object.entries(body).filter(([name]) => !OPENAI.has(name) && name !== "stream_options"));
  const lines = known.map(([name, value]) => `    ${name}=${python(value, 4)},`);
  if (Object.keys(extra).length) lines.push(`    extra_body=${python(extra, 4)},`);
  const key = apiKey() ? 'os.environ["PLUGSERVE_API_KEY"]' : '"none"';
  const read = body.stream
    ? 'for chunk in answer:\n    if chunk.choices:\n        print(chunk.choices[0].delta.content or "", end="", flush=True)'
    : "print(answer.choices[0].message.content)";
  return `${apiKey() ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url="${address("/v1")}", api_key=${key})
answer = client.chat.completions.create(
${lines.join("\n")}
)
${read}
`;
}

function python(value, indent) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const pad = " ".repeat(indent + 4);
  const isList = Array.isArray(value);
  const parts = isList
    ? value.map((one) => `${pad}${python(one, indent + 4)},`)
    : Object.entries(value).map(([name, one]) => `${pad}${JSON.stringify(name)}: ${python(one, indent + 4)},`);
  const [open, close] = isList ? "[]" : "{}";
  return parts.length ? `${open}\n${parts.join("\n")}\n${" ".repeat(indent)}${close}` : open + close;
}

/** A dialog with the request in both forms. */
export function showSnippets(body) {
  const forms = [["curl", asCurl(body)], ["Python", asPython(body)]];
  const code = h("code");
  const pre = h("pre", { tabindex: "0", class: "snippet", "aria-label": "The request" }, code);
  const button = h("button", { type: "button", class: "button primary", text: "Copy" });
  button.addEventListener("click", () => copy(code.textContent, button));
  const tabs = forms.map(([name, text], index) => {
    const input = h("input", { type: "radio", name: "snippet", checked: index === 0 });
    input.addEventListener("change", () => (code.textContent = text));
    return h("label", {}, input, h("span", { text: name }));
  });
  code.textContent = forms[0][1];
  const box = dialog("Send it from a program",
    h("div", { class: "row between" }, h("fieldset", { class: "segmented" }, h("legend", { class: "offscreen", text: "Form" }), h("div", {}, tabs)), button), pre);
  box.classList.add("wide");
  box.showModal();
}
