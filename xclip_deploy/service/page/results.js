/** The list of a search: its request, its cards, and what to say when there are none. */

import { go, restart, state } from "./address.js";
import { ask, inWords } from "./api.js";
import { confidenceText, hitCard, largestGrain, rangeOf } from "./cards.js";
import { announce, button, byId, el, fill } from "./elements.js";
import { whereOf } from "./filters.js";
import { loadGallery, metadataKinds } from "./gallery.js";
import { listKey, searchFields } from "./links.js";
import { momentCount } from "./stage.js";
import { countText } from "./times.js";
import { example } from "./examples.js";

const kept = new Map(); // results by the list's address, for back and forward
const KEPT = 12;

export class Results {
  #abort = new AbortController();

  constructor({ onPlay, onShown }) {
    this.root = byId("list");
    this.onPlay = onPlay;
    this.onShown = onShown;
    this.hits = [];
  }

  /** Forget what was kept, as after a change of the gallery. */
  forget() {
    kept.clear();
  }

  stop() {
    this.#abort.abort();
    this.hits = [];
    this.#rest();
  }

  /** Return the hit that a moment belongs to. */
  find(handle, opening) {
    const own = this.hits.filter((hit) => hit.handle === handle);
    const isAt = (hit) => Math.abs(rangeOf(hit).start_s - opening.startS) < 2e-3;
    return own.find(isAt) ?? own.find((hit) => hit.moments.some((moment) => moment.segment === opening.segment)) ?? own[0];
  }

  /** Search for what the address asks. */
  async show() {
    this.#abort.abort();
    this.#abort = new AbortController();
    const { signal } = this.#abort;
    const key = listKey(state());
    const before = kept.get(key);
    if (before) {
      this.#draw(before);
      announce(byId("summary").textContent);
      return;
    }
    this.root.setAttribute("aria-busy", "true");
    this.root.classList.add("is-waiting");
    try {
      const results = await search(state(), signal);
      // A list without some shards is asked for again.
      if (!results.failed_shards.length) kept.set(key, results);
      if (kept.size > KEPT) kept.delete(kept.keys().next().value);
      this.#draw(results);
      announce(byId("summary").textContent);
    } catch (error) {
      if (error.name === "AbortError") return;
      this.hits = [];
      byId("summary").textContent = "";
      fill(this.root, el("div", { class: "empty", role: "alert" }, el("h2", {}, "The search did not work"), el("p", {}, inWords(error)),
        button("Try again", { class: "primary", onclick: () => this.show() })));
    } finally {
      if (!signal.aborted) this.#rest();
    }
  }

