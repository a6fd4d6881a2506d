// @ts-check
// What can be done with one run, as buttons: which of them there are depends on its state.

import { fileUrl } from "../client.js";
import { copied } from "../clipboard.js";
import { make, makeButton, makeLink } from "../elements.js";
import { isActive } from "../runs.js";
import { askChoice, askText } from "./dialogs.js";
import { openGraph } from "./graph.js";
import { fetchSettings, move, remove, rename } from "./requests.js";
import { copyName } from "./run_list.js";
import { t } from "../texts.js";

/**
 * @typedef {import("../runs.js").Run} Run
 * @typedef {import("./workbench.js").Workbench} Workbench
 */

const CAN_CONTINUE = new Set(["failed", "stopped", "interrupted"]);

/**
 * @param {HTMLElement} parent
 * @param {Workbench} bench
 * @param {Run} run
 */
export function makeRunMenu(parent, bench, run) {
  const row = make("div", "loom-menu", parent);
  const { state = "", name = "" } = run;
  /** @param {string} label @param {string} hint @param {() => Promise<unknown>} work @param {() => boolean} [waits] for what comes after it */
  const button = (label, hint, work, waits = () => false) => {
    const made = makeButton(row, label, hint, async () => {
      made.disabled = true;
      await bench.trying(work);
      made.disabled = waits();
    });
    return made;
  };
  /** @param {string} label @param {string} hint @param {string} action */
  const ask = (label, hint, action) => button(label, hint, () => bench.ask(name, action), () => bench.wish?.action === action); // then the buttons are others
  if (isActive(state)) {
    if (state === "paused") ask(t("Resume"), t("Go on from where it stands"), "resume");
    else ask(t("Pause"), t("Finish the step in flight, then hold"), "pause");
    ask(t("Stop"), t("Finish the step in flight, save, end"), "stop");
  } else if (CAN_CONTINUE.has(state)) ask(t("Continue"), t("Go on from its last checkpoint"), "resume");
  const place = bench.list.queue.indexOf(name);
  if (place > 0) button(t("Next"), t("Train it before the others that wait"), () => move(name, 0).then(() => bench.refresh()));
  if (run.lora && !isActive(state)) makeLink(row, t("Download"), fileUrl(name, `loras/${run.lora}`)).title = t("Download the LoRA file");
  button(t("Open graph"), t("Open the graph that started it in a new workflow tab"), () => openGraph(name));
  button(t("Duplicate"), t("Open its graph under another name, to change settings and queue it"), () => openGraph(name, copyName(name, bench.list.runs.keys())));
  const copy = button(t("Copy as TOML"), t("Copy its settings as a file for the command line"), async () => {
    const settings = await fetchSettings(name);
    copy.textContent = settings && (await copied(settings.toml)) ? t("Copied") : t("Not copied: no permission");
  });
  if (!isActive(state)) {
    button(t("Rename"), t("Another name for the run and its LoRA files"), () => renamed(bench, name));
    button(t("Delete"), t("Move it to the trash folder"), () => deleted(bench, name));
  }
  return row;
}

/** @param {Workbench} bench @param {string} name */
async function renamed(bench, name) {
  const to = await askText(t("New name for {name}. Workflows that load its LoRA by name need the new one.", { name }), name, t("Rename"));
  if (!to || to === name) return;
  await rename(name, to);
  await bench.refresh();
  bench.open(to);
}

/** @param {Workbench} bench @param {string} name */
async function deleted(bench, name) {
  const choice = await askChoice(t("Move {name} to the trash folder (output/lora_loom/.trash)?", { name }), [
    { label: t("Move the run, keep its LoRA files in models/loras"), choice: "run" },
    { label: t("Move the run and its LoRA files"), choice: "all" },
  ]);
  if (!choice) return;
  await remove(name, choice === "all");
  bench.list.runs.delete(name);
  bench.open("");
  await bench.refresh();
}
