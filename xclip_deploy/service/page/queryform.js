/** The search box: words, a picture or video to search by, and what is listed. */

import { go, state } from "./address.js";
import { addressOf, ask } from "./api.js";
import { announce, button, byId, el, fill, icon } from "./elements.js";
import { example, has, keep, kindOf, preview } from "./examples.js";

const ACCEPTED = "image/*,video/*,.mkv,.mov,.avi,.webm,.mp4,.ts";
const names = new Map(); // handle to name of videos that are searched by or in

/** Wire the form. `focus` puts the cursor into the box. */
export function queryForm() {
  const form = byId("search");
  const input = byId("query");
  const picker = el("input", { type: "file", accept: ACCEPTED, class: "unseen", tabindex: "-1", "aria-hidden": "true", id: "example-file" });
  picker.addEventListener("change", () => {
    if (picker.files.length) searchWith(picker.files[0]);
    picker.value = "";
  });
  byId("pick-example").replaceChildren(
    button("Search with a picture or a video", { symbol: "image", quiet: true, class: "bare", id: "pick", onclick: () => picker.click() }),
    picker,
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    go({ q: input.value.trim(), offset: 0, open: null });
    // On a phone, the keyboard would cover what was found.
    if (matchMedia("(pointer: coarse)").matches) input.blur();
  });
  input.addEventListener("search", () => {
    if (!input.value && state().q) go({ q: "", open: null });
  });
  for (const choice of document.querySelectorAll('input[name="group"]')) {
    choice.addEventListener("change", () => go({ group: choice.value, offset: 0 }));
  }
}

/** Search with a picture or video from this computer. */
export function searchWith(file) {
  if (!kindOf(file)) {
    announce(`${file.name} is neither a picture nor a video.`);
    byId("summary").textContent = `${file.name} is neither a picture nor a video: take JPEG, PNG, MP4, MKV and the like.`;
    return;
  }
  const isVideo = kindOf(file) === "video";
  go({ upload: keep(file), like: null, likeSegment: null, q: isVideo ? state().q : "", offset: 0, open: null });
}

/** Show a state in the form. */
export async function showQuery(wanted) {
  const input = byId("query");
  if (document.activeElement !== input || input.value.trim() !== wanted.q) input.value = wanted.q;
  byId(`group-${wanted.group}`).checked = true;
  document.title = wanted.q ? `${wanted.q} · xclip` : "xclip · moments";
  const place = byId("example");
  if (!wanted.upload && !wanted.like) {
    place.hidden = true;
    place.replaceChildren();
    input.placeholder = "What happens in the video?";
    return;
  }
  const name = wanted.upload ? (has(wanted.upload) ? example(wanted.upload).name : "gone") : await nameOf(wanted.like);
  input.placeholder = wanted.upload && has(wanted.upload) && example(wanted.upload).kind === "image" ? "Words start a new search" : "Add words, if you like";
  fill(place, pictureOf(wanted), el("span", { class: "example-name" }, name),
    button(`Stop searching with ${name}`, { symbol: "close", quiet: true, class: "bare", onclick: () => go({ upload: null, like: null, likeSegment: null, open: null, offset: 0 }) }));
  place.hidden = false;
}

/** Return the name of a video for its handle. */
export async function nameOf(handle) {
  if (!names.has(handle)) {
    const name = await ask(`videos/${encodeURIComponent(handle)}`).then((video) => video.name, () => "a removed video");
    names.set(handle, name);
  }
  return names.get(handle);
}

function pictureOf({ upload, like }) {
  if (like) return el("img", { src: addressOf(like, "thumbnail", { start_s: 0, time_s: 0 }), alt: "", width: 48, height: 27 });
  if (!has(upload) || example(upload).kind === "video") return icon("play");
  return el("img", { src: preview(upload), alt: "", width: 48, height: 27 });
}
