// @ts-check
// A Loom Strip that drew a run's sweep gets a button: its compare page opens in another tab.

import { fileUrl } from "./client.js";
import { t } from "./texts.js";

const NODE = "LoomStrip";

/**
 * @param {string} run
 * @param {string} file inside the run's folder
 */
export const openPage = (run, file) => window.open(fileUrl(run, file), "_blank", "noopener");

/** @param {ComfyNode} node */
export function listenToStrips(node) {
  if (node.comfyClass !== NODE) return;
  const { onExecuted } = node;
  /** @type {{run: string, file: string} | undefined} */
  let page;
  /** @type {ComfyWidget | undefined} */
  let button;
  node.onExecuted = function (output, ...rest) {
    onExecuted?.call(this, output, ...rest);
    page = output?.loom_page?.[0] ?? page;
    if (!page || button) return;
    button = node.addWidget("button", t("Open compare page"), null, () => page && openPage(page.run, page.file), { serialize: false });
    button.serialize = false;
  };
}
