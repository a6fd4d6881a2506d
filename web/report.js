// @ts-check
// Shows a node's "text" output in a box under the node. Texts go in as text.

import { t } from "./texts.js";

const REPORTING = new Set(["LoomCache", "LoomScore", "LoomLoraInspect", "LoomLoraResize", "LoomLoraMerge", "LoomLoraConvert", "LoomLoraExtract", "LoomLoraMergeBase"]);
const HEIGHT = 140;

/** @param {ComfyNode} node */
function makeBox(node) {
  const box = document.createElement("pre");
  box.className = "loom-report";
  box.tabIndex = 0; // it scrolls
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", t("Report"));
  const widget = node.addDOMWidget("loom_report", "loom_report", box, {
    serialize: false,
    hideOnZoom: false,
    hideInPanel: true, // ComfyUI's own side panel would show an empty row, and take our width for its own
    getMinHeight: () => HEIGHT,
    getMaxHeight: () => 3 * HEIGHT,
  });
  widget.serialize = false;
  node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
  return box;
}

/**
 * A report's table, which is not wrapped, and its sentences, which are. The table ends at the first empty line.
 * @param {string} text
 * @param {boolean} hasTable
 * @returns {[table: string, sentences: string]}
 */
export function split(text, hasTable) {
  const end = hasTable ? Math.max(text.indexOf("\n\n"), 0) : 0;
  return [text.slice(0, end), text.slice(end)];
}

/**
 * @param {HTMLElement} box
 * @param {string} text
 * @param {boolean} hasTable
 */
function show(box, text, hasTable) {
  const [columns, sentences] = split(text, hasTable);
  const table = document.createElement("span");
  table.className = "loom-table";
  table.textContent = columns;
  box.replaceChildren(table, sentences);
}

/**
 * A node that reports gets a box at its first report; the box holds the last one.
 * @param {ComfyNode} node
 */
export function listenToReports(node) {
  if (!REPORTING.has(node.comfyClass)) return;
  const { onExecuted } = node;
  /** @type {HTMLElement | null} */
  let box = null;
  node.onExecuted = function (output, ...rest) {
    onExecuted?.call(this, output, ...rest);
    if (!output?.text?.length) return;
    box ??= makeBox(node);
    show(box, output.text.join("\n"), node.comfyClass === "LoomScore");
  };
}
