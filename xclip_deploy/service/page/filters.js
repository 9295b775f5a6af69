/** Filters over metadata: rows of a form as an expression of the service's filter language. */

const OWN = { duration_s: "decimal numbers" };
const KEYWORDS = new Set(
  "and between false ilike in is like not null or true".split(" "),
);

const COMPARISONS = [
  ["eq", "is", "="],
  ["ne", "is not", "<>"],
  ["lt", "below", "<"],
  ["le", "at most", "<="],
  ["gt", "above", ">"],
  ["ge", "at least", ">="],
];

const BY_KIND = {
  texts: [
    ["eq", "is"],
    ["ne", "is not"],
    ["has", "contains"],
    ["in", "is one of (comma)"],
  ],
  "truth values": [
    ["yes", "is true"],
    ["no", "is false"],
  ],
};
const ALWAYS = [
  ["some", "is given"],
  ["none", "is missing"],
];

/** Operators that take no value. */
export const WITHOUT_VALUE = new Set(["yes", "no", "some", "none"]);

/** Return every field that a filter can name, with the kind of its values. */
export function fieldsOf(metadata) {
  return { ...metadata, ...OWN };
}

/** Return the operators for a kind of values: pairs of a name and its words. */
export function operatorsFor(kind) {
  const own = BY_KIND[kind] ?? COMPARISONS.map(([name, words]) => [name, words]);
  return [...own, ...ALWAYS];
}

/**
 * Return the expression of one filter.
 *
 * Throws an Error whose message says what is wrong with the value, for people.
 */
export function condition({ field, op, value }, kind) {
  const name = quotedName(field);
  if (op === "some") return `${name} is not null`;
  if (op === "none") return `${name} is null`;
  if (op === "yes") return `${name} = true`;
  if (op === "no") return `${name} = false`;
  if (kind === "texts") return textCondition(name, field, op, value);
  const sign = COMPARISONS.find(([each]) => each === op)?.[2];
  if (!sign) throw new Error(`${field}: choose how to compare`);
  const number = String(value).trim().replace(",", ".");
  if (!/^-?\d+(\.\d+)?(e[-+]?\d+)?$/i.test(number)) {
    throw new Error(`${field}: “${value}” is no number`);
  }
  if (kind === "whole numbers" && !/^-?\d+$/.test(number)) {
    throw new Error(`${field}: “${value}” is no whole number`);
  }
  return `${name} ${sign} ${number}`;
}

/** Join filters and the expert's expression; null where there is neither. Throws an Error. */
export function whereOf(filters, expert, metadata) {
  const kinds = fieldsOf(metadata);
  const parts = filters.map((filter) => condition(filter, kinds[filter.field] ?? "texts"));
  if (expert.trim()) parts.push(parts.length ? `(${expert.trim()})` : expert.trim());
  return parts.length ? parts.join(" and ") : null;
}

/** Say a filter in words. */
export function filterText({ field, op, value }, metadata) {
  const kind = fieldsOf(metadata)[field] ?? "texts";
  const words = operatorsFor(kind).find(([name]) => name === op)?.[1] ?? op;
  return WITHOUT_VALUE.has(op) ? `${field} ${words}` : `${field} ${words.replace(" (comma)", "")} ${value}`;
}

function textCondition(name, field, op, value) {
  const text = String(value).trim();
  if (!text) throw new Error(`${field}: give a text`);
  if (op === "eq") return `${name} = ${quoted(text)}`;
  if (op === "ne") return `${name} <> ${quoted(text)}`;
  if (op === "has") {
    const literal = text.replace(/[\\%_]/g, (sign) => `\\${sign}`);
    return `${name} ilike ${quoted(`%${literal}%`)}`;
  }
  if (op === "in") {
    const values = text.split(",").map((each) => each.trim()).filter(Boolean);
    if (!values.length) throw new Error(`${field}: give texts between commas`);
    return `${name} in (${values.map(quoted).join(", ")})`;
  }
  throw new Error(`${field}: choose how to compare`);
}

function quoted(text) {
  return `'${text.replace(/'/g, "''")}'`;
}

function quotedName(field) {
  return KEYWORDS.has(field.toLowerCase()) ? `"${field}"` : field;
}
