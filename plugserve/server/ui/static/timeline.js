// The last requests as bars: before the engine, queue, prefill, decode; and in words, why one was slow.

import { askJson } from "./api.js";
import { $, h, setText } from "./dom.js";

const PARTS = [["before", "before_ms", "server"], ["queue", "queue_ms", "queue"], ["prefill", "prefill_ms", "prefill"], ["decode", "decode_ms", "decode"]];
const SHOWN = 40;
const EVERY_MS = 1500;

export class Timeline {
  constructor() {
    this.filter = "all";
    this.rows = new Map();
    this.asked = 0;
    this.requests = [];
    for (const input of document.querySelectorAll("input[name=timeline-filter]")) {
      input.addEventListener("change", () => {
        this.filter = input.value;
        this.draw();
      });
    }
  }

  async refresh(signal) {
    if (performance.now() - this.asked < EVERY_MS) return;
    this.asked = performance.now();
    try {
      this.requests = (await askJson(`/live/requests?limit=${4 * SHOWN}`, { signal })).requests;
    } catch {
      return; // the feed beside it says what is wrong
    }
    this.draw();
  }

  draw() {
    const isShown = { all: () => true, slow: (one) => one.why, failed: (one) => one.state === "failed" || one.state === "aborted" }[this.filter];
    const shown = this.requests.filter(isShown).slice(0, SHOWN);
    const longest = Math.max(1, ...shown.map((one) => one.total_ms));
    const list = $("timeline");
    const kept = new Map();
    shown.forEach((request, index) => {
      const key = `${request.id} ${request.arrived}`;
      const row = this.rows.get(key) ?? new Row();
      kept.set(key, row);
      row.draw(request, longest);
      if (list.children[index] !== row.element) list.insertBefore(row.element, list.children[index] ?? null);
    });
    for (const [key, row] of this.rows) if (!kept.has(key)) row.element.remove();
    this.rows = kept;
    const none = { all: "No request yet. Ask something in the chat.", slow: "None of the last requests was slow.", failed: "None of the last requests failed or was stopped." };
    setText($("timeline-none"), shown.length ? "" : none[this.filter]);
    setText($("longest"), shown.length ? `the longest took ${ms(longest)}` : "");
  }
}

class Row {
  constructor() {
    this.bars = PARTS.map(([name]) => h("i", { class: name }));
    this.when = h("span", { class: "when" });
    this.route = h("span", { class: "route" });
    this.total = h("span", { class: "total" });
    this.state = h("span", { class: "badge" });
    this.why = h("p", { class: "why" });
    this.details = h("dl");
    this.element = h("li", {}, h("details", {},
      h("summary", {}, h("span", { class: "request-line" }, this.when, this.route, this.state, this.total), h("span", { class: "bars", "aria-hidden": "true" }, this.bars), this.why),
      this.details));
  }

  draw(request, longest) {
    setText(this.when, new Date(1000 * request.arrived).toLocaleTimeString("en-GB"));
    setText(this.route, [request.adapter ?? request.model, `${request.prompt_tokens} → ${request.output_tokens} tokens`].join(" · "));
    setText(this.total, ms(request.total_ms));
    setText(this.state, request.state === "done" ? "" : request.state);
    this.state.dataset.state = request.state;
    this.state.hidden = request.state === "done";
    PARTS.forEach(([, field, word], index) => {
      const bar = this.bars[index];
      const value = request[field] ?? 0;
      bar.style.width = `${(100 * value) / longest}%`;
      bar.title = `${word}: ${ms(value)}`;
    });
    setText(this.why, request.why ?? "");
    this.why.hidden = !request.why;
    const facts = [["Request", request.id], ["Route", request.route ?? "–"], ["In the server before", ms(request.before_ms)], ["Queue", ms(request.queue_ms)],
      ["Prefill", ms(request.prefill_ms)], ["Decode", ms(request.decode_ms)], ["Unread by the client", ms(request.unread_ms)],
      ["Prompt", `${request.prompt_tokens} tokens, ${request.cached_tokens} from the prefix cache`], ["Preemptions", String(request.preemptions)],
      ["Ended by", request.finish_reason ?? "–"]];
    const text = JSON.stringify(facts);
    if (text === this.drawn) return;
    this.drawn = text;
    this.details.replaceChildren(...facts.map(([name, value]) => h("div", {}, h("dt", { text: name }), h("dd", { text: value }))));
  }
}

function ms(value) {
  if (value === null || value === undefined) return "–";
  return value < 10 ? `${value.toFixed(1)} ms` : value < 1000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`;
}
