/** The panel of filters and options, and the chips that show which are set. */

import { go, state } from "./address.js";
import { button, byId, el, fill, icon } from "./elements.js";
import { condition, fieldsOf, filterText, operatorsFor, WITHOUT_VALUE } from "./filters.js";
import { metadataKinds, valuesOf } from "./gallery.js";
import { nameOf } from "./queryform.js";
import { clock, parseTime } from "./times.js";

const CLEARED = { filters: [], where: "", within: null, fromS: null, toS: null, minConfidence: null, deduplicate: false, offset: 0 };

/** Wire the button that opens the panel. */
export function filterForm() {
  const toggle = byId("filter-toggle");
  toggle.append(icon("filter"), el("span", {}, "Filters"));
  toggle.addEventListener("click", () => setOpen(byId("filter-panel").hidden));
}

/** Whether the panel is open. */
export function isFilterOpen() {
  return !byId("filter-panel").hidden;
}

/** Open or close the panel; closed by Esc, the focus returns to its button. */
export function setOpen(isOpen, { returnFocus = false } = {}) {
  const panel = byId("filter-panel");
  panel.hidden = !isOpen;
  byId("filter-toggle").setAttribute("aria-expanded", String(isOpen));
  if (isOpen) {
    draw(panel);
    panel.querySelector("select, input")?.focus();
  } else if (returnFocus) byId("filter-toggle").focus();
}

/** Show the filters of a state as chips. */
export async function showChips(wanted) {
  const chips = wanted.filters.map((filter, n) => [
    filterText(filter, metadataKinds()), { filters: wanted.filters.filter((_, other) => other !== n) },
  ]);
  if (wanted.where) chips.push([wanted.where, { where: "" }]);
  if (wanted.within) chips.push([`only in ${await nameOf(wanted.within)}`, { within: null, fromS: null, toS: null }]);
  if (wanted.fromS !== null) chips.push([`after ${clock(wanted.fromS)}`, { fromS: null }]);
  if (wanted.toS !== null) chips.push([`before ${clock(wanted.toS)}`, { toS: null }]);
  if (wanted.minConfidence !== null) chips.push([`confidence ≥ ${Math.round(wanted.minConfidence * 100)} %`, { minConfidence: null }]);
  if (wanted.deduplicate) chips.push(["without near copies", { deduplicate: false }]);
  fill(byId("chips"), chips.map(([text, without]) =>
    el("li", { class: "chip" }, el("span", {}, text), button(`Take away: ${text}`, { symbol: "close", quiet: true, class: "bare", onclick: () => {
      go({ ...without, offset: 0, open: null });
      byId("filter-toggle").focus();
    } }))));
  byId("chips").hidden = !chips.length;
  byId("filter-toggle").classList.toggle("is-set", chips.length > 0);
}

