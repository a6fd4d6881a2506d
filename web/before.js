// @ts-check
// Inputs that came later: what a workflow means that was saved without them. A new node begins at another value.

/** @typedef {{ input?: { required?: Record<string, unknown>, optional?: Record<string, unknown> } }} Definition */

/**
 * What a node class says of its inputs: {name: value that a workflow without it means}.
 * @param {Definition | undefined} definition
 */
export function meanings(definition) {
  /** @type {Map<string, unknown>} */
  const found = new Map();
  for (const inputs of [definition?.input?.required, definition?.input?.optional]) {
    for (const [name, form] of Object.entries(inputs ?? {})) {
      const options = Array.isArray(form) ? form[1] : undefined;
      if (options && "before" in options) found.set(name, options.before);
    }
  }
  return found;
}

/**
 * Give widgets that a saved node has no value for the one that it meant.
 * @param {Pick<ComfyWidget, "name" | "value" | "serialize">[]} widgets
 * @param {unknown} saved the values of the saved node, in the order of its widgets
 * @param {Map<string, unknown>} meant
 */
export function giveMeanings(widgets, saved, meant) {
  if (!Array.isArray(saved)) return;
  const kept = widgets.filter((widget) => widget.serialize !== false);
  for (const [place, widget] of kept.entries()) {
    if (place >= saved.length && meant.has(widget.name)) widget.value = meant.get(widget.name);
  }
}

/**
 * @param {ComfyNode} node
 * @param {Map<string, unknown> | undefined} meant
 */
export function keepMeaning(node, meant) {
  if (!meant?.size) return;
  const { onConfigure } = node;
  node.onConfigure = function (info, ...rest) {
    onConfigure?.call(this, info, ...rest);
    giveMeanings(node.widgets ?? [], info?.widgets_values, meant);
  };
}
