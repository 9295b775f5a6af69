/** Adding videos: dropped on the page, chosen, or by a path of the server. */

import { ask, inWords, refusalFrom, ServiceError } from "./api.js";
import { openDialog } from "./dialogs.js";
import { button, byId, el, icon } from "./elements.js";
import { kindOf, videosAmong } from "./examples.js";
import { gallery } from "./gallery.js";
import { searchWith } from "./queryform.js";
import { countText, sizeText } from "./times.js";

/** Lets people add videos. `jobs` shows what comes of it. */
export class Adding {
  constructor(jobs) {
    this.jobs = jobs;
    this.picker = el("input", { type: "file", multiple: true, accept: "video/*,.mkv,.mov,.avi,.webm,.mp4,.ts", class: "unseen", tabindex: "-1", "aria-hidden": "true", id: "add-files" });
    this.picker.addEventListener("change", () => {
      const chosen = [...this.picker.files];
      this.picker.value = "";
      if (chosen.length) this.confirm(chosen);
    });
    document.body.append(this.picker);
    this.#catchDrops();
  }

  choose() {
    this.picker.click();
  }

  /** Show the chosen files and ask for metadata, then upload them. */
  async confirm(files) {
    const videos = videosAmong(files);
    const others = files.length - videos.length;
    const size = videos.reduce((sum, file) => sum + file.size, 0);
    const answer = await openDialog("Add videos", (close) => {
      const fields = el("div", { class: "metadata-rows" });
      const list = el("ul", { class: "files" }, videos.slice(0, 100).map((file) => el("li", {}, el("span", {}, file.name), el("small", { class: "number" }, sizeText(file.size)))));
      const fault = el("p", { class: "note error", role: "alert", hidden: true });
      return el("form", { method: "dialog", onsubmit: (event) => {
        event.preventDefault();
        try {
          close({ metadata: readMetadata(fields, gallery()?.metadata ?? {}) });
        } catch (error) {
          fault.textContent = `${error.message}.`;
          fault.hidden = false;
        }
      } },
      el("p", {}, videos.length ? `${countText(videos.length, "video")}, ${sizeText(size)}.` : "None of these files is a video that the page knows.", others ? ` ${countText(others, "other file")} will be left out.` : ""),
      list,
      videos.length > 0 && el("details", {}, el("summary", {}, "Metadata, to filter by later"), fields,
        button("Add a field", { symbol: "add", onclick: () => {
          fields.append(metadataRow());
          fields.lastElementChild.querySelector("input").focus();
        } })),
      fault,
      el("div", { class: "dialog-actions" }, button("Cancel", { onclick: () => close() }),
        videos.length > 0 && el("button", { type: "submit", class: "primary", autofocus: true }, "Add")));
    });
    if (answer) this.#upload(videos, answer.metadata);
  }

  /** Ask for folders or files of the server. */
  async paths() {
    const given = await openDialog("Add a folder of the server", (close) => {
      const input = el("textarea", { id: "paths", rows: 3, spellcheck: "false", required: true, autofocus: true, "aria-describedby": "paths-hint" });
      return el("form", { method: "dialog", onsubmit: (event) => {
        event.preventDefault();
        const paths = input.value.split("\n").map((path) => path.trim()).filter(Boolean);
        if (paths.length) close(paths);
      } },
      el("label", { for: "paths" }, "Folders or files, one a line"), input,
      el("p", { class: "hint", id: "paths-hint" }, "They must lie below the folders that the service was started with. Videos that are there unchanged are not read again."),
      el("div", { class: "dialog-actions" }, button("Cancel", { onclick: () => close() }), el("button", { type: "submit", class: "primary" }, "Add")));
    });
    if (!given) return;
    try {
      this.jobs.take(await ask("index", { method: "POST", json: { paths: given } }));
    } catch (error) {
      this.jobs.tellFault(given.join(", "), inWords(error));
    }
  }

