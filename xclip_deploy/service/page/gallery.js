/** What the gallery holds, as the header, the filters and the empty state need it. */

import { ask } from "./api.js";

let latest = null;

/** Return the summary that was loaded last; null before the first. */
export function gallery() {
  return latest;
}

/** Return the kinds of the metadata fields. */
export function metadataKinds() {
  return latest?.metadata ?? {};
}

/** Load the summary anew. Throws a ServiceError. */
export async function loadGallery() {
  latest = await ask("gallery");
  return latest;
}

const values = new Map();

/** Return values that a metadata field has in the first videos, for suggestions. */
export async function valuesOf(field) {
  if (!values.size) {
    const { videos } = await ask("videos?limit=500").catch(() => ({ videos: [] }));
    for (const video of videos) {
      for (const [name, value] of Object.entries(video.metadata)) {
        if (!values.has(name)) values.set(name, new Set());
        if (values.get(name).size < 50) values.get(name).add(String(value));
      }
    }
    setTimeout(() => values.clear(), 60_000);
  }
  return [...(values.get(field) ?? [])].sort();
}
