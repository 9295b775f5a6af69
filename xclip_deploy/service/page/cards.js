/** Cards: a hit of a search, or a video of the gallery. */

import { addressOf } from "./api.js";
import { button, el, setVars } from "./elements.js";
import { GRAINS } from "./evidence.js";
import { strip } from "./timeline.js";
import { clock, clockRange, countText, lengthText } from "./times.js";

/** Return the range that a hit stands for: the refined one, or its segment. */
export function rangeOf(hit) {
  return hit.range ?? { start_s: hit.start_s, end_s: hit.end_s };
}

/** Return all moments of a hit by time, the hit's own among them. */
export function momentsOf(hit) {
  const own = { ...rangeOf(hit), score: hit.score, segment: hit.segment, grains: hit.grains, best_frame_time_s: hit.best_frame_time_s, isBest: true };
  const others = hit.moments.filter((moment) => moment.segment !== hit.segment);
  return [own, ...others].sort((a, b) => a.start_s - b.start_s);
}

/** Return what the address and the player need of a moment. */
export function openingOf(handle, moment) {
  return { handle, startS: moment.start_s, endS: moment.end_s ?? null, segment: moment.segment ?? null };
}

/** Write a confidence for people. */
export function confidenceText(confidence) {
  if (confidence > 0.995) return "> 99 %";
  if (confidence < 0.01) return "< 1 %";
  return `${Math.round(confidence * 100)} %`;
}

/**
 * Draw a hit.
 *
 * `most` is the largest grain on the page, the whole length of a bar. `on` has what its buttons
 * do: `play(moment)`, `why()`, `like()`, `within()`.
 */
export function hitCard(hit, { most, on, isMoment }) {
  const range = rangeOf(hit);
  const moments = momentsOf(hit);
  const title = `${hit.rank}. ${hit.name}, ${clockRange(range.start_s, range.end_s)}`;
  return el("li", { class: "card", "data-handle": hit.handle, "data-start": range.start_s, "data-segment": hit.segment },
    el("article", { "aria-label": title },
      el("button", {
        type: "button", class: "play-button", "aria-label": `Play ${hit.name} from ${clock(range.start_s)}`, disabled: !hit.has_media, onclick: () => on.play(openingOf(hit.handle, moments.find((moment) => moment.isBest))),
      }, picture(hit.handle, hit), el("span", { class: "rank", "aria-hidden": "true" }, hit.rank), el("span", { class: "times", "aria-hidden": "true" }, clockRange(range.start_s, range.end_s))),
      el("div", { class: "card-body" },
        el("h3", { class: "card-name", title: hit.name }, hit.name),
        el("div", { class: "card-facts" }, scoreOf(hit), confidenceOf(hit)),
        hit.grains && grainBars(hit.grains, most),
        momentRow(hit, moments, on, isMoment),
        metadataLine(hit),
        el("div", { class: "card-actions" },
          on.why && button("Why?", { symbol: "why", "aria-label": `Why was ${title} found?`, onclick: () => on.why(openingOf(hit.handle, moments.find((moment) => moment.isBest))) }),
          hit.has_media && button("More like this", { symbol: "like", "aria-label": `More like ${hit.name}`, onclick: () => on.like() }),
          moments.length > 1 && button(`Search only in ${hit.name}`, { symbol: "within", quiet: true, class: "push", onclick: () => on.within() })),
      )));
}

/** Draw a video of the gallery. */
export function videoCard(video, on) {
  const whole = { handle: video.handle, startS: 0, endS: null, segment: null };
  return el("li", { class: "card is-video", "data-handle": video.handle },
    el("article", { "aria-label": video.name },
      el("button", { type: "button", class: "play-button", "aria-label": `Play ${video.name}`, disabled: !video.has_media, onclick: () => on.play(whole) },
        picture(video.handle, { start_s: 0, best_frame_time_s: 0, has_media: video.has_media }),
        el("span", { class: "times", "aria-hidden": "true" }, video.duration_s === null ? "?" : clock(video.duration_s, 0))),
      el("div", { class: "card-body" },
        el("h3", { class: "card-name", title: video.name }, video.name),
        el("p", { class: "metadata" }, lengthText(video.duration_s), " · ", countText(video.num_segments, "segment")),
        metadataLine(video),
        el("div", { class: "card-actions" },
          video.has_media && button("More like this", { symbol: "like", "aria-label": `More like ${video.name}`, onclick: () => on.like() }),
          button(`Search only in ${video.name}`, { symbol: "within", quiet: true, class: "push", onclick: () => on.within() }),
          on.remove && button(`Remove ${video.name}`, { symbol: "remove", quiet: true, onclick: () => on.remove() })))));
}

