// @ts-check
// Captions of a dataset: their tags, and changes of all of them. Pure functions.

/**
 * How many captions have each tag, the most frequent first.
 * @param {string[]} captions
 * @returns {[tag: string, count: number][]}
 */
export function tagCounts(captions) {
  /** @type {Map<string, number>} */
  const counts = new Map();
  for (const caption of captions) for (const tag of new Set(tags(caption))) counts.set(tag, (counts.get(tag) ?? 0) + 1);
  return [...counts].sort(([a, m], [b, n]) => n - m || (a < b ? -1 : 1));
}

/** @param {string} caption */
const tags = (caption) => caption.split(/[,\n]/).map((tag) => tag.trim()).filter(Boolean);

/**
 * The captions in which a text was found, with another in its place.
 * @template {{caption: string}} Image
 * @param {Image[]} images
 * @param {string} find
 * @param {string} to
 * @returns {{image: Image, caption: string}[]}
 */
export const replaced = (images, find, to) =>
  find ? images.filter(({ caption }) => caption.includes(find)).map((image) => ({ image, caption: image.caption.split(find).join(to) })) : [];

/**
 * The images whose name or caption has a text.
 * @template {{name: string, caption: string}} Image
 * @param {Image[]} images
 * @param {string} text
 */
export function matching(images, text) {
  const wanted = text.toLowerCase();
  return images.filter(({ name, caption }) => name.toLowerCase().includes(wanted) || caption.toLowerCase().includes(wanted));
}
