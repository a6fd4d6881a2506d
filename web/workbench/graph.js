// @ts-check
// What the workbench does to the graph on ComfyUI's canvas: open that of a run, add a loader with a LoRA file.

import { app } from "../../../scripts/app.js";
import { fetchGraph } from "./requests.js";

/** @typedef {import("./requests.js").Graph} Graph */

const LOADER = "LoraLoaderModelOnly";

/**
 * A run's graph with another name in its LoomTrain. Everything else stays.
 * @param {Graph} graph
 * @param {string} node id of the LoomTrain
 * @param {string} name
 * @returns {Graph}
 */
export function withName(graph, node, name) {
  const train = graph[node];
  return train ? { ...graph, [node]: { ...train, inputs: { ...train.inputs, name } } } : graph;
}

/**
 * Open the graph that started a run, in a workflow tab of its own. Throws if the run has kept none.
 * @param {string} run
 * @param {string} [name] for LoomTrain, to train a copy
 */
export async function openGraph(run, name = run) {
  const kept = await fetchGraph(run);
  if (!kept) throw new Error(`${run} has kept no graph: it was trained from the command line, or by an older version`);
  await app.loadApiJson?.(withName(kept.prompt, kept.node, name), name);
}

/**
 * Add a loader with a LoRA file in the middle of the canvas, and choose it.
 * @param {string} lora its name, as the loader lists it
 */
export async function addLoader(lora) {
  const { LiteGraph } = window;
  const node = LiteGraph?.createNode?.(LOADER);
  if (!node) throw new Error(`this ComfyUI has no ${LOADER}`);
  await app.refreshComboInNodes?.(); // the file may be newer than the page
  const { ds, canvas } = app.canvas;
  const sharp = window.devicePixelRatio || 1;
  node.pos = [canvas.width / sharp / 2 / ds.scale - ds.offset[0] - 150, canvas.height / sharp / 2 / ds.scale - ds.offset[1] - 50];
  app.graph.add(node);
  const widget = node.widgets?.find((one) => one.name === "lora_name");
  if (widget) widget.value = lora;
  app.canvas.selectNode?.(node);
  node.setDirtyCanvas?.(true, true);
}