/** Return the largest grain of hits; bars are drawn relative to it. */
export function largestGrain(hits) {
  const values = hits.flatMap((hit) => Object.values(hit.grains ?? {})).filter((value) => value !== null);
  return Math.max(...values, 1e-6);
}

/** Draw the score, with what it means. */
export function scoreOf({ score }) {
  return el("span", { class: "score", title: "Similarity to the query. It ranks the hits of one query and says nothing across queries." }, el("small", {}, "score "), score.toFixed(Math.abs(score) < 1 ? 3 : 2));
}

/** Draw the confidence as a meter, with what it means; nothing where it cannot be told. */
export function confidenceOf({ confidence }) {
  if (confidence === null || confidence === undefined) return null;
  const text = confidenceText(confidence);
  const kind = confidence >= 0.9 ? "is-high" : confidence >= 0.5 ? "is-middle" : "is-low";
  return el("span", {
    class: `confidence ${kind}`, title: "How surely the score is more than chance in a gallery of this size. It is no promise that a person would agree.",
  }, el("small", {}, "confidence "), text, el("span", { class: "meter", "aria-hidden": "true", vars: { part: confidence } }));
}

/** Draw the grains as bars with their values. */
export function grainBars(grains, most) {
  const given = GRAINS.filter(([name]) => grains[name] !== null && grains[name] !== undefined);
  return el("dl", { class: "grains" }, given.map(([name, words, meaning]) => {
    const bar = el("span", { class: `bar grain-${name}` });
    setVars(bar, { part: Math.max(0, grains[name] / most) });
    return el("div", { class: "grain", title: `Similarity of ${meaning}` }, el("dt", {}, words), el("dd", {}, bar, el("span", { class: "number" }, grains[name].toFixed(2))));
  }));
}

/** Draw metadata as one line. */
export function metadataLine({ metadata }) {
  const entries = Object.entries(metadata);
  if (!entries.length) return null;
  return el("p", { class: "metadata" }, entries.map(([name, value]) => el("span", { class: "pair" }, el("span", { class: "field" }, `${name} `), String(value))));
}

function momentRow(hit, moments, on, isMoment) {
  if (isMoment && moments.length < 2) return strip(hit.duration_s, moments, (moment) => moment.isBest);
  const buttons = moments.map((moment) =>
    el("li", {}, el("button", {
      type: "button", class: moment.isBest ? "moment is-best" : "moment", disabled: !hit.has_media,
      "aria-label": `Play ${hit.name} at ${clock(moment.start_s)}, score ${moment.score.toFixed(2)}`, onclick: () => on.play(openingOf(hit.handle, moment)),
    }, clock(moment.start_s, 0))),
  );
  return [strip(hit.duration_s, moments, (moment) => moment.isBest), moments.length > 1 && el("ul", { class: "moments", "aria-label": `Moments in ${hit.name}` }, buttons)];
}

function picture(handle, { start_s: startS, best_frame_time_s: timeS, has_media: hasMedia }) {
  if (!hasMedia) return el("span", { class: "no-picture" }, "no file");
  const image = el("img", { src: addressOf(handle, "thumbnail", { start_s: startS, time_s: timeS }), alt: "", loading: "lazy", decoding: "async", width: 320, height: 180 });
  image.addEventListener("load", () => {
    // Pictures near 16:9 fill the frame; others keep their sides and lie on a blurred copy.
    const ratio = image.naturalWidth / image.naturalHeight;
    if (ratio > 1.5 && ratio < 2.1) image.classList.add("is-wide");
    else image.before(el("img", { class: "backdrop", src: image.src, alt: "" }));
  }, { once: true });
  image.addEventListener("error", () => image.replaceWith(el("span", { class: "no-picture" }, "no picture")), { once: true });
  return image;
}