function draw(panel) {
  const wanted = state();
  const rows = el("div", { class: "filter-rows" });
  const addRow = (filter) => rows.append(filterRow(filter));
  wanted.filters.forEach(addRow);
  const fault = el("p", { class: "note error", role: "alert", hidden: true });
  const from = timeInput("filter-from", "Moments after", wanted.fromS);
  const to = timeInput("filter-to", "Moments before", wanted.toS);
  const least = el("input", { id: "filter-confidence", type: "number", min: 0, max: 100, step: 5, inputmode: "numeric", value: wanted.minConfidence === null ? "" : Math.round(wanted.minConfidence * 100), placeholder: "any" });
  const hits = el("input", { id: "filter-k", type: "number", min: 1, max: 1000, value: wanted.k });
  const weight = el("input", { id: "filter-weight", type: "number", min: 0, max: 100, step: 10, value: Math.round(wanted.weight * 100) });
  const hasBoth = Boolean(wanted.like && wanted.q.trim());
  const near = el("input", { id: "filter-near", type: "checkbox", checked: wanted.deduplicate });
  const where = el("input", { id: "filter-where", type: "text", value: wanted.where, spellcheck: "false", autocomplete: "off", placeholder: "duration_s < 30 and source = 'cam1'", maxlength: 4000 });

  const apply = (event) => {
    event.preventDefault();
    try {
      const filters = [...rows.children].map((row) => row.read()).filter(({ field }) => field);
      const kinds = fieldsOf(metadataKinds());
      filters.forEach((filter) => condition(filter, kinds[filter.field]));
      const confidence = least.value === "" ? null : Math.min(1, Math.max(0, Number(least.value) / 100));
      const k = Math.min(1000, Math.max(1, Math.round(Number(hits.value) || 24)));
      fault.hidden = true;
      go({ filters, where: where.value.trim(), fromS: from.read(), toS: to.read(), minConfidence: confidence, deduplicate: near.checked, k, ...(hasBoth ? { weight: Math.min(1, Math.max(0, Number(weight.value) / 100)) } : {}), offset: 0, open: null });
      setOpen(false, { returnFocus: true });
    } catch (error) {
      fault.textContent = `${error.message}.`;
      fault.hidden = false;
    }
  };
  fill(panel, el("form", { class: "filter-form", novalidate: true, onsubmit: apply },
    el("fieldset", {}, el("legend", {}, "Metadata"), rows, button("Add a condition", { symbol: "add", onclick: () => {
      addRow({ field: Object.keys(fieldsOf(metadataKinds()))[0], op: null, value: "" });
      rows.lastElementChild.querySelector("select").focus();
    } })),
    el("fieldset", { class: "plain-options" }, el("legend", {}, "Search"),
      labelled(from.input, "Moments after"), labelled(to.input, "Moments before"),
      labelled(least, "Least confidence, %"), labelled(hits, "Hits"),
      hasBoth && labelled(weight, "Weight of the video beside the words, %"),
      el("div", { class: "check" }, near, el("label", { for: "filter-near" }, "Leave out near copies"))),
    el("details", { class: "expert", open: Boolean(wanted.where) }, el("summary", {}, "Expression"),
      labelled(where, "Condition in the filter language"),
      el("p", { class: "hint" }, "Columns, =, <>, <, >, in, between, like, is null; and, or, not.")),
    fault,
    el("div", { class: "dialog-actions" },
      button("Clear all", { onclick: () => {
        go({ ...CLEARED, open: null });
        setOpen(false, { returnFocus: true });
      } }),
      el("button", { type: "submit", class: "primary" }, "Apply"))));
  if (!rows.childElementCount) addRow({ field: Object.keys(fieldsOf(metadataKinds()))[0], op: null, value: "", isBlank: true });
}

let rowCount = 0;

function filterRow({ field, op, value }) {
  rowCount += 1;
  const kinds = fieldsOf(metadataKinds());
  const names = Object.keys(kinds);
  if (field && !names.includes(field)) names.push(field);
  const list = el("datalist", { id: `values-${rowCount}` });
  const fields = el("select", { "aria-label": "Field" }, el("option", { value: "" }, "no condition"), names.map((name) => el("option", { value: name, selected: name === field && op !== null }, name)));
  const operators = el("select", { "aria-label": "Comparison" });
  const input = el("input", { type: "text", "aria-label": "Value", list: list.id, value, autocomplete: "off" });
  const row = el("div", { class: "filter-row" }, fields, operators, input, list,
    button("Take this condition away", { symbol: "close", quiet: true, class: "bare", onclick: () => row.remove() }));
  const showOperators = (chosen) => {
    fill(operators, operatorsFor(kinds[fields.value] ?? "texts").map(([name, words]) => el("option", { value: name, selected: name === chosen }, words)));
    operators.disabled = !fields.value;
    showInput();
    if (fields.value) valuesOf(fields.value).then((known) => fill(list, known.map((each) => el("option", { value: each }))));
  };
  const showInput = () => {
    input.hidden = !fields.value || WITHOUT_VALUE.has(operators.value);
    input.inputMode = (kinds[fields.value] ?? "texts").includes("numbers") ? "decimal" : "text";
  };
  fields.addEventListener("change", () => showOperators(null));
  operators.addEventListener("change", showInput);
  showOperators(op);
  // A row without a field is no condition.
  row.read = () => ({ field: fields.value, op: operators.value, value: input.value.trim() });
  return row;
}

function labelled(input, words) {
  return el("div", { class: "labelled" }, el("label", { for: input.id }, words), input);
}

function timeInput(id, words, seconds) {
  const input = el("input", { id, type: "text", inputmode: "decimal", autocomplete: "off", placeholder: "0:00", value: seconds === null ? "" : clock(seconds) });
  const read = () => {
    if (!input.value.trim()) return null;
    const time = parseTime(input.value);
    if (time === null) throw new Error(`${words}: “${input.value}” is no time such as 1:02.5`);
    return time;
  };
  return { input, read };
}
