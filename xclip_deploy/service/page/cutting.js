/** Cuts a moment out of its video and downloads it. */

import { addressOf, inWords, send } from "./api.js";
import { button, el, fill } from "./elements.js";
import { clock, clockRange, parseTime, sizeText } from "./times.js";

/**
 * Draw the form that cuts {handle, name, startS, endS, durationS}.
 *
 * `timeOf()` returns the player's time; `onTime(seconds)` shows a time in the player.
 */
export function cutForm(root, moment, { timeOf, onTime }) {
  const last = moment.durationS ?? Infinity;
  const start = timeField("cut-start", "Start", moment.startS, "Start at the player's time");
  const end = timeField("cut-end", "End", moment.endS ?? Math.min(last, moment.startS + 10), "End at the player's time");
  const outcome = el("p", { class: "note", role: "status" });
  const submit = button("Cut and download", { symbol: "cut", type: "submit", class: "primary" });
  const modes = [
    mode("exact", "Exact", "encoded anew, right to one frame", true),
    mode("copy", "Copy", "not encoded: fast, lossless, begins at the key frame before", false),
  ];
  const form = el("form", { class: "cut-form", novalidate: true, onsubmit: cut },
    el("div", { class: "cut-times" }, start.root, end.root),
    el("fieldset", { class: "modes" }, el("legend", {}, "How"), modes),
    submit, outcome);
  fill(root, form);

  function timeField(id, words, seconds, here) {
    const input = el("input", { id, type: "text", inputmode: "decimal", autocomplete: "off", value: clock(seconds, 2), spellcheck: "false" });
    const nudge = (step) => {
      const now = parseTime(input.value) ?? seconds;
      const next = Math.min(last, Math.max(0, now + step));
      input.value = clock(next, 2);
      onTime(next);
    };
    const less = button(`${words} 0.1 s earlier`, { quiet: true, class: "step", onclick: () => nudge(-0.1) });
    const more = button(`${words} 0.1 s later`, { quiet: true, class: "step", onclick: () => nudge(0.1) });
    less.append("−");
    more.append("+");
    const take = button(here, {
      quiet: true, class: "step wide", onclick: () => {
        input.value = clock(timeOf(), 2);
      },
    });
    take.append("here");
    return { input, root: el("div", { class: "time-field" }, el("label", { for: id }, words), el("div", { class: "joined" }, less, input, more, take)) };
  }

  async function cut(event) {
    event.preventDefault();
    const [from, to] = [parseTime(start.input.value), parseTime(end.input.value)];
    const fault = faultIn(from, to, last);
    start.input.setAttribute("aria-invalid", String(from === null));
    end.input.setAttribute("aria-invalid", String(to === null || Boolean(fault && from !== null)));
    if (fault) {
      tell(fault, "error");
      (from === null ? start : end).input.focus();
      return;
    }
    const way = new FormData(form).get("mode");
    submit.disabled = true;
    tell("Cutting…", "busy");
    try {
      const response = await send(addressOf(moment.handle, "cut", { start_s: from, end_s: to, mode: way }));
      const content = await response.blob();
      save(content, fileName(response) ?? `${moment.name}-${clock(from).replaceAll(":", ".")}.mp4`);
      report(response, content.size);
    } catch (error) {
      tell(inWords(error), "error");
    } finally {
      submit.disabled = false;
    }
  }

  function report(response, size) {
    const header = (name) => response.headers.get(name);
    const actual = header("X-Start-S") === null ? "" : ` It holds ${clockRange(Number(header("X-Start-S")), Number(header("X-End-S")), 2)}`;
    const sound = header("X-Has-Sound") === null ? "" : header("X-Has-Sound") === "true" ? ", with sound" : ", without sound";
    fill(outcome, `Downloaded ${sizeText(size)}.${actual}${actual ? sound + "." : ""}`, warningsIn(header("X-Warnings")).map((text) => el("span", { class: "warning" }, ` ${text}`)));
    outcome.className = "note done";
  }

  function tell(text, kind) {
    outcome.textContent = text;
    outcome.className = `note ${kind}`;
  }
}

/** Say what is wrong with two ends; null where nothing is. */
export function faultIn(from, to, last) {
  if (from === null || to === null) return "Give times such as 12.5 or 1:02.5.";
  if (to <= from) return "The end must come after the start.";
  if (from >= last) return `The video ends at ${clock(last, 2)}.`;
  return null;
}

function mode(value, words, meaning, isChosen) {
  const id = `cut-${value}`;
  return el("div", { class: "mode" }, el("input", { type: "radio", name: "mode", id, value, checked: isChosen }),
    el("label", { for: id }, words, el("small", {}, ` ${meaning}`)));
}

function warningsIn(header) {
  if (!header) return [];
  try {
    const found = JSON.parse(header);
    return Array.isArray(found) ? found.map(String) : [String(found)];
  } catch {
    return [header];
  }
}

function fileName(response) {
  const given = response.headers.get("Content-Disposition") ?? "";
  const encoded = /filename\*=(?:utf-8'')?([^;]+)/i.exec(given);
  if (encoded) return decodeURIComponent(encoded[1].replace(/^"|"$/g, ""));
  return /filename="([^"]+)"/i.exec(given)?.[1] ?? null;
}

function save(content, name) {
  const address = URL.createObjectURL(content);
  const link = el("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}
