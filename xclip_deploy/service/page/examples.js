/** Pictures and videos that were given to search by. They live as long as the page. */

import { ServiceError } from "./api.js";

const PICTURES = /\.(avif|bmp|gif|jpe?g|png|tiff?|webp)$/i;
const VIDEOS = /\.(3gp|asf|avi|flv|m2ts|m4v|mkv|mov|mp4|mpe?g|mts|mxf|ogv|ts|vob|webm|wmv)$/i;
const files = new Map();
let count = 0;

/** Return `image`, `video` or null for what the page can do nothing with. */
export function kindOf(file) {
  if (file.type.startsWith("image/") || PICTURES.test(file.name)) return "image";
  if (file.type.startsWith("video/") || VIDEOS.test(file.name)) return "video";
  return null;
}

/** Keep a file to search by and return its name in the address. */
export function keep(file) {
  count += 1;
  // The time tells the files of this page from those of an earlier one with the same numbers.
  const name = `${Date.now().toString(36)}-${count}`;
  file.kind = kindOf(file);
  files.set(name, file);
  return name;
}

/** Whether a file is still there. */
export function has(name) {
  return files.has(name);
}

/** Return a file by its name. Throws a ServiceError if an earlier page had it. */
export function example(name) {
  const file = files.get(name);
  if (file) return file;
  throw new ServiceError("the picture or video that was searched with is no longer in this page; drop it again", {
    kind: "Forgotten", status: 400,
  });
}

/** Return an address that shows a kept picture or video. */
export function preview(name) {
  return URL.createObjectURL(example(name));
}

/** Return whether files hold a video; only videos can be added. */
export function videosAmong(list) {
  return [...list].filter((file) => kindOf(file) === "video");
}
