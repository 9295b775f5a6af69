/** Times as texts, and texts as times. All times are seconds from a video's start. */

/**
 * Write a time as `m:ss.d` or `h:mm:ss.d`.
 *
 * The time is cut off, not rounded: a label never names a frame that is still to come.
 */
export function clock(seconds, digits = 1) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "?";
  const scale = 10 ** digits;
  const units = Math.floor(Math.max(0, seconds) * scale + 1e-6);
  const whole = Math.floor(units / scale);
  const rest = digits ? "." + String(units % scale).padStart(digits, "0") : "";
  const second = String(whole % 60).padStart(2, "0") + rest;
  const minute = Math.floor(whole / 60) % 60;
  const hour = Math.floor(whole / 3600);
  return hour ? `${hour}:${String(minute).padStart(2, "0")}:${second}` : `${minute}:${second}`;
}

/** Write a range of times; one whose end is not known is open. */
export function clockRange(startS, endS, digits = 1) {
  if (endS === null || endS === undefined) return `from ${clock(startS, digits)}`;
  return `${clock(startS, digits)} – ${clock(endS, digits)}`;
}

/** Read `12.5`, `1:02.5` or `1:02:03.5`. Returns null for anything else. */
export function parseTime(text) {
  const trimmed = String(text).trim().replace(/\s*s$/, "");
  if (!/^(\d+:){0,2}\d+([.,]\d*)?$/.test(trimmed)) return null;
  const parts = trimmed.replace(",", ".").split(":").map(Number);
  if (parts.slice(1).some((part) => part >= 60)) return null;
  return parts.reduce((total, part) => total * 60 + part, 0);
}

/** Write a length of time for people, such as `2 h 5 min` or `4.2 s`. */
export function lengthText(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "length unknown";
  if (seconds < 59.95) return `${Number(seconds.toFixed(1))} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) {
    const rest = Math.round(seconds) % 60;
    return rest ? `${Math.floor(Math.round(seconds) / 60)} min ${rest} s` : `${minutes} min`;
  }
  return minutes % 60 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : `${minutes / 60} h`;
}

/** Write a size for people, such as `3.4 MB`. */
export function sizeText(bytes) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let size = bytes;
  let unit = 0;
  while (size >= 1000 && unit < units.length - 1) {
    size /= 1000;
    unit += 1;
  }
  return unit ? `${size.toFixed(size < 10 ? 1 : 0)} ${units[unit]}` : `${size} bytes`;
}

/** Write a number of things: `1 video`, `1,204 videos`. */
export function countText(count, one, many = one + "s") {
  return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}
