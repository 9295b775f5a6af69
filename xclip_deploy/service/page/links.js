/**
 * The address of a state of the page.
 *
 * A state holds the query, its options and the open moment. `readAddress` and `writeAddress` are
 * inverse to each other, so that a link, a reload and the back button all restore it.
 */

export const DEFAULTS = Object.freeze({
  q: "",
  like: null, // handle of a video that hits resemble
  likeSegment: null, // segment of that video; null for the whole
  upload: null, // number of a picture or video that was dropped; it lives as long as the page
  weight: 0.5, // weight of the video beside the text
  group: "video",
  k: 24,
  offset: 0,
  within: null,
  fromS: null,
  toS: null,
  minConfidence: null,
  deduplicate: false,
  filters: Object.freeze([]), // {field, op, value}
  where: "", // the expert's expression
  open: null, // {handle, startS, endS, segment}
});

const NUMBERS = { ls: "likeSegment", w: "weight", k: "k", offset: "offset", from: "fromS", to: "toS", conf: "minConfidence" };
const TEXTS = { q: "q", like: "like", upload: "upload", within: "within", where: "where" };

const LIMITS = {
  likeSegment: [0, 1e6],
  weight: [0, 1],
  k: [1, 1000],
  offset: [0, 100000],
  fromS: [0, 1e9],
  toS: [0, 1e9],
  minConfidence: [0, 1],
};

/** Read a state from the part of an address behind `?`. What is not understood is left out. */
export function readAddress(search) {
  const given = new URLSearchParams(search);
  const state = { ...DEFAULTS };
  for (const [name, field] of Object.entries(TEXTS)) {
    if (given.get(name)) state[field] = given.get(name);
  }
  for (const [name, field] of Object.entries(NUMBERS)) {
    const value = number(given.get(name));
    const [least, most] = LIMITS[field];
    if (value !== null && value >= least && value <= most) state[field] = value;
  }
  state.k = Math.round(state.k);
  state.offset = Math.round(state.offset);
  if (given.get("group") === "moment") state.group = "moment";
  if (given.get("dedup") === "1") state.deduplicate = true;
  state.filters = given.getAll("f").map(readFilter).filter(Boolean);
  const handle = given.get("v");
  if (handle) {
    state.open = {
      handle,
      startS: number(given.get("t")) ?? 0,
      endS: number(given.get("e")),
      segment: number(given.get("s")),
    };
  }
  return state;
}

/** Write a state as an address, from the root. Fields with their default are left out. */
export function writeAddress(state) {
  const given = new URLSearchParams();
  for (const [name, field] of Object.entries({ ...TEXTS, ...NUMBERS })) {
    if (state[field] !== DEFAULTS[field] && state[field] !== null) given.set(name, state[field]);
  }
  if (state.group !== DEFAULTS.group) given.set("group", state.group);
  if (state.deduplicate) given.set("dedup", "1");
  for (const { field, op, value } of state.filters) given.append("f", `${field}~${op}~${value}`);
  if (state.open) {
    given.set("v", state.open.handle);
    given.set("t", rounded(state.open.startS));
    if (state.open.endS !== null) given.set("e", rounded(state.open.endS));
    if (state.open.segment !== null) given.set("s", state.open.segment);
  }
  const text = given.toString();
  return text ? `/?${text}` : "/";
}

/** Whether a state asks for something, rather than for the list of all videos. */
export function isSearch(state) {
  return Boolean(state.q.trim() || state.like || state.upload);
}

/** Return what decides the list on the page: states with equal keys show the same list. */
export function listKey(state) {
  return writeAddress({ ...state, open: null });
}

/** Return the fields of a search request that the state sets, apart from its query. */
export function searchFields(state, where) {
  const fields = { k: state.k, group: state.group, per_video: 5 };
  if (state.offset) fields.offset = state.offset;
  if (where) fields.where = where;
  if (state.within) fields.within = state.within;
  if (state.fromS !== null) fields.from_s = state.fromS;
  if (state.toS !== null) fields.to_s = state.toS;
  if (state.deduplicate) fields.deduplicate = true;
  if (state.minConfidence !== null) fields.min_confidence = state.minConfidence;
  fields.confidence = true;
  return fields;
}

function number(text) {
  if (text === null || text.trim() === "") return null;
  const value = Number(text);
  return Number.isFinite(value) ? value : null;
}

function rounded(seconds) {
  return String(Math.round(seconds * 1000) / 1000);
}

function readFilter(text) {
  const [field, op, ...value] = text.split("~");
  return field && op ? { field, op, value: value.join("~") } : null;
}
