/** Videos being added: uploads of this page, and jobs of the server with live progress. */

import { API, ask, inWords } from "./api.js";
import { lookForServer } from "./connection.js";
import { announce, button, byId, el, fill } from "./elements.js";
import { countText, sizeText } from "./times.js";

const ENDED = new Set(["done", "failed", "cancelled"]);
const RECENT_S = 3600;
const SHOWN = 8;

export class Jobs {
  #jobs = new Map();
  #uploads = new Set();
  #faults = [];
  #hidden = new Set(JSON.parse(sessionStorage.getItem("hidden-jobs") ?? "[]"));
  #source = null;
  #wait = 1000;
  #timer = 0;

  /** `onDone(job)` is told when a job ended; `onFind(job)` shows its videos. */
  constructor({ onDone, onFind }) {
    this.onDone = onDone;
    this.onFind = onFind;
    this.root = byId("tray");
    addEventListener("beforeunload", (event) => {
      if (this.#uploads.size) event.preventDefault();
    });
    addEventListener("pagehide", () => this.#source?.close());
  }

  /** Load the jobs, then listen to their events. Called again when the server is back. */
  async start() {
    clearTimeout(this.#timer);
    this.#source?.close();
    let last = 0;
    try {
      const { jobs } = await ask("jobs");
      last = Math.max(0, ...jobs.map((job) => job.last_event));
      for (const job of jobs) this.#put(job, { isNew: false });
      this.#draw();
    } catch {
      this.#again();
      return;
    }
    // Jobs that changed since the list was made come too.
    const source = new EventSource(last ? `${API}/events?after=${last}` : `${API}/events`);
    this.#source = source;
    source.addEventListener("job", (event) => this.#put(JSON.parse(event.data)));
    source.addEventListener("open", () => {
      this.#wait = 1000;
    });
    source.addEventListener("error", () => {
      // The browser connects again by itself after a break, yet not after a refusal.
      if (source.readyState !== EventSource.CLOSED) lookForServer();
      else this.#again();
    });
  }

  #again() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.start(), this.#wait);
    this.#wait = Math.min(this.#wait * 2, 30_000);
  }

  /** Show a job that this page started. */
  take(job) {
    this.#put(job);
    announce(`${job.title} is being added.`);
  }

  /** Show an upload; returns what changes it. */
  beginUpload(title, cancel) {
    const bar = el("progress", { max: 1, value: 0, "aria-label": `Upload of ${title}` });
    const text = el("span", { class: "number" }, "");
    const row = jobRow(`Uploading ${title}`, [bar, text], button("Cancel", { "aria-label": `Cancel the upload of ${title}`, onclick: cancel }));
    const entry = { row };
    this.#uploads.add(entry);
    this.#draw();
    return {
      progress: (done, total) => {
        bar.value = total ? done / total : 0;
        text.textContent = done < total ? `${sizeText(done)} of ${sizeText(total)}` : "The server checks it…";
      },
      end: () => {
        this.#uploads.delete(entry);
        this.#draw();
      },
    };
  }

  /** Show that something was not accepted. */
  tellFault(title, text) {
    this.#faults.unshift({ title, text });
    this.#draw();
    announce(`${title}: ${text}`);
  }

  #put(job, { isNew = true } = {}) {
    const before = this.#jobs.get(job.id);
    if (before && before.last_event > job.last_event) return;
    this.#jobs.set(job.id, job);
    if (isNew) {
      this.#draw();
      if (ENDED.has(job.state) && before?.state !== job.state) {
        announce(outcome(job));
        this.onDone(job);
      }
    }
  }

  #hide(...keys) {
    for (const key of keys) this.#hidden.add(key);
    sessionStorage.setItem("hidden-jobs", JSON.stringify([...this.#hidden].slice(-100)));
    this.#draw();
  }

  #draw() {
    const now = Date.now() / 1000;
    const jobs = [...this.#jobs.values()]
      .filter((job) => !this.#hidden.has(job.id) && (!ENDED.has(job.state) || now - (job.ended_s ?? now) < RECENT_S))
      .sort((a, b) => b.created_s - a.created_s)
      .slice(0, SHOWN);
    const focused = this.root.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") : null;
    const faults = this.#faults.map((fault) => jobRow(fault.title, [el("p", { class: "note error" }, fault.text)], this.#dismiss(fault.title, () => {
      this.#faults.splice(this.#faults.indexOf(fault), 1);
      this.#draw();
    })));
    const rows = [...[...this.#uploads].map(({ row }) => row), ...faults, ...jobs.map((job) => this.#row(job))];
    this.root.hidden = !rows.length;
    const ended = jobs.filter((job) => ENDED.has(job.state));
    const hideAll = ended.length > 1 && button("Hide all that ended", { class: "hide-all", onclick: () => {
      // Older ones would take their places.
      this.#hide(...[...this.#jobs.values()].filter((job) => ENDED.has(job.state)).map((job) => job.id));
    } });
    fill(this.root, hideAll, el("ul", { class: "jobs" }, rows));
    if (focused) this.root.querySelector(`[aria-label="${CSS.escape(focused)}"]`)?.focus();
  }

  #row(job) {
    if (!ENDED.has(job.state)) {
      const stop = button("Stop", { "aria-label": `Stop adding ${job.title}`, onclick: (event) => this.#cancel(job, event.currentTarget) });
      return jobRow(`${job.state === "waiting" ? "Waiting" : "Adding"}: ${job.title}`, progressOf(job), stop);
    }
    const hasVideos = job.videos.length > 0 && job.state === "done";
    const show = hasVideos && button("Show", { "aria-label": `Show ${job.title}`, onclick: () => this.onFind(job) });
    return jobRow(job.title, [el("p", { class: job.state === "done" && !job.report?.failed.length ? "note done" : "note error" }, outcome(job)), faultsOf(job)], show, this.#dismiss(job.title, () => this.#hide(job.id)));
  }

  #dismiss(title, onclick) {
    return button(`Hide ${title}`, { symbol: "close", quiet: true, class: "bare", "aria-label": `Hide ${title}`, onclick });
  }

  async #cancel(job, control) {
    control.disabled = true;
    try {
      const now = await ask(`jobs/${job.id}`, { method: "DELETE" });
      if (now) this.#put(now);
    } catch (error) {
      this.tellFault(job.title, inWords(error));
    }
  }
}

/** Say how a job ended. */
export function outcome({ state, title, report, error }) {
  if (state === "cancelled") return `Stopped: ${title}. Videos that were read by then stay.`;
  if (state === "failed") return `${title} could not be added: ${error?.message ?? "see the service's log"}.`.replace("..", ".");
  if (!report) return `${title}: done.`;
  const parts = [
    [report.indexed.length, "added"],
    [report.changed.length, "read again"],
    [report.unchanged.length, "there already"],
    [Object.keys(report.duplicates).length, "with the content of another"],
    [report.pruned.length, "pruned"],
    [report.failed.length, "failed"],
  ].filter(([count]) => count > 0);
  return parts.length ? `${parts.map(([count, words]) => `${count} ${words}`).join(", ")}.` : "Nothing to add: no video was found.";
}

function progressOf({ state, progress, num_starts: starts }) {
  const { done = 0, total = null, failed = 0, note = "" } = progress ?? {};
  const bar = el("progress", { max: total ?? 1, value: total === null ? null : done, "aria-label": "Progress" });
  const counts = total === null ? (state === "waiting" ? "in the queue" : "looking at the files") : `${done} of ${countText(total, "video")}`;
  const text = [counts, failed && `${failed} failed`, starts > 1 && "goes on after a restart", note].filter(Boolean).join(" · ");
  return [bar, el("span", { class: "number" }, text)];
}

function faultsOf({ report }) {
  const faults = [...(report?.failed ?? []), ...(report?.warnings ?? [])];
  if (!faults.length) return null;
  return el("ul", { class: "faults" }, faults.slice(0, 20).map(({ name, reason }) => el("li", {}, el("strong", {}, name), ` ${reason.startsWith(`${name}: `) ? reason.slice(name.length + 2) : reason}`)),
    faults.length > 20 && el("li", {}, `and ${faults.length - 20} more`));
}

function jobRow(title, body, ...controls) {
  return el("li", { class: "job" }, el("div", { class: "job-head" }, el("strong", { title }, title), controls), body);
}
