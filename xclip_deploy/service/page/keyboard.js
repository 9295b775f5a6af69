/** Keys of the whole page. */

import { state } from "./address.js";
import { showKeys } from "./dialogs.js";
import { byId } from "./elements.js";
import { isFilterOpen, setOpen } from "./filterform.js";

const FRAME_S = 1 / 25;

/** Listen to keys. `stage` is the player, `move(step)` goes along the list. */
export function listenToKeys(stage, move) {
  addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    if (byId("dialog").open) return;
    if (event.key === "Escape") {
      escape(event, stage);
      return;
    }
    if (isTyping(event.target)) return;
    const act = {
      "/": () => byId("query").select(),
      "?": showKeys,
      " ": () => space(event, stage),
      "[": () => move(-1),
      "]": () => move(1),
      ",": () => stage.isOpen && stage.step(-FRAME_S),
      ".": () => stage.isOpen && stage.step(FRAME_S),
      w: () => stage.isOpen && stage.openEvidence(),
      ArrowLeft: () => between(event, -1, 0),
      ArrowRight: () => between(event, 1, 0),
      ArrowUp: () => between(event, 0, -1),
      ArrowDown: () => between(event, 0, 1),
    }[event.key];
    if (!act) return;
    if (event.key === "/") {
      event.preventDefault();
      byId("query").focus();
    }
    act();
  });
}

function escape(event, stage) {
  if (isFilterOpen()) setOpen(false, { returnFocus: true });
  else if (stage.isOpen) stage.shut();
  else if (event.target === byId("query")) byId("query").blur();
}

function space(event, stage) {
  if (!stage.isOpen) return;
  const control = event.target.closest("button, a, summary, [role=gridcell], video, input");
  // A card's picture stands for its moment; once that is open, space means the player.
  const isOpenCard = control?.classList.contains("play-button") && control.closest(".card")?.classList.contains("is-open");
  if (control && !isOpenCard) return;
  event.preventDefault();
  stage.toggle();
}

function isTyping(target) {
  return Boolean(target.closest?.("input:not([type=radio]):not([type=checkbox]), textarea, select, [contenteditable]"));
}

/** Move the focus between cards, by rows and columns as they are on the screen. */
function between(event, right, down) {
  const card = event.target.closest?.(".card");
  const cards = [...document.querySelectorAll(".card")];
  if (!cards.length || (event.target !== document.body && event.target !== byId("list") && !card)) return;
  event.preventDefault();
  const next = card ? neighbour(cards, card, right, down) : cards[0];
  next?.querySelector("button:not(:disabled)")?.focus();
  next?.scrollIntoView({ block: "nearest" });
}

function neighbour(cards, card, right, down) {
  const place = cards.indexOf(card);
  if (right) return cards[place + right];
  const { left, top } = card.getBoundingClientRect();
  const rows = cards
    .map((each) => ({ each, box: each.getBoundingClientRect() }))
    .filter(({ box }) => (down > 0 ? box.top > top + 4 : box.top < top - 4));
  if (!rows.length) return null;
  const nearest = rows.reduce((best, { box }) => (down > 0 ? Math.min(best, box.top) : Math.max(best, box.top)), down > 0 ? Infinity : -Infinity);
  const row = rows.filter(({ box }) => Math.abs(box.top - nearest) < 4);
  row.sort((a, b) => Math.abs(a.box.left - left) - Math.abs(b.box.left - left));
  return row[0].each;
}

/** Mark the card of the open moment. */
export function markOpenCard() {
  const { open } = state();
  for (const card of document.querySelectorAll(".card")) {
    const isVideo = open && card.dataset.handle === open.handle;
    const isSame = isVideo && (card.dataset.start === undefined || document.querySelectorAll(`.card[data-handle="${CSS.escape(open.handle)}"]`).length === 1 || Math.abs(Number(card.dataset.start) - open.startS) < 2e-3);
    card.classList.toggle("is-open", Boolean(isSame));
  }
}
