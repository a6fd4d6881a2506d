// @ts-check
// What the workbench does to the graph on ComfyUI's canvas: open that of a run, add a loader with a LoRA file.

import { app } from "../../../scripts/app.js";
import { showGraph } from "../view.js";
import { fetchGraph } from "./requests.js";
import { t } from "../texts.js";

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
  if (!kept) throw new Error(t("{name} has kept no graph: it was trained from the command line, or by an older version", { name: run }));
  await app.loadApiJson?.(withName(kept.prompt, kept.node, name), name);
}

/**
 * Put the graph of a new run on the canvas, in a workflow tab of its own, laid out in columns.
 * @param {import("./requests.js").NewGraph} made
 * @param {{folder: string, names: string[]}} images that were uploaded just now
 * @param {boolean} isQueued
 */
export async function openNewGraph({ graph, places, groups, name }, images, isQueued) {
  await app.loadApiJson?.(graph, name);
  for (const node of app.graph._nodes ?? []) {
    const place = places[String(node.id)];
    if (!place) continue;
    node.pos = [place[0], place[1]];
    node.setSize([place[2], Math.max(place[3], node.computeSize()[1])]);
  }
  if (images.names.length) nodesOf("LoomDataset")[0]?.setProperty?.("loom_images", images);
  for (const [title, [x, y, width, height]] of Object.entries(groups)) {
    const group = window.LiteGraph?.LGraphGroup && new window.LiteGraph.LGraphGroup(title);
    if (!group) break;
    Object.assign(group, { pos: [x, y], size: [width, height], color: "#3f789e" });
    app.graph.add(group);
  }
  showGraph();
  if (isQueued) await app.queuePrompt?.(0);
}

/** @param {string} kind a node class @returns {ComfyNode[]} */
const nodesOf = (kind) => (app.graph._nodes ?? []).filter((node) => node.comfyClass === kind || node.type === kind);

/**
 * @param {ComfyNode} node
 * @param {string} name of a widget
 * @param {unknown} value
 */
function set(node, name, value) {
  const widget = node.widgets?.find((one) => one.name === name);
  if (!widget) return;
  widget.value = value;
  widget.callback?.(value);
}

/** The resolution of the graph's Loom Cache; 1024 without one. */
export function graphResolution() {
  const value = Number(nodesOf("LoomCache")[0]?.widgets?.find((one) => one.name === "resolution")?.value);
  return Number.isInteger(value) && value >= 16 ? value : 1024;
}

/**
 * Let the Loom Dataset that is selected, or the first one, use a folder; without one it is added.
 * @param {string} folder
 */
export function useFolder(folder) {
  const all = nodesOf("LoomDataset");
  const node = all.find((one) => one.selected) ?? all[0] ?? addNode("LoomDataset");
  set(node, "folder", folder);
  app.canvas.selectNode?.(node);
  node.setDirtyCanvas?.(true, true);
}

/**
 * Add a loader with a LoRA file in the middle of the canvas, and choose it.
 * @param {string} lora its name, as the loader lists it
 */
export async function addLoader(lora) {
  await app.refreshComboInNodes?.(); // the file may be newer than the page
  const node = addNode(LOADER);
  set(node, "lora_name", lora);
  app.canvas.selectNode?.(node);
  node.setDirtyCanvas?.(true, true);
}

/**
 * A new node in the middle of the canvas. Throws if this ComfyUI has none of its class.
 * @param {string} kind
 */
function addNode(kind) {
  const node = window.LiteGraph?.createNode?.(kind);
  if (!node) throw new Error(t("this ComfyUI has no {kind}", { kind }));
  const { ds, canvas } = app.canvas;
  const sharp = window.devicePixelRatio || 1;
  node.pos = [canvas.width / sharp / 2 / ds.scale - ds.offset[0] - 150, canvas.height / sharp / 2 / ds.scale - ds.offset[1] - 50];
  app.graph.add(node);
  return node;
}
