// The live view: the server's snapshots, one a second, while it is on the screen.

import { ask, askForKey, events } from "./api.js";
import { Sparkline, drawKvMap } from "./charts.js";
import { $, h, say, setText } from "./dom.js";
import { Timeline } from "./timeline.js";

const TILES = [
  ["running", "Running", "requests", true],
  ["waiting", "Waiting", "requests", true],
  ["generated", "Generated", "tokens a second", true],
  ["prompt", "Prompts", "tokens a second", true],
  ["ttft", "First token", "from arrival to the first token"],
  ["itl", "Between tokens", "of a request, median"],
  ["prefix", "Prefix hits", "of prompt tokens, since the start"],
  ["drafts", "Drafts accepted", "of draft tokens, since the start"],
];

export class Live {
  constructor() {
    this.abort = null;
    this.cards = new Map();
    this.tiles = new Map(TILES.map(([name, label, help, hasLine]) => {
      const line = hasLine ? new Sparkline() : null;
      const value = h("strong", { text: "–" });
      const note = h("small", { text: help });
      $("tiles").append(h("div", { class: "tile" }, h("span", { text: label }), value, note, line?.element));
      return [name, { value, note, line }];
    }));
    this.timeline = new Timeline();
    document.addEventListener("visibilitychange", () => this.follow());
    addEventListener("resize", () => this.last && this.drawMaps(this.last));
  }

  /** Runs while the view is shown and the tab is in front. */
  show(isShown) {
    this.isShown = isShown;
    this.follow();
  }

  follow() {
    const runs = this.isShown && !document.hidden;
    if (runs && !this.abort) this.run();
    if (!runs && this.abort) {
      this.abort.abort();
      this.abort = null;
    }
  }

  async run() {
    const abort = (this.abort = new AbortController());
    let wait = 1000;
    while (!abort.signal.aborted) {
      try {
        const response = await ask("/live", { signal: abort.signal });
        for await (const data of events(response)) {
          wait = 1000;
          this.state("live", "Live");
          this.draw(JSON.parse(data));
          this.timeline.refresh(abort.signal);
        }
        this.state("lost", "The server ended the feed; asking again");
      } catch (error) {
        if (abort.signal.aborted) return;
        this.state("lost", error.message);
        if (error.status === 401 && !(await askForKey("The live view needs an API key."))) wait = 30000;
      }
      await new Promise((resolve) => setTimeout(resolve, wait));
      wait = Math.min(15000, wait * 2);
    }
  }

  state(kind, text) {
    const badge = $("live-state");
    if (badge.dataset.kind !== kind) say(kind === "live" ? "The live view is connected" : text);
    badge.dataset.kind = kind;
    setText(badge, text);
  }

  draw(snapshot) {
    this.last = snapshot;
    const engines = snapshot.models.flatMap((model) => model.engines);
    const sum = (name) => engines.reduce((total, one) => total + (one[name] ?? 0), 0);
    const { latency } = snapshot;
    this.tile("running", count(sum("running")), null, sum("running"));
    this.tile("waiting", count(sum("waiting")), null, sum("waiting"));
    this.tile("generated", rate(sum("generation_tokens_per_s")), null, sum("generation_tokens_per_s"));
    this.tile("prompt", rate(sum("prompt_tokens_per_s")), null, sum("prompt_tokens_per_s"));
    this.tile("ttft", time(latency.ttft_ms?.p50), spread(latency.ttft_ms));
    this.tile("itl", time(latency.itl_ms?.p50), spread(latency.itl_ms));
    const [hits, accepted] = [average(engines, "prefix_hit_rate"), average(engines, "draft_acceptance")];
    this.tile("prefix", share(hits), hits === null ? "no prefix cache is used" : "of prompt tokens, since the start");
    this.tile("drafts", share(accepted), accepted === null ? "no drafts are made" : "of draft tokens, since the start");
    setText($("uptime"), `plugserve ${snapshot.version}${snapshot.uptime_s === null ? "" : `, up ${long(snapshot.uptime_s)}`}`);
    snapshot.models.forEach((model) => this.drawModel(model));
    for (const [name, card] of this.cards) {
      if (snapshot.models.some((model) => model.name === name)) continue;
      card.element.remove();
      this.cards.delete(name);
    }
    this.drawMaps(snapshot);
    drawRows($("plugins"), snapshot.plugins.map((one) => [one.name, one.kind, one.calls.toLocaleString("en"), time(one.time_ms),
      one.calls ? time(one.time_ms / one.calls) : "–", one.failures ? { text: String(one.failures), class: "bad" } : "0"]));
    drawRows($("workers"), snapshot.workers.map((one) => [String(one.index), String(one.pid), String(one.requests)]));
  }

  tile(name, value, note = null, point = null) {
    const tile = this.tiles.get(name);
    setText(tile.value, value);
    if (note) setText(tile.note, note);
    if (tile.line && point !== null) tile.line.add(point);
  }

