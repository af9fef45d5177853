// Requests to the server that this page came from, with the API key; errors in words; server-sent events.

import { dialog, h, say } from "./dom.js";

const KEY = "plugserve.key";
const BASE = new URL(".", document.baseURI);

/** The address of a path such as /v1/models, below the path of a proxy. */
export const address = (path) => new URL(path.replace(/^\//, ""), BASE);

export function apiKey() {
  try {
    return sessionStorage.getItem(KEY) || localStorage.getItem(KEY) || "";
  } catch {
    return "";
  }
}

function keepKey(key, isKept) {
  try {
    sessionStorage.setItem(KEY, key);
    if (isKept && key) localStorage.setItem(KEY, key);
    else localStorage.removeItem(KEY);
  } catch {
    // it lasts as long as the page
  }
}

/** A failure in words. status is 0 where no answer came. */
export class ApiError extends Error {
  constructor(message, status = 0, param = null) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

const HINTS = {
  401: "Enter the API key with the key button.",
  404: "Choose another model in the list above.",
  429: "Too many requests for now.",
  503: "The server is busy, or a model is not ready.",
  504: "It took longer than the server allows (--request-timeout).",
};

/** The error of an answer's or an event's JSON. */
export function asError(body, status = 0, retryAfter = null) {
  const error = body?.error ?? body ?? {};
  const said = typeof error === "string" ? error : error.message;
  const parts = [said || `The server answered with status ${status}.`];
  if (HINTS[status]) parts.push(HINTS[status]);
  if (retryAfter) parts.push(`Try again in ${retryAfter} s.`);
  return new ApiError(parts.join(" "), status, error.param ?? null);
}

/** The Response, if it is no error. Raises ApiError; an AbortError passes. */
export async function ask(path, { method = "GET", body, signal, raw = false } = {}) {
  const headers = {};
  if (apiKey()) headers.Authorization = `Bearer ${apiKey()}`;
  const isForm = body instanceof FormData;
  if (body !== undefined && !isForm) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(address(path), {
      method,
      headers,
      signal,
      body: body === undefined || isForm || typeof body === "string" ? body : JSON.stringify(body),
    });
  } catch (failure) {
    if (failure.name === "AbortError") throw failure;
    throw new ApiError("The server can't be reached. Is it running, and are you connected?");
  }
  if (response.ok || raw) return response;
  const text = await response.text();
  let parsed = null;
  try {
    parsed = JSON.parse(text);
  } catch {
    parsed = { message: text.slice(0, 300) };
  }
  throw asError(parsed, response.status, response.headers.get("Retry-After"));
}

export const askJson = async (path, options) => (await ask(path, options)).json();

/** The data of a stream's events, one text each. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + value).split(/\r?\n\r?\n/);
      rest = parts.pop();
      for (const part of parts) {
        const data = part.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
        if (data.length) yield data.join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

let asked = null;

/** Asks for the API key; true once one was entered. Opens one dialog at a time. */
export function askForKey(reason = "This server needs an API key.") {
  asked ??= new Promise((resolve) => {
    const input = h("input", {
      type: "password", id: "key-input", autocomplete: "off", spellcheck: "false", value: apiKey(), "aria-describedby": "key-reason",
    });
    const isKept = h("input", { type: "checkbox" });
    let entered = false;
    const form = h("form", { method: "dialog", class: "form" },
      h("p", { id: "key-reason", class: "muted", text: reason }),
      h("label", { class: "field" }, h("span", { text: "API key" }), input),
      h("label", { class: "check" }, isKept, "Keep it in this browser; else until the tab is closed"),
      h("div", { class: "row end" }, h("button", { class: "button primary", text: "Use this key" })));
    form.addEventListener("submit", () => {
      keepKey(input.value.trim(), isKept.checked);
      entered = true;
      say("Key entered");
    });
    const box = dialog("API key", form);
    box.addEventListener("close", () => {
      asked = null;
      resolve(entered);
    });
    box.showModal();
    input.focus();
  });
  return asked;
}
