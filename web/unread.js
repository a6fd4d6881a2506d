// @ts-check
// Greys and folds a number while a choice next to it says that it comes from elsewhere.

import { refold } from "./fold.js";

/** @type {Record<string, [choice: string, number: string][]>} by node class */
const NUMBERS = { LoomTrain: [["rate", "learning_rate"], ["length", "steps"], ["average", "ema"]] };
const STAYS = new Set(["ema"]); // among the advanced inputs, read or not
const READ = "value"; // the choice with which the number counts

/**
 * Before its advanced inputs are folded.
 * @param {ComfyNode} node
 */
export function greyUnread(node) {
  const widgets = new Map(node.widgets?.map((widget) => [widget.name, widget]));
  for (const [choice, number] of NUMBERS[node.comfyClass] ?? []) {
    const [chooser, unread] = [widgets.get(choice), widgets.get(number)];
    if (!chooser || !unread) continue;
    const grey = () => {
      unread.disabled = chooser.value !== READ;
      if (unread.options && !STAYS.has(number)) unread.options.advanced = unread.disabled;
    };
    const { callback } = chooser;
    chooser.callback = function (...values) {
      const answer = callback?.apply(this, values);
      grey();
      refold.get(node)?.();
      return answer;
    };
    const { onConfigure } = node;
    node.onConfigure = function (...values) {
      onConfigure?.apply(this, values);
      grey();
    };
    grey();
  }
}
