// An answer token by token: the colour says how likely each was, a card what else was.

import { $, h } from "./dom.js";

const percent = (logprob) => {
  const share = 100 * Math.exp(logprob);
  return share >= 99.95 ? "100 %" : share < 0.1 ? "< 0.1 %" : `${share.toFixed(1)} %`;
};
const shown = (token) => token.replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "⇥") || "(nothing)";
const level = (logprob) => {
  const share = Math.exp(logprob);
  return share > 0.9 ? 0 : share > 0.6 ? 1 : share > 0.3 ? 2 : share > 0.1 ? 3 : 4;
};

/** The tokens as one element; arrow keys go from one to the next. add(tokens) appends those that came since. */
export class TokenView {
  constructor() {
    this.element = h("div", {
      class: "tokens", tabindex: "0", role: "group", "aria-describedby": "token-card",
      "aria-label": "Tokens with their probabilities; use the arrow keys",
    });
    this.tokens = [];
    this.at = -1;
    this.element.addEventListener("mouseover", (event) => this.point(event.target));
    this.element.addEventListener("mouseleave", () => this.leave());
    this.element.addEventListener("click", (event) => this.point(event.target));
    this.element.addEventListener("blur", () => this.leave());
    this.element.addEventListener("keydown", (event) => this.move(event));
  }

  add(tokens) {
    for (const token of tokens.slice(this.tokens.length)) {
      this.tokens.push(token);
      this.element.append(h("span", { class: `token p${level(token[1])}`, text: token[0] }));
    }
  }

  point(target) {
    const index = [...this.element.children].indexOf(target);
    if (index >= 0) this.show(index);
  }

  move(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !this.tokens.length) return;
    event.preventDefault();
    this.show(Math.min(this.tokens.length - 1, Math.max(0, this.at + step)));
  }

  show(index) {
    this.element.children[this.at]?.classList.remove("at");
    this.at = index;
    const span = this.element.children[index];
    span.classList.add("at");
    const [token, logprob, others] = this.tokens[index];
    const rows = (others.some(([one]) => one === token) ? others : [[token, logprob], ...others]).slice(0, 6);
    const card = $("token-card");
    card.replaceChildren(h("strong", { text: `${shown(token)}  ${percent(logprob)}` }),
      h("ul", {}, rows.map(([one, log]) => {
        const bar = h("i");
        bar.style.width = `${Math.max(1, 100 * Math.exp(log))}%`;
        return h("li", { class: one === token && "chosen" }, h("code", { text: shown(one) }), h("span", { class: "bar" }, bar), h("span", { text: percent(log) }));
      })));
    card.hidden = false;
    const box = span.getBoundingClientRect();
    const below = box.bottom + card.offsetHeight + 12 < innerHeight;
    card.style.top = `${below ? box.bottom + 6 : box.top - card.offsetHeight - 6}px`;
    card.style.left = `${Math.max(8, Math.min(box.left, innerWidth - card.offsetWidth - 8))}px`;
  }

  leave() {
    $("token-card").hidden = true;
    this.element.children[this.at]?.classList.remove("at");
  }
}
