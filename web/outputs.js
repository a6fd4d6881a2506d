// @ts-check
// Nodes that show something show it again after the page was reloaded.

import { app } from "../../scripts/app.js";
import { recall, remember } from "./memory.js";

const SHOWING = new Set(["LoomCache", "LoomScore", "LoomStrip"]);

/**
 * A node's name in this browser: that of its graph and its own. Older frontends have no name for a graph; then nothing is kept.
 * @param {ComfyNode} node
 */
function keyOf(node) {
  const graph = node.graph?.rootGraph?.id ?? node.graph?.id;
  return graph ? `${graph}/${node.graph?.id ?? ""}/${node.id}` : "";
}

/**
 * After everything else that listens to the node's outputs: what is recalled goes the same way as what was new.
 * @param {ComfyNode} node
 */
export function keepOutputs(node) {
  if (!SHOWING.has(node.comfyClass)) return;
  const { onExecuted, onConfigure } = node;
  node.onExecuted = function (output, ...rest) {
    onExecuted?.call(this, output, ...rest);
    const key = keyOf(node);
    if (key && output) remember(localStorage, key, output);
  };
  node.onConfigure = function (...values) {
    onConfigure?.apply(this, values);
    setTimeout(() => restore(node, onExecuted), 0); // its graph has its name only when it is whole
  };
}

/**
 * @param {ComfyNode} node
 * @param {ComfyNode["onExecuted"]} show
 */
function restore(node, show) {
  const key = keyOf(node);
  const output = key ? recall(localStorage, key) : undefined;
  if (!output || app.nodeOutputs?.[String(node.id)]) return;
  if (output.images && app.nodeOutputs) app.nodeOutputs[String(node.id)] = { images: output.images };
  show?.call(node, output);
}