  drawModel(model) {
    let card = this.cards.get(model.name);
    if (!card) {
      card = modelCard(model.name);
      this.cards.set(model.name, card);
      $("model-cards").append(card.element);
    }
    setText(card.state, model.state);
    card.state.dataset.state = model.state;
    const parts = [model.dtype, model.device, model.max_model_len && `context ${model.max_model_len.toLocaleString("en")}`,
      model.adapters.length && `adapters: ${model.adapters.join(", ")}`];
    setText(card.facts, parts.filter(Boolean).join(" · "));
    setText(card.memory, model.weight_bytes === null ? "" : `${bytes(model.weight_bytes)} weights, ${bytes(model.kv_cache_bytes)} KV cache`);
    while (card.engines.length > model.engines.length) card.engines.pop().element.remove();
    model.engines.forEach((engine, index) => {
      if (!card.engines[index]) {
        card.engines.push(engineBox());
        card.element.append(card.engines[index].element);
      }
      drawEngine(card.engines[index], engine, model.engines.length > 1 ? `Engine ${engine.engine}: ` : "");
    });
  }

  drawMaps(snapshot) {
    for (const model of snapshot.models) {
      model.engines.forEach(({ kv_map: map }, index) => {
        const box = this.cards.get(model.name).engines[index];
        box.canvas.hidden = !map;
        box.meter.hidden = Boolean(map);
        if (map) drawKvMap(box.canvas, map, box.legend);
      });
    }
  }
}

function modelCard(name) {
  const card = { state: h("span", { class: "badge" }), facts: h("p", { class: "muted" }), memory: h("p", { class: "muted" }), engines: [] };
  card.element = h("section", { class: "card", "aria-label": `Model ${name}` },
    h("div", { class: "row between" }, h("h3", { text: name }), card.state), card.facts, card.memory);
  return card;
}

function engineBox() {
  const box = {
    steps: h("p"),
    words: h("p", { class: "muted" }),
    canvas: h("canvas", { role: "img", class: "kv-map" }),
    meter: h("meter", { min: 0, max: 1, low: 0.7, high: 0.9, optimum: 0, "aria-label": "KV blocks in use" }),
    legend: h("p", { class: "legend" }, ["used", "cached", "free"].map((one) => h("span", {}, h("i", { class: one }), one === "used" ? "in use" : one))),
  };
  box.kv = h("div", { class: "kv" }, box.canvas, box.meter, h("div", { class: "row between" }, box.words, box.legend));
  box.element = h("div", { class: "engine" }, box.steps, box.kv);
  return box;
}

function drawEngine(box, engine, prefix) {
  const used = engine.kv_blocks_used ?? 0;
  const cached = engine.kv_blocks_cached ?? 0;
  const words = `${count(used)} of ${count(engine.kv_blocks_total)} KV blocks in use${cached ? `, ${count(cached)} cached` : ""}`;
  box.kv.hidden = !engine.kv_blocks_total;
  setText(box.words, words);
  box.canvas.setAttribute("aria-label", `Map of KV blocks: ${words}`);
  box.meter.value = engine.kv_blocks_total ? used / engine.kv_blocks_total : 0;
  setText(box.steps, prefix + [`${engine.running} running, ${engine.waiting} waiting`,
    engine.step_ms_p50 !== null && `a step takes ${time(engine.step_ms_p50)} (p99 ${time(engine.step_ms_p99)})`,
    engine.preemptions > 0 && `${engine.preemptions} preemptions`].filter(Boolean).join(" · "));
}

/** Rows of a table's body, changed in place. A cell is a text or {text, class}. */
function drawRows(body, rows) {
  while (body.rows.length > rows.length) body.deleteRow(-1);
  rows.forEach((cells, index) => {
    const row = body.rows[index] ?? body.insertRow();
    cells.forEach((cell, column) => {
      const box = row.cells[column] ?? row.insertCell();
      setText(box, cell.text ?? cell);
      box.className = cell.class ?? "";
    });
  });
  const table = body.closest("table");
  table.hidden = !rows.length;
}

function average(engines, name) {
  const found = engines.map((one) => one[name]).filter((one) => one !== null && one !== undefined);
  return found.length ? found.reduce((total, one) => total + one, 0) / found.length : null;
}

const count = (value) => value.toLocaleString("en");
const rate = (value) => `${value >= 100 ? Math.round(value) : value.toFixed(1)} /s`;
const share = (value) => (value === null ? "–" : `${(100 * value).toFixed(value > 0 && value < 0.1 ? 1 : 0)} %`);
const spread = (one) => (one?.p50 == null ? "nothing in the last minute" : `p90 ${time(one.p90)}, p99 ${time(one.p99)}`);

export function time(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 1) return `${ms.toFixed(2)} ms`;
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  return ms < 1000 ? `${Math.round(ms)} ms` : ms < 100000 ? `${(ms / 1000).toFixed(1)} s` : `${Math.round(ms / 60000)} min`;
}

function bytes(value) {
  if (value === null || value === undefined) return "–";
  const unit = value >= 2 ** 30 ? ["GiB", 2 ** 30] : ["MiB", 2 ** 20];
  const size = value / unit[1];
  return `${size >= 100 ? Math.round(size) : size.toFixed(1)} ${unit[0]}`;
}

function long(seconds) {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  return seconds < 86400 ? `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min` : `${Math.floor(seconds / 86400)} days`;
}
