// @ts-check
// Where a template and a new run's graph open: beside an open sidebar, whole where the window has room, and always readable.

import { app } from "../../scripts/app.js";

/** Below about 0.6 ComfyUI draws no text. */
const READABLE = 0.7;
const MARGIN = 16;
/** ComfyUI's buttons float over the upper edge of the canvas. */
const BUTTONS = 48;
/** What a template carries in its `extra`: it is shown so when it opens, and is a workflow like any other from then on. */
const MARK = "loom_template";

/**
 * @typedef {{left: number, top: number, width: number, height: number}} Box
 */

/**
 * The scale and offset of ComfyUI's canvas that show `whole`, in the graph's pixels, inside of `room`, in the window's. What
 * is larger than the room begins at its left and upper edge.
 * @param {Box} whole
 * @param {Box} room
 * @returns {{scale: number, offset: [number, number]}}
 */
export function placed(whole, room) {
  const scale = Math.min(1, Math.max(READABLE, Math.min(room.width / whole.width, room.height / whole.height)));
  /** @param {number} start @param {number} size @param {number} edge @param {number} place */
  const along = (start, size, edge, place) => (start + Math.max(0, (size - edge * scale) / 2)) / scale - place;
  return {
    scale,
    offset: [along(room.left, room.width, whole.width, whole.left), along(room.top, room.height, whole.height, whole.top)],
  };
}

/**
 * The box around all boxes.
 * @param {[x: number, y: number, width: number, height: number][]} boxes
 * @returns {Box}
 */
export function around(boxes) {
  const left = Math.min(...boxes.map(([x]) => x));
  const top = Math.min(...boxes.map(([, y]) => y));
  const right = Math.max(...boxes.map(([x, , width]) => x + width));
  const bottom = Math.max(...boxes.map(([, y, , height]) => y + height));
  return { left, top, width: right - left, height: bottom - top };
}

/** The part of the canvas that no sidebar covers. */
function room() {
  const canvas = app.canvas.canvas.getBoundingClientRect();
  const free = document.querySelector(".graph-canvas-panel")?.getBoundingClientRect() ?? canvas;
  const tabs = document.querySelector(".workflow-tabs-container")?.getBoundingClientRect();
  const top = Math.max(canvas.top, tabs?.bottom ?? 0) + BUTTONS - canvas.top;
  const left = free.left - canvas.left;
  return { left: left + MARGIN, top, width: free.width - 2 * MARGIN, height: canvas.height - top - MARGIN };
}

/** Show the whole graph, once the page has done what it does to a graph that it opens. */
export function showGraph() {
  requestAnimationFrame(() => requestAnimationFrame(() => {
    const { _nodes: nodes = [], _groups: groups = [] } = app.graph;
    const title = window.LiteGraph?.NODE_TITLE_HEIGHT ?? 30;
    /** @type {[number, number, number, number][]} */
    const boxes = nodes.map(({ pos, size }) => [pos[0], pos[1] - title, size[0], size[1] + title]);
    for (const { pos, size } of groups) boxes.push([pos[0], pos[1], size[0], size[1]]);
    if (!boxes.length) return;
    const { scale, offset } = placed(around(boxes), room());
    const { ds } = app.canvas;
    ds.scale = scale;
    [ds.offset[0], ds.offset[1]] = offset;
    app.graph.setDirtyCanvas?.(true, true);
  }));
}

/** A template of ours that opens is shown so; called for every graph that opens. */
export function showTemplate() {
  const extra = app.graph.extra;
  if (!extra?.[MARK]) return;
  delete extra[MARK];
  showGraph();
}
