/**
 * Plays a video from exactly one moment.
 *
 * The file itself is tried first. Where the browser shows no frame of it, the service makes a copy
 * of the moment that every browser plays. `canPlayType` is not asked, as it is wrong for files
 * whose sound plays and whose pictures do not.
 */

import { addressOf, inWords, send, ServiceError } from "./api.js";

const EPSILON_S = 0.001; // a seek to a frame's very time may show the frame before
const NO_FRAME_MS = 2500;
const AROUND_S = 3; // seconds around a moment that a copy holds too
const LEAST_ZERO_S = 0.05;
const NO_DATA_MS = 1500; // some browsers load no data before they play
const DRAG_MS = 200;
const COPY_S = 30; // length of a copy where the moment has no end

export class Player {
  #turn = 0;
  #source = null; // {handle, isCopy, offsetS, startS, endS}
  #needsCopy = new Set();
  #abort = new AbortController();
  #plays = false;
  #later = 0;

  /**
   * `video` is the element. `onNote(text, kind)` is told what the player does; kind is `busy`,
   * `info`, `error` or `none`. `onTime(seconds)` is told the time in the video.
   */
  constructor(video, { onNote, onTime }) {
    this.video = video;
    this.onNote = onNote;
    this.onTime = onTime;
    this.moment = null;
    this.repeats = false;
    video.addEventListener("timeupdate", () => this.#tick());
    video.addEventListener("seeked", () => this.#tick());
    video.addEventListener("error", () => this.#fail());
  }

  /** Time in the video, seconds, whatever file is playing. */
  get timeS() {
    return this.video.currentTime + (this.#source?.offsetS ?? 0);
  }

  get handle() {
    return this.#source?.handle ?? null;
  }

  /** Show a moment {handle, startS, endS}; with `play`, play on from its start. */
  async show(moment, { play = false } = {}) {
    const turn = this.#begin();
    this.moment = moment;
    this.#plays = play;
    try {
      if (this.#needsCopy.has(moment.handle)) await this.#showCopy(moment, turn, play);
      else await this.#showFile(moment, turn, play);
    } catch (error) {
      if (turn === this.#turn && error.name !== "AbortError") this.onNote(inWords(error), "error");
    }
  }

  /** Go to a time of the same video, and keep playing if it plays. */
  seek(timeS) {
    if (!this.#source || !this.moment) return;
    const { isCopy, startS, endS, handle } = this.#source;
    if (isCopy && (timeS < startS || timeS > endS)) {
      // A drag along the timeline asks for one copy, where it ends.
      clearTimeout(this.#later);
      const turn = this.#turn;
      this.#later = setTimeout(() => {
        if (turn === this.#turn) this.show({ handle, startS: timeS, endS: timeS + COPY_S }, { play: !this.video.paused });
      }, DRAG_MS);
      return;
    }
    this.video.currentTime = Math.max(0, timeS - this.#source.offsetS) + EPSILON_S;
  }

  toggle() {
    if (this.video.paused) this.#play();
    else this.video.pause();
  }

  /** Stop and let go of the file. */
  close() {
    this.#begin();
    this.#source = null;
    this.moment = null;
    this.video.pause();
    this.video.removeAttribute("src");
    this.video.load();
    this.onNote("", "none");
  }

  #begin() {
    this.#turn += 1;
    this.#abort.abort();
    this.#abort = new AbortController();
    return this.#turn;
  }

  async #showFile(moment, turn, play) {
    const isNew = !this.#source || this.#source.isCopy || this.#source.handle !== moment.handle || this.video.error;
    if (isNew) {
      this.video.pause();
      this.#source = { handle: moment.handle, isCopy: false, offsetS: 0 };
      this.onNote("Opening the video…", "busy");
      this.video.src = addressOf(moment.handle, "media");
    }
    await this.#start(moment, turn, play);
    if (turn === this.#turn && this.video.videoWidth === 0) await this.#fallBack(moment, turn, play);
  }

  async #start(moment, turn, play) {
    if (this.video.readyState < HTMLMediaElement.HAVE_METADATA) {
      await once(this.video, "loadedmetadata", this.#abort.signal);
    }
    if (turn !== this.#turn || this.video.videoWidth === 0) return;
    if (!this.#source.isCopy) await this.#findZero();
    if (turn !== this.#turn) return;
    const isShown = this.#frameShown(moment, turn, play);
    this.video.currentTime = Math.max(0, moment.startS - this.#source.offsetS) + EPSILON_S;
    if (play) this.#play();
    await isShown;
  }

  /**
   * Find the time of a file's start, where the browser does not count from it.
   *
   * The service's times begin with the file. Once data is there, a browser stands at the file's
   * start, which may lie after its own 0. The first frame tells where exactly.
   */
  async #findZero() {
    const { video } = this;
    if (this.#source.isFound) return;
    const first = frameTime(video);
    if (video.readyState < HTMLMediaElement.HAVE_CURRENT_DATA) {
      await Promise.race([once(video, "loadeddata", this.#abort.signal), later(NO_DATA_MS)]);
    }
    this.#source.isFound = true;
    if (video.currentTime < LEAST_ZERO_S) return;
    const zero = await Promise.race([first, later(NO_DATA_MS)]);
    this.#source.offsetS = -(zero || video.currentTime);
  }

  /** Wait for a frame on the screen; without one, fall back. */
  async #frameShown(moment, turn, play) {
    const { video } = this;
    const signal = this.#abort.signal;
    if (!video.requestVideoFrameCallback) {
      await once(video, "seeked", signal);
      this.onNote("", "none");
      return;
    }
    const shown = frameTime(video).then(() => true);
    await once(video, "seeked", signal);
    for (;;) {
      const isSeen = await Promise.race([shown, later(NO_FRAME_MS)]);
      if (turn !== this.#turn) return;
      if (isSeen) break;
      // A page in the background draws nothing, and a paused frame may have been drawn before.
      const hasData = video.readyState >= HTMLMediaElement.HAVE_CURRENT_DATA;
      if (document.visibilityState === "visible" && hasData) {
        if (decoded(video) > 0) break;
        await this.#fallBack(moment, turn, play);
        return;
      }
    }
    if (this.#source?.isCopy) this.onNote("This browser cannot play the file. You see a converted copy of the moment.", "info");
    else this.onNote("", "none");
  }

  async #showCopy(moment, turn, play) {
    const endS = moment.endS ?? moment.startS + COPY_S;
    const fields = { start_s: moment.startS, end_s: endS, pad_s: AROUND_S };
    const address = addressOf(moment.handle, "playable", fields);
    this.onNote("This browser cannot play the file. The server converts the moment…", "busy");
    const response = await send(address, { headers: { Range: "bytes=0-0" }, signal: this.#abort.signal });
    await response.body?.cancel();
    if (turn !== this.#turn) return;
    const offsetS = Number(response.headers.get("X-Start-S") ?? moment.startS - AROUND_S);
    const lastS = Number(response.headers.get("X-End-S") ?? endS + AROUND_S);
    this.#source = { handle: moment.handle, isCopy: true, offsetS, startS: offsetS, endS: lastS };
    this.video.src = address;
    await this.#start(moment, turn, play);
  }

  async #fallBack(moment, turn, play) {
    if (turn !== this.#turn) return;
    if (this.#source?.isCopy) throw new ServiceError("the browser shows no frame, not even of the converted copy", { status: 415 });
    this.#needsCopy.add(moment.handle);
    await this.#showCopy(moment, turn, play);
  }

  async #fail() {
    const { moment } = this;
    const turn = this.#turn;
    if (!moment || !this.video.getAttribute("src") || !this.video.error) return;
    try {
      // The element does not say why it failed: the server may refuse, or the browser.
      await send(this.#source.isCopy ? this.video.getAttribute("src") : addressOf(moment.handle, "media"), {
        headers: { Range: "bytes=0-0" }, signal: this.#abort.signal,
      }).then((response) => response.body?.cancel());
      const next = turn === this.#turn ? this.#begin() : 0;
      if (next) await this.#fallBack(moment, next, this.#plays);
    } catch (error) {
      if (error.name !== "AbortError" && turn <= this.#turn) this.onNote(inWords(error), "error");
    }
  }

  #play() {
    this.video.play().catch((error) => {
      if (error.name !== "NotAllowedError") return;
      this.video.muted = true;
      this.video.play().catch(() => {});
    });
  }

  #tick() {
    const { timeS, moment } = this;
    if (this.repeats && moment?.endS && timeS >= moment.endS && !this.video.paused) this.seek(moment.startS);
    this.onTime(timeS);
  }
}

function decoded(video) {
  return video.getVideoPlaybackQuality?.().totalVideoFrames ?? 1;
}

/** Return the time of the next frame on the screen, in the file; never where browsers cannot tell. */
function frameTime(video) {
  return new Promise((resolve) => {
    video.requestVideoFrameCallback?.((_, { mediaTime }) => resolve(mediaTime));
  });
}

function later(milliseconds) {
  return new Promise((resolve) => {
    setTimeout(() => resolve(false), milliseconds);
  });
}

function once(target, name, signal) {
  return new Promise((resolve, reject) => {
    target.addEventListener(name, resolve, { once: true, signal });
    signal.addEventListener("abort", () => reject(new DOMException("aborted", "AbortError")), { once: true });
  });
}
