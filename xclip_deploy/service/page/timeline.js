/** Timelines: a video's length with its moments on it. */

import { el, setVars } from "./elements.js";
import { clock, clockRange } from "./times.js";

/** Return the length that a timeline stands for, seconds. */
export function lengthOf(durationS, moments) {
  const ends = moments.map((moment) => moment.end_s ?? moment.start_s + 1);
  return Math.max(durationS ?? 0, ...ends, 0.1);
}

/** Draw the moments of a card. It is a picture: the card's buttons name the same moments. */
export function strip(durationS, moments, isOpen = () => false) {
  const length = lengthOf(durationS, moments);
  const best = Math.max(...moments.map((moment) => moment.score));
  const marks = moments.map((moment) => {
    const mark = el("span", { class: isOpen(moment) ? "mark is-open" : "mark" });
    place(mark, moment, length, best);
    return mark;
  });
  return el("div", { class: "strip", "aria-hidden": "true" }, marks);
}

/** The timeline under the player: a slider over the whole video, with marks to click. */
export class Timeline {
  constructor(root, { onSeek, onMoment }) {
    this.onSeek = onSeek;
    this.onMoment = onMoment;
    this.length = 0.1;
    this.head = el("span", { class: "playhead" });
    this.marks = el("div", { class: "marks" });
    this.track = el("div", {
      class: "track", role: "slider", tabindex: "0", "aria-label": "Time in the video",
      "aria-valuemin": "0", "aria-valuemax": "0", "aria-valuenow": "0",
      onpointerdown: (event) => this.#drag(event),
      onkeydown: (event) => this.#key(event),
    }, this.marks, this.head);
    this.hover = el("span", { class: "hover-time", "aria-hidden": "true" });
    this.track.append(this.hover);
    this.track.addEventListener("pointermove", (event) => {
      const time = this.#timeAt(event);
      setVars(this.hover, { at: time / this.length });
      this.hover.textContent = clock(time);
    });
    this.ends = el("div", { class: "track-ends", "aria-hidden": "true" });
    root.replaceChildren(this.track, this.ends);
  }

  /** Show a video's moments; `open` is the one that plays. */
  show(durationS, moments, open) {
    this.length = lengthOf(durationS, moments);
    const best = Math.max(...moments.map((moment) => moment.score ?? 0));
    this.marks.replaceChildren(
      ...moments.map((moment) => {
        const isOpen = Math.abs(moment.start_s - open.startS) < 1e-3;
        const mark = el("span", {
          class: isOpen ? "mark is-open" : "mark",
          title: clockRange(moment.start_s, moment.end_s),
          onpointerdown: (event) => {
            event.stopPropagation();
            this.onMoment(moment);
          },
        });
        place(mark, moment, this.length, best);
        return mark;
      }),
    );
    this.track.setAttribute("aria-valuemax", this.length.toFixed(1));
    this.ends.replaceChildren(el("span", {}, clock(0)), el("span", {}, clock(this.length)));
  }

  /** Move the playhead. */
  move(timeS) {
    this.timeS = timeS;
    setVars(this.head, { at: Math.min(1, timeS / this.length) });
    this.track.setAttribute("aria-valuenow", timeS.toFixed(1));
    this.track.setAttribute("aria-valuetext", `${clock(timeS)} of ${clock(this.length)}`);
  }

  #timeAt(event) {
    const box = this.track.getBoundingClientRect();
    return Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)) * this.length;
  }

  #drag(event) {
    this.track.setPointerCapture(event.pointerId);
    const seek = (moved) => this.onSeek(this.#timeAt(moved));
    const end = () => {
      this.track.removeEventListener("pointermove", seek);
      this.track.removeEventListener("pointerup", end);
      this.track.removeEventListener("pointercancel", end);
    };
    seek(event);
    this.track.addEventListener("pointermove", seek);
    this.track.addEventListener("pointerup", end);
    this.track.addEventListener("pointercancel", end);
  }

  #key(event) {
    const step = event.shiftKey ? 10 : 1;
    const to = {
      ArrowLeft: this.timeS - step,
      ArrowRight: this.timeS + step,
      PageDown: this.timeS - 30,
      PageUp: this.timeS + 30,
      Home: 0,
      End: this.length - 0.1,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    this.onSeek(Math.min(this.length, Math.max(0, to)));
  }
}

function place(mark, moment, length, best) {
  const end = moment.end_s ?? length;
  const strength = best > 0 ? Math.max(0.35, (moment.score ?? 0) / best) : 1;
  setVars(mark, { from: moment.start_s / length, to: Math.min(1, end / length), strength });
}
