/** The stage: the player of the open moment, with its timeline, evidence and cut. */

import { go, state, watch } from "./address.js";
import { ask, inWords } from "./api.js";
import { confidenceOf, grainBars, largestGrain, momentsOf, openingOf, scoreOf } from "./cards.js";
import { cutForm } from "./cutting.js";
import { button, byId, el, fill } from "./elements.js";
import { showEvidence } from "./evidence.js";
import { Player } from "./player.js";
import { Timeline } from "./timeline.js";
import { clock, clockRange, countText } from "./times.js";

const narrow = matchMedia("(max-width: 940px)");

export class Stage {
  #wantsPlay = false;
  #wantsWhy = false;
  #returnTo = null;
  #abort = new AbortController();
  #shown = null; // {video, moments, hit}

  /** `findHit(handle, opening)` returns the hit on the page that a moment belongs to. */
  constructor({ findHit, onMove, onLike }) {
    this.findHit = findHit;
    this.onLike = onLike;
    this.root = byId("stage");
    this.screen = el("video", { id: "video", controls: true, playsinline: true, preload: "metadata", "aria-label": "The video" });
    this.screen.muted = true;
    this.note = el("p", { class: "screen-note", role: "status", hidden: true });
    this.title = el("h2", { class: "stage-title", id: "stage-title" });
    this.line = el("div", { class: "timeline" });
    this.facts = el("div", { class: "stage-facts" });
    this.list = el("ul", { class: "moments", "aria-label": "Moments in this video" });
    this.time = el("span", { class: "now number" });
    this.loop = button("Repeat", { symbol: "loop", "aria-pressed": "false", title: "Repeat the moment", onclick: () => this.#toggleLoop() });
    this.close = button("Close the player", { symbol: "close", quiet: true, class: "bare", id: "stage-close", onclick: () => this.shut() });
    this.evidence = this.#section("Why this moment?", "why", () => this.#loadEvidence());
    this.cutting = this.#section("Cut and download", "cut", () => this.#loadCut());
    fill(this.root,
      el("div", { class: "stage-head" }, this.title, this.close),
      el("div", { class: "screen" }, this.screen, this.note),
      this.line,
      el("div", { class: "stage-bar" },
        button("Previous moment in the list", { symbol: "previous", quiet: true, onclick: () => onMove(-1) }),
        button("Next moment in the list", { symbol: "next", quiet: true, onclick: () => onMove(1) }),
        this.loop, this.time,
        button("Copy link", { class: "push", onclick: (event) => copyLink(event.currentTarget) })),
      this.facts, this.list, this.evidence.root, this.cutting.root);
    this.player = new Player(this.screen, { onNote: (text, kind) => this.#say(text, kind), onTime: (seconds) => this.#move(seconds) });
    this.timeline = new Timeline(this.line, { onSeek: (time) => this.player.seek(time), onMoment: (moment) => this.play(openingOf(state().open.handle, moment)) });
    narrow.addEventListener("change", () => this.#fence());
    watch((next, before) => this.#follow(next, before));
  }

  get isOpen() {
    return !this.root.hidden;
  }

  /** Play a moment: from a click or a key, never by itself. */
  play(opening, { why = false } = {}) {
    this.#wantsPlay = true;
    this.#wantsWhy = why;
    go({ open: opening });
  }

  toggle() {
    this.player.toggle();
  }

  step(seconds) {
    this.screen.pause();
    this.player.seek(this.player.timeS + seconds);
  }

  /** Close it; the focus returns to the card. */
  shut() {
    go({ open: null });
  }

  openEvidence() {
    this.evidence.root.open = true;
  }

  /** Show what the address names, as after a reload. */
  restore() {
    this.#follow(state(), { ...state(), open: null });
  }

  /** Show the scores of the open moment after the list has changed. */
  refresh() {
    if (state().open && this.isOpen) this.#describe(state().open);
  }

  async #follow(next, before) {
    const play = this.#wantsPlay;
    this.#wantsPlay = false;
    if (!next.open) {
      if (before.open) this.#hide();
      return;
    }
    const isSame = before.open && JSON.stringify(before.open) === JSON.stringify(next.open) && this.isOpen;
    if (isSame && next.q === before.q && !play) return;
    if (!this.isOpen) {
      this.#returnTo = document.activeElement;
      this.root.hidden = false;
      byId("work").classList.add("has-stage");
      this.#fence();
      if (narrow.matches) this.close.focus();
    }
    if (this.#wantsWhy) this.openEvidence();
    this.#wantsWhy = false;
    await this.#describe(next.open);
    if (state().open !== next.open) return;
    await this.player.show(next.open, { play });
  }

  async #describe(open) {
    this.#abort.abort();
    this.#abort = new AbortController();
    const { signal } = this.#abort;
    let hit = this.findHit(open.handle, open);
    let video = hit;
    if (!hit) {
      try {
        video = await ask(`videos/${encodeURIComponent(open.handle)}`, { signal });
      } catch (error) {
        if (error.name === "AbortError") return;
        this.#shown = null;
        this.title.textContent = "Not there";
        this.#say(inWords(error), "error");
        return;
      }
      hit = this.findHit(open.handle, open);
    }
    if (signal.aborted) return;
    const moments = hit ? momentsOf(hit) : openMoment(video, open);
    this.#shown = { video, hit, moments };
    this.#draw(open);
  }

  #draw(open) {
    const { video, hit, moments } = this.#shown;
    const moment = moments.find((each) => Math.abs(each.start_s - open.startS) < 2e-3) ?? null;
    this.title.textContent = video.name;
    this.title.title = video.name;
    this.timeline.show(video.duration_s, moments, open);
    this.timeline.move(this.player.timeS);
    const where = open.endS === null && open.startS === 0 ? "Whole video" : clockRange(open.startS, open.endS);
    fill(this.facts,
      el("div", { class: "card-facts" },
        el("strong", { class: "number where" }, where),
        moment?.score !== undefined && moment && scoreOf(moment),
        moment?.isBest && hit && confidenceOf(hit),
        hit?.range && moment?.isBest && el("small", { class: "muted" }, `ends known to ± ${hit.range.resolution_s.toFixed(1)} s`)),
      moment?.grains && grainBars(moment.grains, largestGrain([moment])));
    fill(this.list, moments.length > 1 && moments.map((each) => el("li", {}, el("button", {
      type: "button", class: each.isBest ? "moment is-best" : "moment", "aria-current": each === moment ? "true" : null,
      onclick: () => this.play(openingOf(open.handle, each)),
    }, clock(each.start_s), el("small", {}, ` ${each.score?.toFixed(2) ?? ""}`)))));
    this.list.hidden = moments.length < 2;
    this.evidence.root.hidden = !state().q.trim();
    for (const section of [this.evidence, this.cutting]) {
      if (section.root.open && !section.root.hidden) section.load();
      else section.body.replaceChildren();
    }
  }

  #hide() {
    const hadFocus = this.root.contains(document.activeElement) || document.activeElement === document.body;
    this.#abort.abort();
    this.player.close();
    this.root.hidden = true;
    this.#shown = null;
    byId("work").classList.remove("has-stage");
    this.#fence();
    if (hadFocus && this.#returnTo?.isConnected) this.#returnTo.focus();
  }

  #fence() {
    const isOver = this.isOpen && narrow.matches;
    document.body.classList.toggle("is-covered", isOver);
    for (const each of document.querySelectorAll(".top > :not(h1), .options, #list, .skip")) each.inert = isOver;
  }

  #section(words, symbol, load) {
    const body = el("div", { class: "section-body" });
    const root = el("details", { class: "section", id: `section-${symbol}` }, el("summary", {}, words), body);
    root.addEventListener("toggle", () => {
      if (root.open && !body.childElementCount) load();
    });
    return { root, body, load };
  }

  #loadEvidence() {
    const { open, q } = state();
    if (!open || !q.trim()) return;
    showEvidence(this.evidence.body, { query: q.trim(), handle: open.handle, segment: open.segment }, {
      onTime: (time) => this.player.seek(time), onShown: () => this.#reveal(this.evidence.root), signal: this.#abort.signal,
    });
  }

  #loadCut() {
    const { open } = state();
    if (!open || !this.#shown) return;
    const { video } = this.#shown;
    cutForm(this.cutting.body, { ...open, name: video.name, durationS: video.duration_s }, { timeOf: () => this.player.timeS, onTime: (time) => this.player.seek(time) });
    this.#reveal(this.cutting.root);
  }

  /** Scroll the stage so that a section begins below the picture. */
  #reveal(section) {
    const picture = this.screen.parentElement.getBoundingClientRect();
    this.root.scrollBy({ top: Math.max(0, section.getBoundingClientRect().top - picture.bottom - 4) });
  }

  #toggleLoop() {
    this.player.repeats = !this.player.repeats;
    this.loop.setAttribute("aria-pressed", String(this.player.repeats));
  }

  #move(seconds) {
    this.timeline.move(seconds);
    this.time.textContent = clock(seconds, 2);
  }

  #say(text, kind) {
    this.note.hidden = kind === "none";
    this.note.className = `screen-note ${kind}`;
    if (this.note.textContent !== text) this.note.textContent = text;
  }
}

function openMoment(video, open) {
  if (open.endS === null && open.startS === 0) return [{ start_s: 0, end_s: video.duration_s, segment: null }];
  return [{ start_s: open.startS, end_s: open.endS, segment: open.segment }];
}

async function copyLink(control) {
  const label = control.querySelector("span");
  try {
    await navigator.clipboard.writeText(location.href);
    label.textContent = "Copied";
  } catch {
    label.textContent = "Copy the address bar";
  }
  setTimeout(() => {
    label.textContent = "Copy link";
  }, 2000);
}

/** Say how many moments there are, for the summary of a list. */
export function momentCount(hits) {
  return countText(hits.reduce((total, hit) => total + momentsOf(hit).length, 0), "moment");
}
