// The playground: conversations, the composer, and the answers that stream into them.

import { askForKey } from "./api.js";
import { streamAnswer } from "./answer_stream.js";
import { $, dialog, h, icon, iconButton, say, setText } from "./dom.js";
import { MessageView } from "./message_view.js";
import { showSnippets } from "./snippets.js";
import { deleteConversation, isConversation, loadConversations, newConversation, saveConversation, titleOf } from "./store.js";

const STARTS = [
  ["Explain", "Explain what a KV cache is, in three short sentences.", { format: "text", useTools: false }],
  ["Write", "Write a haiku about many requests in one batch.", { format: "text", useTools: false }],
  ["Extract as JSON", "Ada is 36 and likes trains, chess and long walks. Who is this?", { format: "schema", useTools: false }],
  ["Look inside", "Name three colours of autumn leaves.", { format: "text", logprobs: true, useTools: false }],
];

export class Chat {
  constructor(controls, models) {
    this.controls = controls;
    this.models = models;
    this.running = new Map(); // conversation id -> AbortController
    this.all = loadConversations();
    this.current = this.all[0] ?? newConversation();
    this.views = [];
    this.log = $("log");
    this.input = $("prompt");
    this.isAtEnd = true;
    this.listen();
    this.open(this.current);
  }

  listen() {
    $("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.isRunning) this.stop();
      else this.sendPrompt();
    });
    this.input.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      if (!this.isRunning) this.sendPrompt();
    });
    this.input.addEventListener("input", () => this.resize());
    $("new-chat").addEventListener("click", () => this.start());
    $("as-code").addEventListener("click", () => this.showAsCode());
    this.log.addEventListener("scroll", () => {
      this.isAtEnd = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 60;
    });
    addEventListener("storage", (event) => isConversation(event.key) && this.reload());
  }

  /** Another tab changed the conversations. */
  reload() {
    if (this.running.size) return;
    this.all = loadConversations();
    const same = this.all.find((one) => one.id === this.current.id);
    if (same) this.open(same, false);
    else this.drawList();
  }

  get isRunning() {
    return this.running.has(this.current.id);
  }

  stop() {
    this.running.get(this.current.id)?.abort();
  }

  start() {
    this.open(newConversation());
    document.body.classList.remove("shows-list");
    this.input.focus();
  }

  open(conversation, focus = true) {
    this.current = conversation;
    this.isAtEnd = true;
    this.drawLog();
    this.drawList();
    this.update();
    if (focus && matchMedia("(min-width: 800px)").matches) this.input.focus({ preventScroll: true });
  }

  // ---- the list of conversations

  drawList() {
    const items = this.all.map((one) => {
      const open = h("button", {
        type: "button", class: "conversation", "aria-current": one.id === this.current.id && "true", title: titleOf(one),
        onclick: () => {
          document.body.classList.remove("shows-list");
          this.open(one);
        },
      }, h("span", { text: titleOf(one) }), h("small", { text: this.running.has(one.id) ? "answering…" : age(one.updated) }));
      return h("li", {}, open,
        iconButton("edit", `Rename: ${titleOf(one)}`, () => this.rename(one)),
        iconButton("trash", `Delete: ${titleOf(one)}`, () => this.remove(one)));
    });
    $("conversations").replaceChildren(...items);
    $("no-conversations").hidden = items.length > 0;
  }

  rename(conversation) {
    const input = h("input", { value: titleOf(conversation), maxlength: 120 });
    const form = h("form", { method: "dialog", class: "form" }, h("label", { class: "field" }, h("span", { text: "Name" }), input),
      h("div", { class: "row end" }, h("button", { class: "button primary", text: "Rename" })));
    form.addEventListener("submit", () => {
      conversation.title = input.value.trim();
      this.keep(conversation);
    });
    const box = dialog("Rename the conversation", form);
    box.showModal();
    input.select();
  }

  remove(conversation) {
    const box = dialog("Delete the conversation?", h("p", { class: "muted", text: titleOf(conversation) }), h("div", { class: "row end" },
      h("button", { type: "button", class: "button", text: "Keep it", onclick: () => box.close() }),
      h("button", {
        type: "button", class: "button danger", text: "Delete",
        onclick: () => {
          this.running.get(conversation.id)?.abort();
          deleteConversation(conversation.id);
          this.all = this.all.filter((one) => one !== conversation);
          box.close();
          if (conversation === this.current) this.open(this.all[0] ?? newConversation());
          else this.drawList();
          say("Deleted");
        },
      })));
    box.showModal();
  }

  keep(conversation = this.current) {
    conversation.updated = Date.now();
    if (!this.all.includes(conversation)) this.all.unshift(conversation);
    this.all.sort((a, b) => b.updated - a.updated);
    if (!saveConversation(conversation)) say("The browser's storage is full: this conversation is not kept. Delete others.");
    this.drawList();
  }

  // ---- messages

  drawLog() {
    this.views = this.current.messages.map((message) => this.view(message));
    const isEmpty = !this.views.length;
    this.log.replaceChildren(...(isEmpty ? [this.welcome()] : this.views.map((view) => view.element)));
    if (this.running.has(this.current.id)) {
      const last = this.views.at(-1);
      last.isStreaming = true;
      last.draw();
    }
    this.scroll();
  }

  view(message) {
    return new MessageView(message, {
      again: () => this.again(message),
      edit: (text) => this.edit(message, text),
      answerTools: (results) => this.answerTools(message, results),
    });
  }

  welcome() {
    return h("section", { class: "welcome" },
      h("h2", { text: "What shall it answer?" }),
      h("p", { id: "model-facts", class: "muted", text: this.models.facts() }),
      h("div", { class: "starts" }, STARTS.map(([name, text, settings]) => h("button", {
        type: "button",
        onclick: () => {
          this.controls.set({ logprobs: false, ...settings });
          this.input.value = text;
          this.resize();
          this.input.focus();
        },
      }, h("strong", { text: name }), h("span", { text })))));
  }

  scroll() {
    if (this.isAtEnd) this.log.scrollTop = this.log.scrollHeight;
  }

  resize() {
    this.input.style.height = "auto";
    this.input.style.height = `${Math.min(220, this.input.scrollHeight)}px`;
  }

  /** What depends on models, settings and the stream. */
  update() {
    const button = $("send");
    button.replaceChildren(icon(this.isRunning ? "stop" : "send"));
    const label = this.isRunning ? "Stop (Esc)" : "Send (Enter)";
    button.setAttribute("aria-label", label);
    button.title = label;
    button.classList.toggle("stop", this.isRunning);
    const facts = $("model-facts");
    if (facts) setText(facts, this.models.facts());
  }

  // ---- sending

  sendPrompt() {
    const text = this.input.value.trim();
    if (!text) return;
    this.input.value = "";
    this.resize();
    this.send([{ role: "user", content: text }]);
  }

  again(message) {
    if (this.isRunning) return;
    this.cut(this.current.messages.indexOf(message));
    this.send([]);
  }

  /** The last answer again. */
  regenerate() {
    const last = this.current.messages.at(-1);
    if (last?.role === "assistant") this.again(last);
  }

  edit(message, text) {
    if (this.isRunning) return;
    if (message.role === "user") {
      this.cut(this.current.messages.indexOf(message));
      this.send([{ role: "user", content: text }]);
      return;
    }
    message.content = text;
    delete message.tokens;
    this.keep();
    this.drawLog();
  }

  answerTools(message, results) {
    message.isAnswered = true;
    this.send(results.map(({ id, name, content }) => ({ role: "tool", tool_call_id: id, name, content })));
  }

  cut(index) {
    this.current.messages.splice(index);
  }

  /** The request's body. Raises Error about faulty settings. */
  body(messages) {
    const system = (this.controls.values.system ?? "").trim();
    return {
      model: this.models.chosen,
      messages: [...(system ? [{ role: "system", content: system }] : []), ...messages.filter((one) => !one.error).map(asSent)],
      ...this.controls.body(),
      stream: true,
      stream_options: { include_usage: true },
    };
  }

  async send(added) {
    const conversation = this.current;
    if (this.running.has(conversation.id)) return;
    conversation.messages.push(...added);
    const answer = { role: "assistant", content: "", model: this.models.short(this.models.chosen) };
    const status = this.models.info?.status?.value;
    if (status && status !== "loaded") answer.note = "The model is loaded first, which takes a while";
    let body;
    try {
      body = this.body(conversation.messages);
    } catch (error) {
      answer.error = error.message;
    }
    conversation.messages.push(answer);
    const abort = new AbortController();
    if (body) this.running.set(conversation.id, abort);
    this.isAtEnd = true;
    this.keep(conversation);
    this.drawLog();
    this.update();
    if (!body) return;
    say("Generating");
    await this.stream(conversation, answer, body, abort.signal);
  }

  async stream(conversation, answer, body, signal) {
    let frame = 0;
    const draw = () => {
      frame = 0;
      const view = this.views.find((one) => one.message === answer);
      view?.draw();
      this.scroll();
    };
    try {
      await streamAnswer(body, answer, signal, () => (frame ||= requestAnimationFrame(draw)));
    } catch (error) {
      if (error.name === "AbortError" || signal.aborted) answer.stopped = true;
      else answer.error = error.message;
      if (error.status === 401) this.enterKey(conversation, answer);
    }
    cancelAnimationFrame(frame);
    if (answer.note) this.models.load();
    delete answer.note;
    this.running.delete(conversation.id);
    this.keep(conversation);
    const view = this.views.find((one) => one.message === answer);
    if (view) {
      view.isStreaming = false;
      view.draw();
      this.scroll();
    }
    this.update();
    say(answer.error ? `Error: ${answer.error}` : answer.stopped ? "Stopped" : `Answered, ${answer.usage?.completion_tokens ?? "some"} tokens`);
  }

  async enterKey(conversation, answer) {
    if ((await askForKey("The server refused the request without a valid API key.")) && conversation === this.current) {
      await this.models.load();
      this.again(answer);
    }
  }

  showAsCode() {
    try {
      const draft = this.input.value.trim();
      const messages = this.current.messages.filter((one, index, all) => index < all.length - 1 || one.role !== "assistant");
      if (draft) messages.push({ role: "user", content: draft });
      if (!messages.length) messages.push({ role: "user", content: "Name the capital of France." });
      showSnippets(this.body(messages));
    } catch (error) {
      showFault(error.message);
    }
  }
}

function showFault(text) {
  dialog("That request can't be made", h("p", { text })).showModal();
}

function asSent({ role, content, tool_calls, tool_call_id }) {
  const sent = { role, content };
  if (tool_calls) sent.tool_calls = tool_calls.filter(Boolean);
  if (tool_call_id) sent.tool_call_id = tool_call_id;
  return sent;
}

function age(time) {
  const minutes = (Date.now() - time) / 60000;
  if (minutes < 1) return "now";
  if (minutes < 60) return `${Math.floor(minutes)} min ago`;
  if (minutes < 1440) return `${Math.floor(minutes / 60)} h ago`;
  return new Date(time).toLocaleDateString(undefined, { day: "numeric", month: "short" });
}
