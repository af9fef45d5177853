// Markdown as DOM nodes. A model's text only ever becomes text nodes: no HTML of it is read, no image is loaded.

import { copy, h, iconButton } from "./dom.js";

const LINK = /^(https?:\/\/|mailto:)[^\s]+$/i;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const FENCE = /^\s{0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/;

/** Renders text into element; blocks whose source is unchanged keep their nodes, so a stream only redraws its end. */
export function renderMarkdown(element, text) {
  const blocks = splitBlocks(text);
  blocks.forEach((block, index) => {
    const old = element.children[index];
    const source = block.kind + "\n" + block.lines.join("\n");
    if (old?.markdownSource === source) return;
    const made = makeBlock(block);
    made.markdownSource = source;
    if (old) old.replaceWith(made);
    else element.append(made);
  });
  while (element.children.length > blocks.length) element.lastElementChild.remove();
}

function splitBlocks(text) {
  const lines = text.replace(/\r\n?/g, "\n").split("\n");
  const blocks = [];
  let at = 0;
  const take = (kind, isPart, extra = {}) => {
    const block = { kind, lines: [], ...extra };
    while (at < lines.length && isPart(lines[at], block.lines.length)) block.lines.push(lines[at++]);
    blocks.push(block);
  };
  while (at < lines.length) {
    const line = lines[at];
    const fence = FENCE.exec(line);
    if (!line.trim()) at++;
    else if (fence) {
      at++;
      take("code", (one) => !one.trim().startsWith(fence[1]), { language: fence[2] });
      at++;
    } else if (/^#{1,6}\s/.test(line)) blocks.push({ kind: "heading", lines: [lines[at++]] });
    else if (/^\s*([-*_])(\s*\1){2,}\s*$/.test(line)) blocks.push({ kind: "rule", lines: [lines[at++]] });
    else if (line.startsWith(">")) take("quote", (one) => one.startsWith(">"));
    else if (ITEM.test(line)) take("list", (one, count) => ITEM.test(one) || (count > 0 && /^\s{2,}\S/.test(one)) || isGap(lines, at));
    else if (line.includes("|") && /^\s*\|?[\s:|-]*-[\s:|-]*$/.test(lines[at + 1] ?? "")) take("table", (one) => one.includes("|"));
    else take("paragraph", (one, count) => one.trim() && (count === 0 || !startsBlock(one)));
  }
  return blocks;
}

const startsBlock = (line) => FENCE.test(line) || /^#{1,6}\s/.test(line) || line.startsWith(">") || ITEM.test(line);
const isGap = (lines, at) => !lines[at].trim() && ITEM.test(lines[at + 1] ?? "");

function makeBlock(block) {
  const text = block.lines.join("\n");
  if (block.kind === "code") return codeBlock(text, block.language);
  if (block.kind === "heading") {
    const [, marks, title] = /^(#{1,6})\s+(.*?)\s*#*$/.exec(text) ?? [null, "#", text];
    return h(`h${Math.min(6, marks.length + 2)}`, {}, inline(title));
  }
  if (block.kind === "rule") return h("hr");
  if (block.kind === "quote") {
    const quote = h("blockquote");
    renderMarkdown(quote, block.lines.map((line) => line.replace(/^>\s?/, "")).join("\n"));
    return quote;
  }
  if (block.kind === "list") return list(block.lines);
  if (block.kind === "table") return table(block.lines);
  return h("p", {}, withBreaks(text));
}

function codeBlock(text, language) {
  const button = iconButton("copy", "Copy the code", () => copy(text, button));
  return h("figure", { class: "code" },
    h("figcaption", {}, h("span", { text: language || "text" }), button),
    h("pre", { tabindex: "0", "aria-label": `Code, ${language || "text"}` }, h("code", { text })));
}

function list(lines) {
  const base = ITEM.exec(lines[0])[1].length;
  const isOrdered = /\d/.test(ITEM.exec(lines[0])[2]);
  const items = [];
  for (const line of lines) {
    const found = ITEM.exec(line);
    if (found && found[1].length <= base + 1) items.push({ text: [found[3]], inner: [] });
    else if (line.trim()) {
      const item = items[items.length - 1];
      if (found || item.inner.length) item.inner.push(line);
      else item.text.push(line.trim());
    }
  }
  const start = isOrdered ? Number.parseInt(ITEM.exec(lines[0])[2], 10) : null;
  return h(isOrdered ? "ol" : "ul", { start: isOrdered && start !== 1 && String(start) },
    items.map((item) => h("li", {}, withBreaks(item.text.join("\n")), innerList(item.inner))));
}

function innerList(lines) {
  if (!lines.length) return null;
  if (ITEM.test(lines[0])) return list(lines);
  return h("p", {}, withBreaks(lines.map((line) => line.trim()).join("\n")));
}

function table(lines) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
  const [head, , ...rows] = lines;
  return h("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" }, h("table", {},
    h("thead", {}, h("tr", {}, cells(head).map((cell) => h("th", { scope: "col" }, inline(cell))))),
    h("tbody", {}, rows.map((row) => h("tr", {}, cells(row).map((cell) => h("td", {}, inline(cell))))))));
}

function withBreaks(text) {
  const lines = text.split("\n");
  return lines.flatMap((line, index) => [...inline(line), ...(index < lines.length - 1 ? [h("br")] : [])]);
}

const MARKS = [["**", "strong"], ["__", "strong"], ["~~", "del"], ["*", "em"], ["_", "em"]];

/** The nodes of a line: code, strong, em, del and links; everything else is text. One pass, no backtracking. */
function inline(text) {
  const nodes = [];
  let plain = "";
  const flush = () => {
    if (plain) nodes.push(document.createTextNode(plain));
    plain = "";
  };
  for (let at = 0; at < text.length; ) {
    const found = special(text, at);
    if (!found) plain += text[at++];
    else {
      flush();
      nodes.push(found.node);
      at = found.end;
    }
  }
  flush();
  return nodes;
}

function special(text, at) {
  const char = text[at];
  if (char === "\\" && /[\\`*_~[\]()#>|-]/.test(text[at + 1] ?? "")) return { node: document.createTextNode(text[at + 1]), end: at + 2 };
  if (char === "`") {
    const ticks = /^`+/.exec(text.slice(at))[0];
    const end = text.indexOf(ticks, at + ticks.length);
    return end < 0 ? null : { node: h("code", { text: text.slice(at + ticks.length, end).trim() || " " }), end: end + ticks.length };
  }
  if (char === "[" || (char === "!" && text[at + 1] === "[")) return link(text, at);
  if (char === "h" && /^https?:\/\/\S/.test(text.slice(at, at + 9)) && !/\w/.test(text[at - 1] ?? "")) {
    const url = /^\S+?(?=[.,;:!?)\]'"]*(\s|$))/.exec(text.slice(at))[0];
    return { node: anchor(url, [url]), end: at + url.length };
  }
  for (const [mark, tag] of MARKS) {
    if (!text.startsWith(mark, at) || /\s/.test(text[at + mark.length] ?? " ")) continue;
    if (mark[0] === "_" && /\w/.test(text[at - 1] ?? "")) continue;
    const end = text.indexOf(mark, at + mark.length + 1);
    if (end < 0 || /\s/.test(text[end - 1]) || (mark.length === 1 && text[end + 1] === mark)) continue;
    if (mark[0] === "_" && /\w/.test(text[end + mark.length] ?? "")) continue;
    return { node: h(tag, {}, inline(text.slice(at + mark.length, end))), end: end + mark.length };
  }
  return null;
}

function link(text, at) {
  const begin = text.indexOf("[", at);
  const middle = text.indexOf("](", begin);
  const end = middle < 0 ? -1 : text.indexOf(")", middle);
  if (end < 0) return null;
  const url = text.slice(middle + 2, end).split(/\s/)[0];
  const label = text.slice(begin + 1, middle);
  return LINK.test(url) ? { node: anchor(url, inline(label)), end: end + 1 } : null;
}

const anchor = (href, children) => h("a", { href, target: "_blank", rel: "noopener noreferrer" }, children);
