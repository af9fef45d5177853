// The panel of settings: sampling, system prompt, output format, tools. Which controls there are says the server's
// own schema of requests (/openapi.json).

import { h, iconButton } from "./dom.js";
import { loadSettings, saveSettings } from "./store.js";

const SLIDERS = [
  ["temperature", "Temperature", 0, 2, 0.05, "How much chance decides: 0 always takes the likeliest token"],
  ["top_p", "Top p", 0.01, 1, 0.01, "Draw among the likeliest tokens that together have this probability"],
  ["top_k", "Top k", 0, 200, 1, "Draw among this many of the likeliest tokens; 0 is no limit"],
  ["min_p", "Min p", 0, 1, 0.01, "Drop tokens below this share of the likeliest one's probability"],
  ["presence_penalty", "Presence penalty", -2, 2, 0.1, "Makes tokens that have appeared less likely"],
  ["frequency_penalty", "Frequency penalty", -2, 2, 0.1, "The same, for each time that they appeared"],
  ["repetition_penalty", "Repetition penalty", 0.5, 2, 0.05, "Divides the logits of tokens that appeared, prompt included"],
];
const NUMBERS = [
  ["max_tokens", "Max tokens", 1, "no limit", "The longest answer"],
  ["seed", "Seed", null, "random", "The same seed and request give the same answer"],
];
const SCHEMA_EXAMPLE = {
  type: "object",
  properties: { name: { type: "string" }, age: { type: "integer" }, likes: { type: "array", items: { type: "string" } } },
  required: ["name", "age", "likes"],
  additionalProperties: false,
};
const TOOLS_EXAMPLE = [{
  type: "function",
  function: {
    name: "get_weather",
    description: "The weather of a city now",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
}];

/** The settings and their panel. changed() is called after each change. */
export class Controls {
  constructor(panel, changed) {
    this.panel = panel;
    this.changed = changed;
    this.values = { format: "text", tool_choice: "auto", ...loadSettings() };
    this.fields = null;
    this.draw();
  }

  /** fields: the properties of the server's chat body; controls of others are hidden. */
  learn(fields) {
    this.fields = fields;
    this.draw();
  }

  set(values) {
    Object.assign(this.values, values);
    this.keep();
    this.draw();
  }

  keep() {
    saveSettings(this.values);
    this.changed();
  }

  has(name) {
    return !this.fields || name in this.fields;
  }

  /** The body's fields besides model and messages. Raises Error with words about a faulty one. */
  body() {
    const values = this.values;
    const body = {};
    for (const [name] of [...SLIDERS, ...NUMBERS]) {
      if (this.has(name) && typeof values[name] === "number" && !Number.isNaN(values[name])) body[name] = values[name];
    }
    const stop = (values.stop ?? "").split("\n").filter(Boolean);
    if (stop.length) body.stop = stop;
    if (values.reasoning_effort && this.has("reasoning_effort")) body.reasoning_effort = values.reasoning_effort;
    if (values.logprobs) Object.assign(body, { logprobs: true, top_logprobs: 5 });
    if (values.format === "json") body.response_format = { type: "json_object" };
    if (values.format === "schema") {
      const schema = parsed(values.schema, "JSON schema", (one) => one && typeof one === "object" && !Array.isArray(one), "an object");
      body.response_format = { type: "json_schema", json_schema: { name: "answer", schema, strict: true } };
    }
    if (values.useTools) {
      body.tools = parsed(values.tools, "Tools", Array.isArray, "a list");
      if (values.tool_choice !== "auto") body.tool_choice = values.tool_choice;
    }
    return body;
  }

  draw() {
    this.panel.replaceChildren(
      this.group("Instructions", [
        this.area("system", "System prompt", "You are a helpful assistant.", 4),
      ]),
      this.group("Output", [
        this.choice("format", "Answer as", [["text", "Text"], ["json", "JSON"], ["schema", "Schema"]]),
        this.values.format === "schema" && this.area("schema", "JSON schema", "", 9, "object", SCHEMA_EXAMPLE),
        this.toggle("logprobs", "Token probabilities", "Colours each token; point at one to see what else was likely"),
        this.has("reasoning_effort") && this.select("reasoning_effort", "Reasoning effort",
          [["", "Model's own"], ...["none", "low", "medium", "high"].map((one) => [one, one])]),
      ]),
      this.group("Tools", [
        this.toggle("useTools", "Offer tools", "The model may answer with calls; you enter their results"),
        this.values.useTools && this.area("tools", "Tools (JSON)", "", 9, "list", TOOLS_EXAMPLE),
        this.values.useTools && this.select("tool_choice", "Tool choice", ["auto", "required", "none"].map((one) => [one, one])),
      ]),
      this.group("Sampling", [
        ...SLIDERS.filter(([name]) => this.has(name)).map((slider) => this.slider(...slider)),
        ...NUMBERS.filter(([name]) => this.has(name)).map((number) => this.number(...number)),
        this.area("stop", "Stop strings", "one a line", 2),
        h("button", { type: "button", class: "button", text: "Reset to the model's own", onclick: () => this.reset() }),
      ]));
  }

  reset() {
    for (const [name] of [...SLIDERS, ...NUMBERS]) delete this.values[name];
    this.values.stop = "";
    this.keep();
    this.draw();
  }

  group(title, children) {
    return h("section", { class: "group" }, h("h3", { text: title }), children);
  }

  put(name, value) {
    if (value === undefined) delete this.values[name];
    else this.values[name] = value;
    this.keep();
  }

  slider(name, label, min, max, step, help) {
    const value = this.values[name];
    const id = `set-${name}`;
    const number = h("input", { type: "number", id, min, max, step: "any", placeholder: "auto", value: value ?? "", title: help });
    const range = h("input", { type: "range", min, max, step, value: value ?? neutral(name, max), "aria-label": `${label}, slider`, class: value === undefined && "unset" });
    range.addEventListener("input", () => {
      number.value = range.value;
      range.classList.remove("unset");
      this.put(name, Number(range.value));
    });
    number.addEventListener("input", () => {
      const given = number.value === "" ? undefined : Number(number.value);
      range.value = given ?? neutral(name, max);
      range.classList.toggle("unset", given === undefined);
      this.put(name, given);
    });
    return h("div", { class: "slider", title: help }, h("label", { for: id, text: label }), number, range);
  }

  number(name, label, min, placeholder, help) {
    const input = h("input", { type: "number", min, step: 1, placeholder, value: this.values[name] ?? "" });
    input.addEventListener("input", () => this.put(name, input.value === "" ? undefined : Math.trunc(Number(input.value))));
    return h("label", { class: "inline-field", title: help }, h("span", { text: label }), input);
  }

  area(name, label, placeholder, rows, kind = null, example = null) {
    const input = h("textarea", { rows, placeholder, spellcheck: kind ? "false" : "true", class: kind ? "mono" : null, id: `set-${name}` });
    if (kind && !this.values[name]) this.values[name] = JSON.stringify(example, null, 2);
    input.value = this.values[name] ?? "";
    const fault = h("p", { class: "fault", role: "status", id: `fault-${name}` });
    if (kind) input.setAttribute("aria-describedby", fault.id);
    const check = () => {
      if (!kind) return;
      try {
        parsed(input.value, label, (one) => one && Array.isArray(one) === (kind === "list"), kind === "list" ? "a list" : "an object");
        fault.textContent = "";
      } catch (error) {
        fault.textContent = error.message;
      }
    };
    input.addEventListener("input", () => {
      this.put(name, input.value);
      check();
    });
    check();
    const again = example && iconButton("again", "Put the example back", () => {
      input.value = JSON.stringify(example, null, 2);
      input.dispatchEvent(new Event("input"));
    });
    return h("div", { class: "field" }, h("div", { class: "row" }, h("label", { for: input.id, text: label }), again), input, kind && fault);
  }

  toggle(name, label, help) {
    const input = h("input", { type: "checkbox", role: "switch", checked: Boolean(this.values[name]) });
    input.addEventListener("change", () => {
      this.put(name, input.checked);
      if (name === "useTools") this.redraw(input);
    });
    return h("label", { class: "switch", title: help }, h("span", {}, label, h("small", { text: help })), input);
  }

  select(name, label, options) {
    const input = h("select", {}, options.map(([value, text]) => h("option", { value, text, selected: value === (this.values[name] ?? "") })));
    input.addEventListener("change", () => this.put(name, input.value));
    return h("label", { class: "inline-field" }, h("span", { text: label }), input);
  }

  choice(name, label, options) {
    const inputs = options.map(([value, text]) => {
      const input = h("input", { type: "radio", name: `set-${name}`, value, checked: this.values[name] === value });
      input.addEventListener("change", () => {
        this.put(name, value);
        this.redraw(input);
      });
      return h("label", {}, input, h("span", { text }));
    });
    return h("fieldset", { class: "segmented" }, h("legend", { text: label }), h("div", {}, inputs));
  }

  /** Draws anew, and puts the focus back where it was. */
  redraw(focused) {
    const all = () => [...this.panel.querySelectorAll("input,textarea,select")];
    const { type, name, value } = focused;
    const label = focused.closest("label")?.textContent;
    this.draw();
    all().find((one) => one.type === type && one.name === name && one.value === value && one.closest("label")?.textContent === label)?.focus();
  }
}

const neutral = (name, max) => ({ temperature: 1, top_p: 1, repetition_penalty: 1, presence_penalty: 0, frequency_penalty: 0 })[name] ?? Math.min(0, max);

function parsed(text, label, isRight, kind) {
  let value;
  try {
    value = JSON.parse(text || "");
  } catch (error) {
    throw new Error(`${label} is no JSON: ${error.message}`);
  }
  if (!isRight(value)) throw new Error(`${label} must be ${kind}.`);
  return value;
}
