// @ts-check
// Colours of our links, one for each socket type: data green to blue, a run and what comes of it orange to violet, settings muted.

import { app } from "../../scripts/app.js";

/** @type {Record<string, string>} */
export const WIRES = {
  LOOM_DATASET: "#6fbf73",
  LOOM_CACHE: "#3fa7b5",
  LOOM_RUN: "#e0a030",
  LOOM_CHECKPOINTS: "#d9825b",
  LOOM_SHEET: "#c46fb0",
  LOOM_GUIDANCE: "#9a86e0",
  LOOM_NETWORK: "#7aa2f7",
  LOOM_OPTIMIZER: "#5fb3a1",
  LOOM_OBJECTIVE: "#c0a35e",
  LOOM_MEMORY: "#8fa3ad",
  LOOM_VALIDATION: "#b5c95a",
  LOOM_BASE_LORA: "#d97b93",
};
const AFTER_MS = 300; // a palette has been laid over the canvas by then

/** Give links and slots their colours. A palette of ComfyUI empties those that it does not know: then they are given again. */
export function paintWires() {
  const { canvas } = app;
  for (const colours of [canvas?.constructor?.link_type_colors, canvas?.default_connection_color_byType]) {
    for (const [type, colour] of Object.entries(WIRES)) if (colours && !colours[type]) colours[type] = colour;
  }
  app.graph?.setDirtyCanvas?.(true, true);
}

/** Now, and whenever ComfyUI's palette changes. Nodes 2.0 read a variable of the style sheet, which no palette takes away. */
export function keepWiresPainted() {
  const style = document.createElement("style");
  style.textContent = `:root { ${Object.entries(WIRES).map(([type, colour]) => `--color-datatype-${type}: ${colour};`).join(" ")} }`;
  document.head.append(style);
  paintWires();
  app.ui?.settings?.addEventListener?.("Comfy.ColorPalette.change", () => setTimeout(paintWires, AFTER_MS));
}
