/** Dialogs: questions, the form for the token, the list of keys. One is open at a time. */

import { ask } from "./api.js";
import { button, byId, el, fill } from "./elements.js";

const KEYS = [
  ["/", "to the search box"],
  ["← ↑ → ↓", "between cards, or between cells of the evidence"],
  ["Enter", "play the card's moment"],
  ["Space", "play or pause"],
  ["[  ]", "previous or next moment in the list"],
  [",  .", "one frame back or on, about 1/25 s"],
  ["w", "why this moment: the evidence"],
  ["Esc", "close what is open"],
  ["?", "this list"],
];

let queue = Promise.resolve();

/**
 * Show a dialog and return what closes it: the value of a button, or null for Esc.
 *
 * `build(close)` returns its content. The focus returns to where it was.
 */
export function openDialog(title, build, { kind = "" } = {}) {
  const shown = queue.then(() => showOne(title, build, kind));
  queue = shown.catch(() => {});
  return shown;
}

function showOne(title, build, kind) {
  const dialog = byId("dialog");
  const before = document.activeElement;
  return new Promise((resolve) => {
    const close = (value = null) => {
      if (!dialog.open) return;
      result = value;
      dialog.close();
    };
    let result = null;
    dialog.className = kind;
    fill(dialog, el("div", { class: "dialog-head" }, el("h2", { id: "dialog-title" }, title),
      button("Close", { symbol: "close", quiet: true, class: "bare", onclick: () => close() })), build(close));
    dialog.addEventListener("close", () => {
      dialog.replaceChildren();
      if (before instanceof HTMLElement && before.isConnected) before.focus();
      resolve(result);
    }, { once: true });
    dialog.showModal();
    dialog.querySelector("[autofocus]")?.focus();
  });
}

/** Ask whether to go on. */
export async function confirmed(title, text, words) {
  const answer = await openDialog(title, (close) => [
    el("p", {}, text),
    el("div", { class: "dialog-actions" },
      button("Keep", { onclick: () => close(), autofocus: true }),
      button(words, { class: "danger", onclick: () => close(true) })),
  ]);
  return answer === true;
}

/** Show which keys do what. */
export function showKeys() {
  return openDialog("Keys", () =>
    el("dl", { class: "keys" }, KEYS.map(([key, words]) => el("div", {}, el("dt", {}, el("kbd", {}, key)), el("dd", {}, words)))),
  );
}

let login = null;

/** Ask for the token and begin a session. Returns whether one began. */
export function logIn() {
  login ??= askToken().finally(() => {
    login = null;
  });
  return login;
}

async function askToken() {
  const done = await openDialog("This service asks for a token", (close) => {
    const fault = el("p", { class: "note error", role: "alert", id: "token-fault", hidden: true });
    const input = el("input", {
      id: "token", type: "password", autocomplete: "current-password", required: true, autofocus: true, "aria-describedby": "token-fault token-hint",
    });
    return el("form", { class: "login", method: "dialog", onsubmit: (event) => {
      event.preventDefault();
      begin(input.value, fault).then((isDone) => (isDone ? close(true) : input.select()));
    } },
    el("label", { for: "token" }, "Token"), input,
    el("p", { class: "hint", id: "token-hint" }, "Whoever started the service has it. It stays in this browser until you log out."),
    fault,
    el("div", { class: "dialog-actions" }, el("button", { type: "submit", class: "primary" }, "Log in")));
  });
  return done === true;
}

async function begin(token, fault) {
  try {
    const response = await fetch("/api/v1/session", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ token: token.trim() }), credentials: "same-origin",
    });
    if (response.ok) {
      localStorage.setItem("has-session", "1");
      return true;
    }
    fault.textContent = response.status === 429 ? "Too many tries. Wait a minute." : "That is not the token. Look at how the service was started.";
  } catch {
    fault.textContent = "The server does not answer. Try again.";
  }
  fault.hidden = false;
  return false;
}

/** Whether somebody logged in from this browser. */
export function hasSession() {
  return localStorage.getItem("has-session") === "1";
}

/** End the session, as on a shared computer. */
export async function logOut() {
  await ask("session", { method: "DELETE" });
  localStorage.removeItem("has-session");
  location.reload();
}
