// One message on the page: text, thinking, tool calls, figures, and what can be done with it.

import { copy, h, icon, iconButton } from "./dom.js";
import { renderMarkdown } from "./markdown.js";
import { TokenView } from "./token_view.js";

const ENDS = {
  length: "cut at max tokens",
  content_filter: "ended by a filter",
  tool_calls: "calls tools",
};

/** actions: again(), edit(text), answerTools(results), each bound to the message. */
export class MessageView {
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.isStreaming = false;
    this.showsTokens = Boolean(message.tokens);
    this.body = h("div", { class: "message-body" });
    this.foot = h("div", { class: "message-foot" });
    this.element = h("article", { class: `message ${message.role}`, "aria-label": NAMES[message.role] }, this.body, this.foot);
    this.draw();
  }

  /** Call after the message changed. */
  draw() {
    const { message } = this;
    if (message.role === "user") this.body.replaceChildren(h("div", { class: "bubble", text: message.content }));
    else if (message.role === "tool") this.body.replaceChildren(toolResult(message));
    else this.drawAnswer();
    this.foot.replaceChildren(...this.footer());
    this.element.classList.toggle("streaming", this.isStreaming);
    this.element.setAttribute("aria-busy", String(this.isStreaming));
  }

  drawAnswer() {
    const { message } = this;
    if (!this.text) {
      this.thinking = null;
      this.text = h("div", { class: "prose" });
      this.tokens = null;
      this.calls = h("div", { class: "calls" });
      this.wait = h("div", { class: "wait" }, h("i"), h("i"), h("i"), h("span", { text: message.note ?? "Waiting for the first token" }));
      this.error = h("p", { class: "error", role: "alert" });
      this.body.replaceChildren(this.wait, this.text, this.calls, this.error);
    }
    if (message.reasoning) this.drawThinking();
    if (message.tokens && !this.tokens) {
      this.tokens = new TokenView();
      this.showsTokens = true;
      this.text.after(this.tokens.element);
    }
    if (this.tokens) this.tokens.add(message.tokens ?? []);
    if (this.tokens) this.tokens.element.hidden = !this.showsTokens;
    this.text.hidden = Boolean(this.tokens && this.showsTokens);
    if (!this.text.hidden) drawText(this.text, message.content);
    const calls = JSON.stringify(message.tool_calls ?? null) + this.isStreaming + Boolean(message.isAnswered);
    if (calls !== this.drawnCalls) this.drawCalls();
    this.drawnCalls = calls;
    const isEmpty = !message.content && !message.reasoning && !message.tool_calls;
    this.wait.hidden = !(this.isStreaming && isEmpty);
    if (this.error.textContent !== (message.error ?? "")) this.error.textContent = message.error ?? "";
    this.error.hidden = !message.error;
  }

  drawThinking() {
    const { message } = this;
    if (!this.thinking) {
      this.thoughts = h("div", { class: "prose" });
      this.thinking = h("details", { class: "thinking" }, h("summary", {}, h("span", { text: "Thinking" })), this.thoughts);
      this.text.before(this.thinking);
    }
    const isThinking = this.isStreaming && !message.content;
    this.thinking.querySelector("span").textContent = isThinking ? "Thinking…" : "Thought about it";
    drawText(this.thoughts, message.reasoning);
  }

  drawCalls() {
    const { message } = this;
    const inputs = [];
    const cards = (message.tool_calls ?? []).filter(Boolean).map((call) => {
      const input = h("textarea", { rows: 2, placeholder: '{"result": ...}', class: "mono" });
      inputs.push([call, input]);
      const canAnswer = !this.isStreaming && !message.isAnswered;
      return h("div", { class: "call" },
        h("div", { class: "call-name" }, icon("tool"), h("code", { text: call.function.name || "…" })),
        h("pre", { tabindex: "0", "aria-label": "Arguments" }, h("code", { text: pretty(call.function.arguments) })),
        canAnswer && h("label", { class: "field" }, h("span", { text: `What ${call.function.name} returns` }), input));
    });
    const send = () => this.actions.answerTools(inputs.map(([call, input]) => ({ id: call.id, name: call.function.name, content: input.value || "{}" })));
    const isOpen = inputs.length && !this.isStreaming && !message.isAnswered;
    this.calls.replaceChildren(...cards, isOpen ? h("button", { type: "button", class: "button primary", text: "Send the results", onclick: send }) : "");
  }

  footer() {
    const { message } = this;
    if (this.isStreaming || message.role === "tool") return [];
    const button = iconButton("copy", "Copy the text", () => copy(message.content, button));
    const parts = [button, iconButton("edit", "Edit this message", () => this.edit())];
    if (message.role === "assistant") {
      parts.push(iconButton("again", "Answer again", this.actions.again));
      if (message.tokens) {
        parts.push(iconButton("tokens", this.showsTokens ? "Show as text" : "Show token probabilities", () => {
          this.showsTokens = !this.showsTokens;
          this.draw();
          this.foot.querySelector("[aria-pressed]")?.focus();
        }, { "aria-pressed": String(this.showsTokens) }));
      }
      parts.push(h("span", { class: "figures", text: figures(message) }));
    }
    return parts;
  }

  edit() {
    const { message } = this;
    const isUser = message.role === "user";
    const input = h("textarea", { rows: Math.min(14, message.content.split("\n").length + 1), "aria-label": "The message's text" });
    input.value = message.content;
    const leave = () => {
      this.text = null;
      this.draw();
    };
    const save = () => this.actions.edit(input.value);
    input.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        leave();
      } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
    });
    this.body.replaceChildren(h("div", { class: "editor" }, input, h("div", { class: "row end" },
      h("button", { type: "button", class: "button", text: "Cancel", onclick: leave }),
      h("button", { type: "button", class: "button primary", text: isUser ? "Send again" : "Keep", onclick: save }))));
    this.foot.replaceChildren();
    input.focus();
  }
}

const NAMES = { user: "You", assistant: "Answer", tool: "Result of a tool" };

function drawText(element, text) {
  try {
    renderMarkdown(element, text);
  } catch {
    element.replaceChildren(h("p", { text })); // nested deeper than the stack allows
  }
}

function toolResult(message) {
  return h("details", { class: "call" }, h("summary", { text: `Result of ${message.name ?? "the tool"}` }), h("pre", { tabindex: "0" }, h("code", { text: pretty(message.content) })));
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

function figures({ usage, timing, finish, stopped, model }) {
  const parts = [];
  if (model) parts.push(model);
  const count = usage?.completion_tokens;
  if (count) parts.push(count === 1 ? "1 token" : `${count} tokens`);
  if (count > 1 && timing?.generating_ms > 0) parts.push(`${((count - 1) / (timing.generating_ms / 1000)).toFixed(1)} tok/s`);
  if (timing?.first_ms) parts.push(`first after ${duration(timing.first_ms)}`);
  const cached = usage?.prompt_tokens_details?.cached_tokens;
  if (cached) parts.push(`${cached} of ${usage.prompt_tokens} prompt tokens cached`);
  if (stopped) parts.push("stopped");
  else if (ENDS[finish]) parts.push(ENDS[finish]);
  return parts.join(" · ");
}

const duration = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);
