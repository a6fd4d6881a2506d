// @ts-check
// What a run has left: its LoRA files, with their names for LoraLoader and for download, and its compare page.

import { fileUrl } from "./client.js";
import { copied } from "./clipboard.js";
import { make, makeButton, makeLink } from "./elements.js";
import { t } from "./texts.js";

/** @typedef {import("./runs.js").RunView} RunView */

/**
 * Rebuild the rows, if there is anything else to show than before.
 * @param {HTMLElement} root
 * @param {RunView} view
 */
export function showResults(root, view) {
  const { name, results } = view;
  const page = view.run?.pages?.at(-1);
  root.hidden = !results.length && !page;
  const content = JSON.stringify([name, results, page]);
  if (root.dataset.content === content) return; // a new row would lose the focus
  root.dataset.content = content;
  root.replaceChildren();
  for (const result of results) {
    const row = make("div", "loom-result", root);
    make("span", "loom-name", row, result.name).title = t("{label}, as Load LoRA lists it (press R in ComfyUI to list new files)", { label: result.label });
    const copy = makeButton(row, t("Copy name"), t("Copy the name, as Load LoRA lists it."), async () => {
      copy.textContent = (await copied(result.name)) ? t("Copied") : t("Not copied: no permission");
    });
    makeLink(row, t("Download"), fileUrl(name, result.file)).setAttribute("aria-label", t("Download {name}", { name: result.name }));
  }
  if (page) makeLink(make("div", "loom-result", root), t("Open compare page"), fileUrl(name, page));
}
