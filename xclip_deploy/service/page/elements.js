/** Makes elements. Texts become text nodes, so that nothing in a name or a caption is markup. */

const SVG = "http://www.w3.org/2000/svg";
const ICONS = {
  add: "M12 5v14M5 12h14",
  close: "M6 6l12 12M18 6L6 18",
  cut: "M6 9a3 3 0 1 0 0-6 3 3 0 0 0 0 6zM6 21a3 3 0 1 0 0-6 3 3 0 0 0 0 6zM20 4L8.1 15.9M14.5 14.5L20 20M8.1 8.1L12 12",
  filter: "M3 5h18l-7 8v6l-4-2v-4z",
  image: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15.5 9.5h.01",
  keys: "M3 6h18v12H3zM7 10h.01M11 10h.01M15 10h.01M8 14h8",
  like: "M8 8h12v12H8zM4 16V4h12",
  loop: "M17 2l4 4-4 4M3 11V9a3 3 0 0 1 3-3h15M7 22l-4-4 4-4M21 13v2a3 3 0 0 1-3 3H3",
  next: "M5 5l9 7-9 7zM18 5v14",
  play: "M7 4.5v15l12-7.5z",
  previous: "M19 5l-9 7 9 7zM6 5v14",
  remove: "M4 7h16M9 7V4h6v3M6.5 7l1 13h9l1-13",
  search: "M11 18a7 7 0 1 0 0-14 7 7 0 0 0 0 14zM16 16l5 5",
  why: "M3 4h5v5H3zM9.5 4h5v5h-5zM16 4h5v5h-5zM3 10.5h5v5H3zM9.5 10.5h5v5h-5zM16 10.5h5v5h-5zM3 17h5v3H3zM9.5 17h5v3h-5zM16 17h5v3h-5z",
  within: "M4 4h16v16H4zM9 4v16M15 4v16",
};

/**
 * Make an element.
 *
 * `attributes` that are functions listen to events (`onclick`), `true` is an empty attribute,
 * false and null leave one out. `vars` sets CSS variables, which the page's policy allows.
 */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (name === "vars") setVars(element, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Set CSS variables of an element. */
export function setVars(element, values) {
  for (const [name, value] of Object.entries(values)) element.style.setProperty(`--${name}`, value);
}

/** Draw an icon; it has no name, so the control around it must have one. */
export function icon(name) {
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("viewBox", "0 0 24 24");
  drawing.setAttribute("aria-hidden", "true");
  drawing.setAttribute("class", `icon icon-${name}`);
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  drawing.append(path);
  return drawing;
}

/** Make a button with an icon and words; `quiet` keeps the words for assistive technology. */
export function button(words, { symbol = null, quiet = false, ...attributes } = {}) {
  const label = el("span", { class: quiet ? "unseen" : null }, words);
  const hint = quiet ? { title: words } : {};
  return el("button", { type: "button", ...hint, ...attributes }, symbol && icon(symbol), label);
}

/** Replace everything in an element. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Find an element of the page by id. */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no element ${id}`);
  return found;
}

let pending = 0;

/** Tell assistive technology about a change, such as the number of results. */
export function announce(text) {
  const region = byId("announcements");
  region.textContent = "";
  clearTimeout(pending);
  pending = setTimeout(() => {
    region.textContent = text;
  }, 60);
}
