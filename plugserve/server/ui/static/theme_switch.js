// The button that goes from the system's theme to light to dark.

import { $, icon, say } from "./dom.js";

const NEXT = { auto: "light", light: "dark", dark: "auto" };
const ICONS = { auto: "auto", light: "sun", dark: "moon" };
const NAMES = { auto: "as the system", light: "light", dark: "dark" };

const current = () => document.documentElement.dataset.theme ?? "auto";

export function chooseTheme() {
  const theme = NEXT[current()];
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("plugserve.theme", theme);
  } catch {
    // it lasts as long as the page
  }
  draw();
  say(`Theme: ${NAMES[theme]}`);
}

function draw() {
  const button = $("theme");
  button.replaceChildren(icon(ICONS[current()]));
  const label = `Theme: ${NAMES[current()]}`;
  button.setAttribute("aria-label", label);
  button.title = label;
}

draw();
