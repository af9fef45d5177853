// The list of models and adapters, and which one is chosen.

import { askForKey, askJson } from "./api.js";
import { $, h, say } from "./dom.js";

const NAME = "plugserve.model";

export class Models {
  /** changed() is called when the list or the choice changes. */
  constructor(changed) {
    this.list = [];
    this.fault = "";
    this.changed = changed;
    this.select = $("model");
    this.select.addEventListener("change", () => {
      try {
        localStorage.setItem(NAME, this.select.value);
      } catch {
        // it lasts as long as the page
      }
      this.changed();
    });
  }

  get chosen() {
    return this.select.value || this.list[0]?.id || "";
  }

  get info() {
    return this.list.find((one) => one.id === this.chosen);
  }

  /** A name without the part before its last slash, where that is enough. */
  short(id) {
    const end = id.split("/").pop();
    return this.list.filter((one) => one.id.split("/").pop() === end).length > 1 ? id : end;
  }

  /** The chosen model in a line of words. */
  facts() {
    if (this.fault) return this.fault;
    const { info } = this;
    if (!info) return "Looking for models…";
    const parts = [info.id];
    if (info.parent) parts.push(`adapter of ${info.parent}`);
    if (info.max_model_len) parts.push(`context of ${info.max_model_len.toLocaleString("en")} tokens`);
    if (info.status?.value && info.status.value !== "loaded") parts.push(state(info.status));
    return parts.join(" · ");
  }

  async load() {
    try {
      this.list = (await askJson("/v1/models")).data;
      this.fault = "";
    } catch (error) {
      this.fault = error.message;
      if (error.status === 401 && (await askForKey("This server needs an API key: its owner has it."))) return this.load();
      say(error.message);
    }
    this.draw();
    this.changed();
  }

  draw() {
    let kept = null;
    try {
      kept = localStorage.getItem(NAME);
    } catch {
      // nothing is kept
    }
    const wanted = this.select.value || kept;
    const option = (one) => {
      const isChat = !one.kind || one.kind === "generate";
      const note = !isChat ? " (no chat)" : one.status && one.status.value !== "loaded" ? ` (${state(one.status)})` : "";
      return h("option", { value: one.id, text: this.short(one.id) + note, title: one.id, disabled: !isChat });
    };
    const base = this.list.filter((one) => !one.parent);
    const adapters = this.list.filter((one) => one.parent);
    const groups = [...new Set(adapters.map((one) => one.parent))].map((parent) =>
      h("optgroup", { label: `Adapters of ${parent}` }, adapters.filter((one) => one.parent === parent).map(option)));
    this.select.replaceChildren(...base.map(option), ...groups);
    const usable = [...this.select.options].filter((one) => !one.disabled);
    const found = usable.find((one) => one.value === wanted) ?? usable[0];
    if (found) this.select.value = found.value;
    this.select.disabled = !this.list.length;
  }
}

function state(status) {
  if (status.value === "loading") return `loading, ${Math.round(100 * (status.progress ?? 0))} %`;
  return { unloaded: "loads with the first request", failed: "failed to load", dead: "is being started again" }[status.value] ?? status.value;
}
