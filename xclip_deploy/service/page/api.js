/** Requests to the service, and its errors in words. */

export const API = "/api/v1";

/** A refusal of the service, or its silence. `status` is 0 where no answer came. */
export class ServiceError extends Error {
  constructor(message, { kind = "NoAnswer", status = 0, requestId = null, retryAfterS = null } = {}) {
    super(message);
    this.kind = kind;
    this.status = status;
    this.requestId = requestId;
    this.retryAfterS = retryAfterS;
  }

  get isSilence() {
    return this.status === 0;
  }
}

const ADVICE = {
  403: "Ask whoever runs the service, if you need to do this.",
  404: "It may have been removed. Load the list again.",
  409: "The file changed after it was added. Add it again to bring the gallery up to date.",
  410: "The file is gone from the server. Put it back, or remove the video.",
  413: "Take a smaller file.",
  415: "Take a video such as MP4, MOV, MKV or WebM, or a picture such as JPEG or PNG.",
  429: "Wait a little, then try again.",
  503: "The service is busy or starting. Try again in a moment.",
  507: "The server's disk is full. Make room there, then try again.",
};

/** Put an error into words: what happened, and what to do. */
export function inWords(error) {
  if (!(error instanceof ServiceError)) return `Something went wrong in the page: ${error.message}. Reload it.`;
  if (error.isSilence) return "The server does not answer. The page tries again by itself.";
  const advice = ADVICE_OF_KIND[error.kind] ?? ADVICE[error.status] ?? (error.status >= 500 ? `Look in the service's log for request ${error.requestId}.` : "");
  const message = error.message ? error.message[0].toUpperCase() + error.message.slice(1) : "The request failed";
  return `${message.replace(/[.\s]+$/, "")}. ${advice}`.trim();
}

/** Advice for errors whose status has another meaning elsewhere. */
const ADVICE_OF_KIND = {
  GalleryInShards: "",
  ShardError: "Try again in a moment, or ask whoever runs the service.",
};

let logIn = async () => false;
let onSilence = () => {};

/** Set what happens where a token is asked for, and where no answer comes. */
export function configure(handlers) {
  logIn = handlers.logIn ?? logIn;
  onSilence = handlers.onSilence ?? onSilence;
}

/**
 * Send a request and return its response.
 *
 * `json` or `form` is the body. A 401 opens the form for the token and then tries once more; 429
 * and 503 are tried again where `again` is true, as for reads. Throws a ServiceError, or an
 * AbortError after `signal`.
 */
export async function send(path, { method = "GET", json, form, headers = {}, signal, again = method === "GET" } = {}) {
  const body = json === undefined ? form : JSON.stringify(json);
  const allHeaders = json === undefined ? headers : { ...headers, "Content-Type": "application/json" };
  for (let attempt = 0; ; attempt += 1) {
    let response;
    try {
      response = await fetch(path.startsWith("/") ? path : `${API}/${path}`, {
        method, body, headers: allHeaders, signal, credentials: "same-origin",
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      onSilence();
      throw new ServiceError(error.message);
    }
    if (response.ok) return response;
    if (response.status === 401 && attempt === 0 && (await logIn())) continue;
    const refusal = await refusalOf(response);
    // A search that waited for a shard in vain has waited long enough.
    const isWorthIt = again && attempt < 3 && refusal.kind !== "ShardError";
    if (isWorthIt && [429, 503].includes(response.status)) {
      await pause(Math.min(refusal.retryAfterS ?? 2 ** attempt, 10) * 1000, signal);
      continue;
    }
    throw refusal;
  }
}

/** Send a request and return the JSON of its response; null for an empty one. */
export async function ask(path, options = {}) {
  const response = await send(path, options);
  return response.status === 204 ? null : response.json();
}

/** Return the address of something of a video: its media, a thumbnail, a frame, a cut. */
export function addressOf(handle, what, fields = {}) {
  const given = new URLSearchParams();
  for (const [name, value] of Object.entries(fields)) {
    if (value !== null && value !== undefined) given.set(name, value);
  }
  const query = given.toString();
  return `${API}/videos/${encodeURIComponent(handle)}/${what}${query ? `?${query}` : ""}`;
}

/** Read the error that a response tells of. */
export async function refusalOf(response) {
  const text = await response.text().catch(() => "");
  return refusalFrom(response.status, text, response.headers.get("Retry-After"));
}

/** Make an error of a status and a body, as XMLHttpRequest gives them too. */
export function refusalFrom(status, text, retryAfter = null) {
  const retryAfterS = retryAfter && /^\d+$/.test(retryAfter) ? Number(retryAfter) : null;
  try {
    const { kind, message, request_id: requestId } = JSON.parse(text).error;
    return new ServiceError(message, { kind, status, requestId, retryAfterS });
  } catch {
    return new ServiceError(`the server answered with status ${status}`, { kind: "Unknown", status, retryAfterS });
  }
}

/** Wait; ends with an AbortError when the signal fires. */
export function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("aborted", "AbortError"));
    }, { once: true });
  });
}
