/** The state of the page, kept in its address. Everything that shows it listens here. */

import { DEFAULTS, readAddress, writeAddress } from "./links.js";

const listeners = new Set();
let current = readAddress(location.search);

/** Return the present state. */
export function state() {
  return current;
}

/**
 * Change the state and the address.
 *
 * `replace` keeps the number of entries in the history, as for a correction of the same step.
 */
export function go(changes, { replace = false } = {}) {
  const next = { ...current, ...changes };
  const target = writeAddress(next);
  const isSame = target === writeAddress(current);
  const before = current;
  current = next;
  if (!isSame) history[replace ? "replaceState" : "pushState"]({ inPage: true }, "", target);
  tell(before, isSame);
}

/** Start from nothing but the given fields: a new question. */
export function restart(changes) {
  go({ ...DEFAULTS, group: current.group, ...changes });
}

/** Call a function with the new and the former state after every change. */
export function watch(listener) {
  listeners.add(listener);
}

function tell(before, isSame) {
  for (const listener of listeners) listener(current, before, { isSame });
}

addEventListener("popstate", () => {
  const before = current;
  current = readAddress(location.search);
  tell(before, false);
});