  #upload(files, metadata) {
    const form = new FormData();
    form.append("options", JSON.stringify(Object.keys(metadata).length ? { metadata } : {}));
    for (const file of files) form.append("files", file, file.name);
    const title = files.length === 1 ? files[0].name : countText(files.length, "video");
    const request = new XMLHttpRequest();
    const entry = this.jobs.beginUpload(title, () => request.abort());
    request.upload.addEventListener("progress", (event) => entry.progress(event.loaded, event.total));
    request.addEventListener("load", () => {
      entry.end();
      if (request.status === 202) this.jobs.take(JSON.parse(request.responseText));
      else this.jobs.tellFault(title, inWords(refusalFrom(request.status, request.responseText, request.getResponseHeader("Retry-After"))));
    });
    request.addEventListener("error", () => {
      entry.end();
      this.jobs.tellFault(title, `The upload broke off. ${inWords(new ServiceError(""))} Add the files again then.`);
    });
    request.addEventListener("abort", () => entry.end());
    request.open("POST", "/api/v1/videos");
    request.send(form);
  }

  #catchDrops() {
    const overlay = byId("drop");
    const [toSearch, toAdd] = [byId("drop-search"), byId("drop-add")];
    toSearch.prepend(icon("image"));
    toAdd.prepend(icon("add"));
    let depth = 0;
    const hide = () => {
      depth = 0;
      overlay.hidden = true;
    };
    const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
    addEventListener("dragenter", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      depth += 1;
      toAdd.hidden = gallery() !== null && !gallery().can_upload;
      overlay.hidden = false;
    });
    addEventListener("dragleave", () => {
      depth -= 1;
      if (depth <= 0) hide();
    });
    addEventListener("dragover", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      for (const target of [toSearch, toAdd]) target.classList.toggle("is-over", target.contains(event.target));
    });
    addEventListener("drop", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      hide();
      const files = [...event.dataTransfer.files];
      if (!files.length) return;
      // A single picture can only be searched with; several files can only be added.
      const isQuery = toSearch.contains(event.target) || (files.length === 1 && kindOf(files[0]) === "image");
      if (isQuery) searchWith(files[0]);
      else if (!toAdd.hidden) this.confirm(files);
    });
  }
}

let rowCount = 0;

function metadataRow() {
  rowCount += 1;
  const list = el("datalist", { id: `fields-${rowCount}` }, Object.keys(gallery()?.metadata ?? {}).map((name) => el("option", { value: name })));
  const row = el("div", { class: "filter-row" },
    el("input", { type: "text", "aria-label": "Name of the field", placeholder: "source", list: list.id, autocomplete: "off" }), list,
    el("input", { type: "text", "aria-label": "Value", placeholder: "cam1", autocomplete: "off" }),
    button("Take this field away", { symbol: "close", quiet: true, class: "bare", onclick: () => row.remove() }));
  return row;
}

/** Read metadata from rows, each value as the kind that its field has. Throws an Error. */
export function readMetadata(rows, kinds) {
  const metadata = {};
  for (const row of rows.children) {
    const [name, value] = [...row.querySelectorAll("input")].map((input) => input.value.trim());
    if (!name && !value) continue;
    if (!/^[A-Za-z][A-Za-z0-9_]{0,63}$/.test(name)) throw new Error(`“${name}” is no name of a field: take letters, digits and _`);
    metadata[name] = typed(name, value, kinds[name] ?? "texts");
  }
  return metadata;
}

function typed(name, value, kind) {
  if (kind === "truth values") {
    if (/^(true|yes|1)$/i.test(value)) return true;
    if (/^(false|no|0)$/i.test(value)) return false;
    throw new Error(`${name} is true or false, not “${value}”`);
  }
  if (kind === "texts") return value;
  const number = Number(value);
  if (!value || !Number.isFinite(number)) throw new Error(`${name} is a number, not “${value}”`);
  if (kind === "whole numbers" && !Number.isInteger(number)) throw new Error(`${name} is a whole number, not “${value}”`);
  return number;
}
