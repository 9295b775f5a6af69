/** The list of all videos, what to do where there are none, and removal. */

import { go, restart, state } from "./address.js";
import { ask, inWords } from "./api.js";
import { videoCard } from "./cards.js";
import { confirmed } from "./dialogs.js";
import { announce, button, byId, el, fill } from "./elements.js";
import { whereOf } from "./filters.js";
import { gallery, loadGallery, metadataKinds } from "./gallery.js";
import { countText, lengthText, sizeText } from "./times.js";

const PAGE = 60;

export class Library {
  #abort = new AbortController();
  #key = null;

  /** `onPlay(opening)` plays a video, `onAdd()` chooses files, `onChange()` is told of removals. */
  constructor({ onPlay, onAdd, onAddPaths, onChange }) {
    this.root = byId("list");
    this.onPlay = onPlay;
    this.onAdd = onAdd;
    this.onAddPaths = onAddPaths;
    this.onChange = onChange;
  }

  stop() {
    this.#abort.abort();
    this.#key = null;
  }

  /** Show the first page, unless the same list is there already. */
  async show({ again = false } = {}) {
    const key = JSON.stringify([state().filters, state().where]);
    if (key === this.#key && !again) return;
    this.#abort.abort();
    this.#abort = new AbortController();
    const { signal } = this.#abort;
    this.#key = key;
    try {
      const summary = await loadGallery();
      const where = whereOf(state().filters, state().where, metadataKinds());
      const page = await this.#load(where, 0, signal);
      if (signal.aborted) return;
      byId("summary").textContent = where ? `${countText(page.total, "video")} of ${summary.num_videos.toLocaleString("en")}` : total(summary);
      if (!summary.num_videos) this.#drawEmpty(summary);
      else this.#draw(page, where);
    } catch (error) {
      if (error.name === "AbortError") return;
      this.#key = null;
      fill(this.root, el("div", { class: "empty", role: "alert" }, el("h2", {}, "The list did not load"), el("p", {}, inWords(error)),
        button("Try again", { class: "primary", onclick: () => this.show({ again: true }) })));
    }
  }

  #load(where, offset, signal) {
    const query = new URLSearchParams({ limit: PAGE, offset });
    if (where) query.set("where", where);
    return ask(`videos?${query}`, { signal });
  }

  #draw(page, where) {
    this.cards = el("ol", { class: "cards is-library", "aria-label": "Videos of the gallery" });
    this.more = el("div", { class: "more" });
    const hint = page.total ? null : el("div", { class: "empty" }, el("h2", {}, "No video fits"), button("Clear the filters", { onclick: () => go({ filters: [], where: "" }) }));
    fill(this.root, el("div", { class: "list-head" }, el("h2", {}, "All videos"), this.#addButtons({ isShort: true })), howToAdd(gallery()), this.cards, hint, this.more);
    this.#append(page, where);
  }

  #append(page, where) {
    this.cards.append(...page.videos.map((video) => videoCard(video, {
      play: (opening) => this.onPlay(opening),
      like: () => restart({ like: video.handle }),
      within: () => {
        go({ within: video.handle, group: "moment", open: null });
        byId("query").focus();
      },
      remove: gallery().can_upload ? () => this.#remove(video) : null,
    })));
    fill(this.more, page.next_offset !== null && button(`Show more of ${page.total.toLocaleString("en")}`, { onclick: async (event) => {
      event.currentTarget.disabled = true;
      try {
        this.#append(await this.#load(where, page.next_offset, this.#abort.signal), where);
      } catch (error) {
        if (error.name !== "AbortError") fill(this.more, el("p", { class: "note error", role: "alert" }, inWords(error)));
      }
    } }));
  }

  #addButtons({ isShort = false } = {}) {
    const { can_upload: canUpload, can_add_paths: canAddPaths } = gallery();
    return el("div", { class: "list-actions" },
      canUpload && !isShort && button("Add videos", { symbol: "add", class: "primary", onclick: () => this.onAdd() }),
      canAddPaths && button("Add a folder of the server", { onclick: () => this.onAddPaths() }));
  }

  #drawEmpty(summary) {
    const canAdd = summary.can_upload || summary.can_add_paths;
    fill(this.root, el("div", { class: "empty is-first" },
      el("h2", {}, "No videos yet"),
      el("p", {}, canAdd ? "Three steps lead to the first moment:" : "This service only reads. Whoever runs it adds videos with:"),
      canAdd && el("ol", { class: "steps" },
        el("li", {}, el("strong", {}, "Add videos. "), "Drop files on this page, or choose them below."),
        el("li", {}, el("strong", {}, "Wait a moment. "), "Each video is read once; a bar shows how far it is."),
        el("li", {}, el("strong", {}, "Say what happens. "), "Type it into the box above and press Enter.")),
      this.#addButtons(),
      el("p", { class: "hint" }, canAdd ? "Many files go in faster on the server's command line: " : "", el("code", {}, indexCommand(summary)))));
  }

  async #remove(video) {
    const sure = await confirmed(`Remove ${video.name}?`, `Its ${countText(video.num_segments, "segment")} will no longer be found. A file that you added by its path stays where it is.`, "Remove");
    if (!sure) return;
    try {
      await ask(`videos/${encodeURIComponent(video.handle)}`, { method: "DELETE" });
    } catch (error) {
      announce(inWords(error));
      byId("summary").textContent = inWords(error);
      return;
    }
    const card = this.root.querySelector(`.card[data-handle="${CSS.escape(video.handle)}"]`);
    const next = card?.nextElementSibling ?? card?.previousElementSibling;
    card?.remove();
    (next?.querySelector(".play-button") ?? byId("query")).focus();
    announce(`${video.name} was removed.`);
    if (state().open?.handle === video.handle) go({ open: null }, { replace: true });
    this.onChange();
  }
}

/** Return the command that adds videos. */
function indexCommand({ num_shards: shards }) {
  return `xclip-deploy index VIDEOS --gallery GALLERY${shards === null ? "" : " --cluster auto"}`;
}

/** Say why a gallery in shards has no buttons to add videos; null for others. */
function howToAdd(summary) {
  if (summary.num_shards === null) return null;
  return el("p", { class: "hint" }, `The gallery is in ${countText(summary.num_shards, "shard")}, which this page only reads. Whoever runs it adds videos with: `,
    el("code", {}, indexCommand(summary)));
}

function total({ num_videos: videos, num_segments: segments, total_duration_s: seconds, size_bytes: size }) {
  const parts = [countText(videos, "video"), countText(segments, "segment"), lengthText(seconds)];
  if (size !== null) parts.push(`index ${sizeText(size)}`);
  return videos ? parts.join(" · ") : "";
}
