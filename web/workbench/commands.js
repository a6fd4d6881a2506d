// @ts-check
// Commands, with their keys and their place in ComfyUI's menu.

import { act } from "../client.js";
import { openWizard } from "./new_run.js";

/**
 * @param {import("./workbench.js").Workbench} bench
 * @param {() => void} open
 */
export function makeCommands(bench, open) {
  /** @param {string} action @param {(state: string) => boolean} fits */
  const ask = (action, fits) => () =>
    bench.trying(() => Promise.all(bench.list.active.filter((run) => fits(run.state ?? "")).map((run) => act(run.name ?? "", action))));
  const isBusy = (/** @type {string} */ state) => state !== "queued" && state !== "stopping";
  return [
    { id: "lora_loom.open", label: "LoRA Loom: open the list of runs", icon: "pi pi-chart-line", function: open },
    { id: "lora_loom.new", label: "LoRA Loom: new run", icon: "pi pi-plus", function: openWizard },
    { id: "lora_loom.pause", label: "LoRA Loom: pause all runs", icon: "pi pi-pause", function: ask("pause", (state) => isBusy(state) && state !== "paused") },
    { id: "lora_loom.resume", label: "LoRA Loom: resume paused runs", icon: "pi pi-play", function: ask("resume", (state) => state === "paused") },
    { id: "lora_loom.save", label: "LoRA Loom: save a checkpoint now", icon: "pi pi-save", function: ask("save", isBusy) },
    { id: "lora_loom.sample", label: "LoRA Loom: make samples now", icon: "pi pi-image", function: ask("sample", isBusy) },
  ];
}

export const KEYS = [{ combo: { key: "l", alt: true, shift: true }, commandId: "lora_loom.open" }];
