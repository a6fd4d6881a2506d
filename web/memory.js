// @ts-check
// What nodes showed last, kept in this browser, so that a reloaded page shows it again. Not in the workflow: reports name
// files and captions, and workflows are passed on.

const KEY = "lora_loom.shown";
const MOST = 40; // nodes
const LONGEST = 20_000; // characters of one report

/**
 * @typedef {{text?: string[], images?: unknown[], loom_page?: {run: string, file: string}[]}} Shown
 * @typedef {Pick<Storage, "getItem" | "setItem">} Store
 */

/**
 * @param {Store} store
 * @returns {[string, Shown][]} oldest first
 */
function all(store) {
  try {
    const entries = JSON.parse(store.getItem(KEY) ?? "[]");
    return Array.isArray(entries) ? entries.filter((entry) => Array.isArray(entry) && entry.length === 2) : [];
  } catch {
    return []; // not ours, or damaged: begin again
  }
}

/**
 * @param {Store} store
 * @param {string} node
 * @param {Shown} output
 */
export function remember(store, node, { text, images, loom_page }) {
  const kept = { images, loom_page, text: text?.map((part) => part.slice(0, LONGEST)) };
  const entries = [...all(store).filter(([name]) => name !== node), [node, kept]].slice(-MOST);
  try {
    store.setItem(KEY, JSON.stringify(entries));
  } catch {
    // The browser's room is used up: then a reload shows less.
  }
}

/**
 * @param {Store} store
 * @param {string} node
 * @returns {Shown | undefined}
 */
export const recall = (store, node) => all(store).find(([name]) => name === node)?.[1];
