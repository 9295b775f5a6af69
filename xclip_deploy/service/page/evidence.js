/** The evidence of a score: frames against words as a heat map, and the words' parts of it. */

import { addressOf, ask, inWords } from "./api.js";
import { button, el, fill, setVars } from "./elements.js";
import { clock } from "./times.js";

export const GRAINS = [
  ["video_sentence", "video–sentence", "the whole video against the whole sentence"],
  ["video_word", "video–word", "the whole video against each word"],
  ["frame_sentence", "frame–sentence", "each frame against the whole sentence"],
  ["frame_word", "frame–word", "each frame against each word"],
];

/**
 * Fetch and draw the evidence of a moment.
 *
 * `onTime(seconds)` is called for a click on a cell or a frame.
 */
export async function showEvidence(root, { query, handle, segment }, { onTime, onShown, signal }) {
  fill(root, el("p", { class: "note busy" }, "Working out the evidence…"));
  try {
    const json = { query, hit: { video: handle, segment } };
    const answer = await ask("explain", { method: "POST", json, signal, again: true });
    fill(root, drawing(explanationIn(answer), handle, onTime));
    onShown?.();
  } catch (error) {
    if (error.name === "AbortError") return;
    const retry = button("Try again", { onclick: () => showEvidence(root, { query, handle, segment }, { onTime, onShown, signal }) });
    fill(root, el("p", { class: "note error", role: "alert" }, inWords(error)), retry);
  }
}

/** Return what the page needs of the service's answer. */
export function explanationIn(answer) {
  const { explanation } = answer;
  const words = explanation.words.map((word, row) => ({ ...word, row })).filter(({ kind }) => kind === "word");
  const frames = explanation.frames.map((frame, column) => ({ ...frame, column })).filter(({ time_s: time }) => time !== null);
  return { ...explanation, words, frames };
}

function drawing(explanation, handle, onTime) {
  const readout = el("p", { class: "readout" }, "Point at a cell to see its value. A click jumps to the frame.");
  return [
    verdict(explanation),
    map(explanation, handle, onTime, readout),
    readout,
    el("div", { class: "scale", "aria-hidden": "true" }, el("span", {}, "unlike"), el("span", { class: "scale-bar" }), el("span", {}, "alike")),
    points(explanation),
  ];
}

function verdict({ missing_words: missing, words }) {
  if (!missing.length) {
    return el("p", { class: "verdict" }, words.length === 1 ? "The word has a part in the score." : "Every word has a part in the score.");
  }
  const names = missing.flatMap((word, n) => [n ? ", " : "", el("strong", {}, `“${word}”`)]);
  return el("p", { class: "verdict is-missing" }, missing.length === 1 ? "Without " : "Without any one of ", names, " the score would be as high or higher.");
}

function map({ words, frames, similarity: values, query }, handle, onTime, readout) {
  const seen = words.flatMap(({ row }) => frames.map(({ column }) => values[row][column]));
  const sorted = seen.toSorted((a, b) => a - b);
  // The lowest tenth shares one colour: a single low value would hide the others' differences.
  const [least, most] = [sorted[Math.floor(sorted.length / 10)], sorted.at(-1)];
  const heat = (value) => (most > least ? Math.max(0, (value - least) / (most - least)) : 0.5);
  const largest = Math.max(...words.map(({ contribution }) => Math.abs(contribution)), 1e-9);
  const tell = (cell) => {
    readout.textContent = cell.getAttribute("aria-label");
  };

  const cellOf = (word, frame) => {
    const value = values[word.row][frame.column];
    const cell = el("td", {
      role: "gridcell", class: "cell", tabindex: "-1", vars: { heat: heat(value).toFixed(3) },
      "aria-label": `“${word.text}” at ${clock(frame.time_s)}: similarity ${signed(value, 3)}`,
      onclick: () => onTime(frame.time_s),
      onpointerenter: () => tell(cell),
      onfocus: () => tell(cell),
    });
    return cell;
  };
  const head = el("tr", { role: "row" },
    el("th", { role: "columnheader", scope: "col", class: "corner" }, el("span", { class: "unseen" }, "Word")),
    frames.map((frame) => el("th", { role: "columnheader", scope: "col" }, frameButton(frame, handle, onTime))),
    el("th", { role: "columnheader", scope: "col", class: "points-head" }, "points"),
  );
  const rows = words.map((word) =>
    el("tr", { role: "row", class: word.is_missing ? "is-missing" : null },
      el("th", { role: "rowheader", scope: "row" }, word.text),
      frames.map((frame) => cellOf(word, frame)),
      el("td", { role: "gridcell", class: "points-cell", vars: { part: Math.abs(word.contribution) / largest } },
        el("span", { class: word.contribution < 0 ? "points-bar is-less" : "points-bar" }),
        el("span", { class: "number" }, signed(word.contribution))),
    ),
  );
  const table = el("table", {
    class: "heat-map", role: "grid", "aria-label": `Similarity of each word of “${query}” to each frame`, onkeydown: (event) => moveCell(event, table),
  }, el("thead", { role: "rowgroup" }, head), el("tbody", { role: "rowgroup" }, rows));
  table.querySelector(".cell")?.setAttribute("tabindex", "0");
  return el("div", { class: "heat-frame" }, table);
}

function frameButton(frame, handle, onTime) {
  const picture = el("img", {
    src: addressOf(handle, "frame", { time_s: frame.time_s, max_side: 128 }), alt: "", loading: "lazy", width: 64, height: 36,
  });
  picture.addEventListener("error", () => picture.classList.add("is-gone"), { once: true });
  return el("button", {
    type: "button", class: "frame-button", title: `Jump to ${clock(frame.time_s)}`, onclick: () => onTime(frame.time_s),
  }, picture, el("span", { class: "number" }, clock(frame.time_s)));
}

function moveCell(event, table) {
  const cell = event.target.closest(".cell");
  if (!cell) return;
  const row = cell.parentElement;
  const place = [...row.children].indexOf(cell);
  const next = {
    ArrowLeft: cell.previousElementSibling,
    ArrowRight: cell.nextElementSibling,
    ArrowUp: row.previousElementSibling?.children[place],
    ArrowDown: row.nextElementSibling?.children[place],
    Home: row.querySelector(".cell"),
    End: [...row.querySelectorAll(".cell")].at(-1),
  }[event.key];
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    event.stopPropagation();
    cell.click();
    return;
  }
  if (next === undefined) return;
  event.preventDefault();
  event.stopPropagation();
  if (!next?.classList.contains("cell")) return;
  table.querySelector('.cell[tabindex="0"]')?.setAttribute("tabindex", "-1");
  next.setAttribute("tabindex", "0");
  next.focus();
}

function points({ points: parts, score }) {
  const given = GRAINS.filter(([name]) => parts[name] !== undefined && parts[name] !== null);
  const most = Math.max(...given.map(([name]) => Math.abs(parts[name])), 1e-9);
  const bars = given.map(([name, words, meaning]) => {
    const bar = el("span", { class: `bar grain-${name}` });
    setVars(bar, { part: Math.max(0, parts[name] / most) });
    return el("div", { class: "point-row", title: meaning }, el("dt", {}, words), el("dd", {}, bar, el("span", { class: "number" }, signed(parts[name]))));
  });
  return el("section", { class: "points" }, el("h3", {}, `Score ${score.toFixed(2)}, by what was compared`), el("dl", {}, bars));
}

function signed(value, digits = 2) {
  return value < 0 ? `−${Math.abs(value).toFixed(digits)}` : value.toFixed(digits);
}
