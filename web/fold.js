// @ts-check
// Folds the inputs that a node marks as advanced, behind a button. ComfyUI's newer renderer does so by itself; on the
// canvas it only hides what is asked for. An advanced input with another value than its default stays in sight.

import { t } from "./texts.js";

const ROW = 24; // height of a widget on the canvas, in its own pixels
/** Fold anew, when it has changed which inputs are advanced. @type {WeakMap<object, () => void>} */
export const refold = new WeakMap();
/** @returns {[number, number]} what takes no room: a frontend adds 4 pixels to each */
const NO_ROOM = () => [0, -4];
const MARK = "loom_folded"; // a node saved without it has the height of all its widgets

/**
 * The advanced widgets that may be hidden: those at their defaults, and those that are not read.
 * @param {Pick<ComfyWidget, "name" | "value" | "options" | "disabled">[]} widgets
 * @param {Map<string, unknown>} defaults
 */
export const foldable = (widgets, defaults) => widgets.filter((widget) => widget.options?.advanced && (widget.disabled || widget.value === defaults.get(widget.name)));

/** ComfyUI draws nodes by its newer renderer, which folds by itself and has a button of its own. */
const isVue = () => Boolean(window.LiteGraph?.vueNodesMode);

/**
 * The page may change its renderer while the node is open, so all is made for both.
 * @param {ComfyNode} node
 */
export function foldAdvanced(node) {
  const all = (node.widgets ?? []).filter((widget) => widget.options?.advanced);
  if (!all.length) return;
  const defaults = new Map(all.map((widget) => [widget.name, widget.value]));
  const tall = node.computeSize()[1];
  const isOld = !node.getLayoutWidgets; // it leaves room for hidden widgets, unless they say that they need none
  const sizes = new Map(all.map((widget) => [widget, Object.hasOwn(widget, "computeSize") ? widget.computeSize : undefined]));
  /** @type {Set<ComfyWidget>} */
  let folded = new Set();
  fold();
  if (node.computeSize()[1] >= tall) return; // this frontend cannot hide them
  let wasVue = isVue();
  // It leaves room for all of them, though it draws some; and newer frontends say of one that only the canvas shows that it is advanced.
  node.getLayoutWidgets = () => {
    if (wasVue !== isVue()) label();
    wasVue = isVue();
    return (node.widgets ?? []).filter((widget) => !widget.hidden && (!folded.has(widget) || node.showAdvanced));
  };
  const button = node.addWidget("button", "", null, () => toggle(!node.showAdvanced), { serialize: false });
  button.serialize = false;
  const hidden = { get: isVue, set: () => {}, configurable: true, enumerable: true };
  for (const place of [button, button.options ?? {}]) Object.defineProperty(place, "hidden", hidden);

  function fold() {
    const linked = new Set(node.inputs?.filter((input) => input.link != null).map((input) => input.name));
    // The newer renderer hides them by their options, and leaves room for them unless they are marked.
    const hidden = isVue() ? all.filter((widget) => widget.options?.advanced) : foldable(all, defaults).filter((widget) => !linked.has(widget.name));
    folded = new Set(hidden);
    for (const widget of all) widget.advanced = folded.has(widget);
    for (const [widget, size] of isOld ? sizes : []) {
      if (folded.has(widget) && !node.showAdvanced) widget.computeSize = NO_ROOM;
      else if (size) widget.computeSize = size;
      else delete widget.computeSize;
    }
  }

  /** @param {boolean} open */
  function toggle(open) {
    resized(() => {
      node.showAdvanced = open;
      label();
    });
  }
  function label() {
    fold();
    button.label = node.showAdvanced ? t("Hide advanced inputs") : t("Show {n} advanced inputs", { n: folded.size });
  }

  /** @param {() => void} change */
  function resized(change) {
    const before = node.computeSize()[1];
    change();
    if (!isVue()) node.setSize([node.size[0], node.size[1] + node.computeSize()[1] - before]);
  }

  label();
  refold.set(node, () => resized(label));
  const { onConfigure } = node;
  node.onConfigure = function (info, ...rest) {
    onConfigure?.call(this, info, ...rest);
    label();
    if (!isVue() && !info?.properties?.[MARK]) shorten();
  };
  if (isVue()) return; // it gives the node its size
  node.setSize([node.size[0], node.computeSize()[1]]);
  node.properties[MARK] = true;

  function shorten() {
    node.properties[MARK] = true;
    const rows = all.filter((widget) => widget.advanced).length - 1; // one for the button
    node.setSize([node.size[0], Math.max(node.size[1] - rows * ROW, node.computeSize()[1])]);
  }
}
