/** Notices that the server is gone, and that it is back. */

import { byId } from "./elements.js";

const LONGEST_MS = 5000;
const listeners = new Set();
let isWatching = false;

/** Call a function when the server is back. */
export function onReturn(listener) {
  listeners.add(listener);
}

/**
 * Look for the server until it answers.
 *
 * `isRequest`: whether a request got no answer, so that it must be sent again in any case.
 */
export async function lookForServer({ isRequest = false } = {}) {
  if (isWatching) return;
  isWatching = true;
  const banner = byId("silence");
  let wait = 400;
  try {
    // One lost request is no reason to alarm anybody.
    if (await answers()) {
      if (!isRequest) return;
      // Should the same request fail again, the page does not ask without a pause.
      await later(1500);
      tell();
      return;
    }
    banner.textContent = "The server does not answer. This page goes on by itself when it is back.";
    banner.hidden = false;
    for (;;) {
      await later(wait);
      if (await answers()) break;
      wait = Math.min(wait * 1.6, LONGEST_MS);
    }
  } finally {
    isWatching = false;
    banner.hidden = true;
  }
  tell();
}

function tell() {
  for (const listener of listeners) listener();
}

function later(milliseconds) {
  return new Promise((resolve) => {
    setTimeout(resolve, milliseconds);
  });
}

async function answers() {
  try {
    const response = await fetch("/health/ready", { cache: "no-store", signal: AbortSignal.timeout(4000) });
    // Ready says 503 while it starts. Any other answer comes from a server that works, and so does
    // one that tells of shards.
    if (response.status === 503) return (await response.json()).error.kind === "ShardError";
    return response.status !== 502;
  } catch {
    return false;
  }
}

addEventListener("online", () => lookForServer());
