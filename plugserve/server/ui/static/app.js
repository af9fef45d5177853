// Starts the page: views, theme, key, shortcuts.

import { askForKey, askJson } from "./api.js";
import { Chat } from "./chat.js";
import { Controls } from "./controls.js";
import { $, dialog, h, icon, say } from "./dom.js";
import { Live } from "./live.js";
import { Models } from "./models.js";
import { chooseTheme } from "./theme_switch.js";

const SHORTCUTS = [
  ["Enter", "Send"], ["Shift + Enter", "New line"], ["Esc", "Stop the answer, close a panel"], ["/", "To the message box"],
  ["n", "New conversation"], ["r", "Answer again"], ["s", "Settings"], ["c", "The request as curl and Python"],
  ["1", "Chat"], ["2", "Live view"], ["?", "These shortcuts"],
];
const SINGLE_KEYS = "plugserve.keys";

let chat = null;
const controls = new Controls($("controls"), () => chat?.update());
const models = new Models(() => chat?.update());
chat = new Chat(controls, models);
const live = new Live();

function show(view) {
  for (const name of ["chat", "live"]) {
    $(`view-${name}`).hidden = name !== view;
    $(`tab-${name}`).toggleAttribute("aria-current", false);
  }
  $(`tab-${view}`).setAttribute("aria-current", "page");
  document.body.dataset.view = view;
  document.title = view === "live" ? "Live · plugserve" : "plugserve";
  live.show(view === "live");
}

const fromAddress = () => show(location.hash === "#live" ? "live" : "chat");
addEventListener("hashchange", fromAddress);
fromAddress();

const wide = matchMedia("(min-width: 1101px)");

function toggle(name, button) {
  const isDrawer = name === "shows-list" || !wide.matches;
  const isOn = isDrawer ? document.body.classList.toggle(name) : !document.body.classList.toggle("hides-settings");
  button.setAttribute("aria-expanded", String(isOn));
  if (isOn) (name === "shows-list" ? $("new-chat") : $("controls").querySelector("textarea"))?.focus();
}

function onWidth() {
  document.body.classList.remove("shows-settings", "shows-list");
  $("toggle-settings").setAttribute("aria-expanded", String(wide.matches && !document.body.classList.contains("hides-settings")));
}

wide.addEventListener("change", onWidth);
onWidth();

function closeDrawers() {
  const open = ["shows-list", "shows-settings"].filter((name) => document.body.classList.contains(name));
  document.body.classList.remove(...open);
  if (!open.length) return false;
  $("toggle-list").setAttribute("aria-expanded", "false");
  $("toggle-settings").setAttribute("aria-expanded", "false");
  $(open[0] === "shows-list" ? "toggle-list" : "toggle-settings").focus();
  return true;
}

$("toggle-list").addEventListener("click", (event) => toggle("shows-list", event.currentTarget));
$("toggle-settings").addEventListener("click", (event) => toggle("shows-settings", event.currentTarget));
$("scrim").addEventListener("click", closeDrawers);
$("close-settings").addEventListener("click", closeDrawers);
for (const id of ["enter-key", "enter-key-too"]) {
  $(id).addEventListener("click", async () => {
    if (await askForKey("Sent as Authorization: Bearer with each request of this page.")) models.load();
  });
}
for (const id of ["help", "help-too"]) $(id).addEventListener("click", showShortcuts);
$("theme").addEventListener("click", chooseTheme);
for (const [id, name] of [["toggle-list", "menu"], ["toggle-settings", "tune"], ["enter-key", "key"], ["help", "help"],
  ["new-chat-icon", "plus"], ["as-code", "code"], ["close-settings", "close"]]) {
  $(id).prepend(icon(name));
}

function usesKeys() {
  try {
    return localStorage.getItem(SINGLE_KEYS) !== "off";
  } catch {
    return true;
  }
}

function showShortcuts() {
  const input = h("input", { type: "checkbox", role: "switch", checked: usesKeys() });
  input.addEventListener("change", () => localStorage.setItem(SINGLE_KEYS, input.checked ? "on" : "off"));
  dialog("Keyboard shortcuts",
    h("dl", { class: "shortcuts" }, SHORTCUTS.map(([key, what]) => h("div", {}, h("dt", {}, h("kbd", { text: key })), h("dd", { text: what })))),
    h("label", { class: "switch" }, h("span", { text: "Shortcuts of one key" }), input)).showModal();
}

const ACTIONS = {
  "/": () => $("prompt").focus(),
  n: () => chat.start(),
  r: () => chat.regenerate(),
  s: () => $("toggle-settings").click(),
  c: () => chat.showAsCode(),
  1: () => (location.hash = "#chat"),
  2: () => (location.hash = "#live"),
  "?": showShortcuts,
};

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") {
    if (!closeDrawers() && chat.isRunning) {
      chat.stop();
      $("prompt").focus();
    }
    return;
  }
  const isTyping = event.target.closest("input,textarea,select");
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey || !usesKeys() || !ACTIONS[event.key]) return;
  event.preventDefault();
  ACTIONS[event.key]();
});

async function learnFields() {
  try {
    const document_ = await askJson("/openapi.json");
    controls.learn(document_.components.schemas.ChatBody.properties);
  } catch {
    say("The server's list of fields could not be read; every control is shown.");
  }
}

await models.load();
await learnFields();
