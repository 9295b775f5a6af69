/** Puts the page together. */

import { restart, state, watch } from "./address.js";
import { Adding } from "./adding.js";
import { ask, configure, inWords } from "./api.js";
import { openingOf, rangeOf } from "./cards.js";
import { lookForServer, onReturn } from "./connection.js";
import { hasSession, logIn, logOut, showKeys } from "./dialogs.js";
import { button, byId } from "./elements.js";
import { filterForm, showChips } from "./filterform.js";
import { gallery, loadGallery } from "./gallery.js";
import { Jobs } from "./jobs.js";
import { listenToKeys, markOpenCard } from "./keyboard.js";
import { Library } from "./library.js";
import { isSearch, listKey } from "./links.js";
import { queryForm, showQuery } from "./queryform.js";
import { Results } from "./results.js";
import { Stage } from "./stage.js";

configure({ logIn, onSilence: () => lookForServer({ isRequest: true }) });

const results = new Results({
  onPlay: (opening, options) => stage.play(opening, options),
  onShown: () => {
    markOpenCard();
    stage.refresh();
  },
});
const stage = new Stage({ findHit: (handle, opening) => results.find(handle, opening), onMove: move });
const jobs = new Jobs({ onDone: reload, onFind: showVideos });
const adding = new Adding(jobs);
const library = new Library({
  onPlay: (opening) => stage.play(opening), onAdd: () => adding.choose(), onAddPaths: () => adding.paths(), onChange: reload,
});

/** Show the list that the address asks for. */
async function showList({ again = false } = {}) {
  if (isSearch(state())) {
    library.stop();
    await results.show();
  } else {
    results.stop();
    await library.show({ again });
    markOpenCard();
  }
}

/** Load again what a change of the gallery may have changed. */
async function reload() {
  results.forget();
  await loadGallery().catch(() => {});
  if (!isSearch(state())) await showList({ again: true });
}

/** Go along the list's moments with the player. */
function move(step) {
  const hits = results.hits.filter((hit) => hit.has_media);
  if (!hits.length) return;
  const { open } = state();
  const place = open ? hits.indexOf(results.find(open.handle, open)) : -1;
  const next = hits[place + step];
  if (!next) return;
  stage.play(openingOf(next.handle, { ...rangeOf(next), segment: next.segment }));
  document.querySelector(`.card[data-handle="${CSS.escape(next.handle)}"][data-start="${rangeOf(next).start_s}"]`)?.scrollIntoView({ block: "nearest" });
}

async function showVideos(job) {
  restart({});
  await library.show({ again: true });
  if (job.videos.length === 1) {
    const video = await ask(`videos/${encodeURIComponent(job.videos[0])}`).catch(() => null);
    if (video) stage.play({ handle: video.handle, startS: 0, endS: null, segment: null });
  }
}

queryForm();
filterForm();
listenToKeys(stage, move);
byId("top-actions").append(
  button("Add videos", { symbol: "add", id: "add", onclick: () => adding.choose() }),
  button("Keys", { symbol: "keys", quiet: true, class: "bare", id: "keys", onclick: showKeys }),
);
byId("home").addEventListener("click", (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  restart({});
});

watch((next, before, { isSame }) => {
  markOpenCard();
  if (isSame && next.open) return;
  if (isSame) results.forget(); // the same question once more asks the server
  if (listKey(next) === listKey(before) && !isSame) return;
  showQuery(next);
  showChips(next);
  showList();
  if (!next.open) scrollTo({ top: 0 });
});

onReturn(() => {
  results.forget();
  jobs.start();
  loadGallery().catch(() => {});
  showList({ again: true });
});

async function begin() {
  try {
    await loadGallery();
  } catch (error) {
    byId("summary").textContent = inWords(error);
  }
  byId("add").hidden = gallery() !== null && !gallery().can_upload;
  showQuery(state());
  showChips(state());
  await showList();
  if (state().open) stage.restore();
  if (hasSession()) byId("top-actions").append(button("Log out", { class: "bare", onclick: logOut }));
  jobs.start();
  document.documentElement.dataset.ready = "true";
}

begin();
