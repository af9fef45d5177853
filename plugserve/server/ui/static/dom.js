// Elements made of plain data. Text always becomes text nodes: nothing here reads HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An element. props: class, text, dataset, on* listeners, else attributes (false, null and undefined leave one out). */
export function h(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** An SVG element, as h. */
export function svg(tag, props = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === false || value === null || value === undefined) continue;
    if (name === "class") element.setAttribute("class", value);
    else if (name === "text") element.textContent = value;
    else if (name === "dataset") Object.assign(element.dataset, value);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const $ = (id) => document.getElementById(id);

/** Sets an element's text where it changed, so that screen readers and layouts stay at rest. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const PATHS = {
  copy: "M8 8V5a2 2 0 0 1 2-2h9a2 2 0 0 1 2 2v9a2 2 0 0 1-2 2h-3M5 8h9a2 2 0 0 1 2 2v9a2 2 0 0 1-2 2H5a2 2 0 0 1-2-2v-9a2 2 0 0 1 2-2Z",
  edit: "M4 20h4L19 9l-4-4L4 16v4ZM13 7l4 4",
  again: "M4 12a8 8 0 0 1 14-5l2 2M20 4v5h-5M20 12a8 8 0 0 1-14 5l-2-2M4 20v-5h5",
  trash: "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13M10 11v5M14 11v5",
  plus: "M12 5v14M5 12h14",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7Z",
  menu: "M4 7h16M4 12h16M4 17h16",
  tune: "M4 7h9M17 7h3M15 5v4M4 17h3M11 17h9M9 15v4",
  key: "M14.5 9.5 21 3M18 6l2 2M16 15a5 5 0 1 1-10 0 5 5 0 0 1 10 0Z",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8ZM12 2v2M12 20v2M4.9 4.9l1.4 1.4M17.7 17.7l1.4 1.4M2 12h2M20 12h2M4.9 19.1l1.4-1.4M17.7 6.3l1.4-1.4",
  moon: "M20 14A8 8 0 0 1 10 4a8 8 0 1 0 10 10Z",
  auto: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18ZM12 3v18M12 7h6M12 12h9M12 17h6",
  close: "M6 6l12 12M18 6 6 18",
  code: "m8 7-5 5 5 5M16 7l5 5-5 5M13 5l-2 14",
  tokens: "M3 7h7v4H3ZM12 7h9v4h-9ZM3 14h10v4H3ZM15 14h6v4h-6Z",
  help: "M9 9a3 3 0 1 1 4 2.8c-.7.3-1 .9-1 1.7v.5M12 17.5v.01M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18Z",
  check: "m5 12 5 5 9-10",
  tool: "M14 6a4 4 0 0 1 5-3l-3 3 2 2 3-3a4 4 0 0 1-5 5l-8 8a2 2 0 0 1-3-3l8-8a4 4 0 0 1 1-1Z",
};

/** A line icon that screen readers skip: name the button that holds it. */
export function icon(name) {
  return svg("svg", { class: "icon", viewBox: "0 0 24 24", "aria-hidden": "true" }, svg("path", { d: PATHS[name] }));
}

/** A button with an icon; label is its name and tooltip. */
export function iconButton(name, label, onclick, extra = {}) {
  return h("button", { type: "button", class: "icon-button", "aria-label": label, title: label, onclick, ...extra }, icon(name));
}

/** Copies text; says so on the button for a moment. */
export async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = h("textarea", { class: "offscreen", value: text });
    (button.closest("dialog") ?? document.body).append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.classList.add("done");
  say("Copied");
  setTimeout(() => button.classList.remove("done"), 1200);
}

/** Tells screen readers. */
export function say(text) {
  const status = $("status");
  if (status) status.textContent = text;
}

/** A dialog with a heading and a close button. The caller appends to .body and calls showModal. */
export function dialog(title, ...children) {
  const box = h("dialog", { "aria-label": title });
  const close = iconButton("close", "Close", () => box.close());
  box.append(h("header", { class: "dialog-head" }, h("h2", { text: title }), close), ...children);
  box.addEventListener("click", (event) => event.target === box && box.close());
  box.addEventListener("close", () => box.remove());
  document.body.append(box);
  return box;
}