  #rest() {
    this.root.setAttribute("aria-busy", "false");
    this.root.classList.remove("is-waiting");
  }

  #draw(results) {
    this.#rest();
    this.hits = results.hits;
    byId("summary").textContent = summary(results);
    if (!results.hits.length) {
      fill(this.root, missingShards(results), notices(results), nothing(results));
    } else {
      this.cards = el("ol", { class: "cards", "aria-label": "Hits, best first" });
      this.#append(results.hits);
      this.more = el("div", { class: "more" });
      fill(this.root, el("h2", { class: "unseen" }, "Hits"), missingShards(results), notices(results), this.cards, this.more, meaning());
      this.#offerMore(results);
    }
    this.onShown();
  }

  #append(hits) {
    const most = largestGrain(this.hits);
    const isMoment = state().group === "moment";
    this.cards.append(...hits.map((hit) => hitCard(hit, {
      most, isMoment,
      on: {
        play: (opening) => this.onPlay(opening),
        why: state().q.trim() ? (opening) => this.onPlay(opening, { why: true }) : null,
        like: () => restart({ like: hit.handle, likeSegment: hit.segment }),
        within: () => go({ within: hit.handle, group: "moment", open: null, offset: 0 }),
      },
    })));
  }

  #offerMore(results) {
    const isFull = results.lastCount >= state().k;
    fill(this.more, isFull && button("Show more", { onclick: (event) => this.#loadMore(results, event.currentTarget) }));
  }

  async #loadMore(results, control) {
    control.disabled = true;
    try {
      const next = await search({ ...state(), offset: state().offset + results.hits.length }, this.#abort.signal);
      results.hits.push(...next.hits);
      results.lastCount = next.hits.length;
      if (next.failed_shards.length) {
        results.failed_shards = next.failed_shards;
        results.answered_shards = next.answered_shards;
        for (const [address, list] of kept) if (list === results) kept.delete(address);
        this.root.querySelector(".missing-shards")?.remove();
        this.root.prepend(missingShards(results));
      }
      this.#append(next.hits);
      this.#offerMore(results);
      byId("summary").textContent = summary(results);
      announce(`${next.hits.length} more. ${summary(results)}`);
      this.cards.children[results.hits.length - next.hits.length]?.querySelector(".play-button")?.focus();
    } catch (error) {
      if (error.name !== "AbortError") fill(this.more, el("p", { class: "note error", role: "alert" }, inWords(error)));
    }
  }
}

async function search(wanted, signal) {
  if (wanted.filters.length && !Object.keys(metadataKinds()).length) await loadGallery();
  const fields = searchFields(wanted, whereOf(wanted.filters, wanted.where, metadataKinds()));
  const text = wanted.q.trim();
  let results;
  if (wanted.upload) {
    const file = example(wanted.upload);
    const form = new FormData();
    form.append("file", file, file.name);
    if (text && file.kind === "video") form.append("text", text);
    form.append("options", JSON.stringify(fields));
    results = await ask(`search/${file.kind}`, { method: "POST", form, signal, again: true });
  } else {
    const json = { ...fields };
    if (text) json.text = text;
    if (wanted.like) json.video = wanted.like;
    if (wanted.like && wanted.likeSegment !== null) json.segment = wanted.likeSegment;
    if (text && wanted.like) json.video_weight = wanted.weight;
    results = await ask("search", { method: "POST", json, signal, again: true });
  }
  return { ...results, lastCount: results.hits.length };
}

function summary({ hits, num_videos: numVideos }) {
  if (!hits.length) return `Nothing found in ${countText(numVideos, "video")}`;
  if (state().group === "moment") return `${countText(hits.length, "moment")} of ${countText(numVideos, "video")}`;
  return `${momentCount(hits)} in ${hits.length} of ${countText(numVideos, "video")}`;
}

function notices(results) {
  const best = Math.max(...results.hits.map((hit) => hit.confidence ?? -1));
  const texts = [...results.warnings];
  if (results.truncated_tokens) texts.push(`The query is longer than the model reads: its last ${countText(results.truncated_tokens, "token")} had no effect.`);
  if (best >= 0 && best < 0.5 && state().q.trim()) texts.push(`No hit stands out from chance: the best has a confidence of ${confidenceText(best)}. The list shows what is closest.`);
  if (results.note) texts.push(sentence(results.note));
  return texts.length ? el("ul", { class: "notices" }, texts.map((text) => el("li", {}, text))) : null;
}

/** Say which shards of the gallery were not searched; null where all were. */
function missingShards({ answered_shards: answered, failed_shards: failed }) {
  if (!failed.length) return null;
  const count = answered.length + failed.length;
  return el("div", { class: "missing-shards", role: "alert" },
    el("strong", {}, `${failed.length} of ${count} shards of the gallery ${failed.length === 1 ? "was" : "were"} not searched.`),
    " Videos there are missing from this list. Search again in a moment.",
    el("ul", {}, failed.map((shard) => el("li", {}, `Shard ${shard.number} on ${shard.node}: ${sentence(shard.reason)}`))));
}

function nothing(results) {
  const { filters, where, within, minConfidence, fromS, toS } = state();
  const isLimited = filters.length || where || within || minConfidence !== null || fromS !== null || toS !== null;
  const advice = results.failed_shards.length ? "It may lie in a shard that was not searched." : results.num_videos === 0 ? "The gallery is empty. Add videos first." : isLimited ? "Take away a filter, or say it in other words." : "Say it in other words.";
  return el("div", { class: "empty" }, el("h2", {}, "No moment found"), el("p", {}, advice),
    isLimited && button("Clear the filters", { onclick: () => go({ filters: [], where: "", within: null, minConfidence: null, fromS: null, toS: null, open: null }) }));
}

function meaning() {
  return el("details", { class: "meaning" }, el("summary", {}, "What the numbers mean"),
    el("dl", {},
      el("dt", {}, "score"), el("dd", {}, "Similarity of the query and the moment. It ranks the hits of one query. Scores of different queries do not compare."),
      el("dt", {}, "confidence"), el("dd", {}, "How surely the score is more than chance: the probability that nothing in a gallery without a match scores as high. It needs 200 segments or more."),
      el("dt", {}, "bars"), el("dd", {}, "The grains, whose mean is the score: whole video or single frames against the whole sentence or single words."),
      el("dt", {}, "range"), el("dd", {}, "Where the moment begins and ends, as well as the sampled frames tell.")));
}

function sentence(text) {
  const start = text[0].toUpperCase() + text.slice(1);
  return /[.!?]$/.test(start) ? start : `${start}.`;
}
