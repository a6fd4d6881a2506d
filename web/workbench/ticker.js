// @ts-check
// The run that trains now in ComfyUI's top bar: how far it is, whatever workflow is open. A click opens it.

import { app } from "../../../scripts/app.js";
import { make } from "../elements.js";
import { duration } from "../format.js";
import { STATES } from "../runs.js";
import { t } from "../texts.js";

/** @typedef {import("../runs.js").Run} Run */

/**
 * "my-lora 42 %, 12 min left"
 * @param {Run} run
 * @param {number} others that are active as well
 * @param {boolean} [isOffline] the server cannot be reached
 */
export function tickerText(run, others, isOffline) {
  if (isOffline) return t("{name}: no connection", { name: run.name ?? "" });
  const share = run.total ? `${Math.floor((100 * (run.step ?? 0)) / run.total)} %` : "";
  const what = run.state === "running" ? share : `${share} ${STATES[/** @type {keyof typeof STATES} */ (run.state)] ?? ""}`.trim();
  const left = run.state === "running" && run.eta ? t(", {time} left", { time: duration(run.eta) }) : "";
  return `${run.name} ${what}${left}${others > 0 ? ` (+${others})` : ""}`;
}

/**
 * @param {import("./workbench.js").Workbench} bench
 * @param {(name: string) => void} open
 */
export function addTicker(bench, open) {
  const button = make("button", "loom-ticker", null);
  button.type = "button";
  button.title = t("The run that trains now. Click to open it.");
  button.hidden = true;
  button.addEventListener("click", () => open(bench.current?.name ?? ""));
  const text = make("span", "", button);
  const fill = make("span", "loom-fill", make("span", "loom-bar", button));
  const place = app.menu?.settingsGroup?.element ?? app.menu?.element;
  if (place?.parentElement) place.before(button);
  else place?.append(button);
  return (/** @type {boolean} */ isWanted) => {
    const run = isWanted ? bench.current : undefined;
    button.hidden = !run;
    if (!run) return;
    const { active, isOffline } = bench.list;
    button.dataset.state = isOffline ? "offline" : run.state;
    text.textContent = tickerText(run, active.length - 1, isOffline);
    fill.style.width = `${run.total ? (100 * (run.step ?? 0)) / run.total : 0}%`;
  };
}
