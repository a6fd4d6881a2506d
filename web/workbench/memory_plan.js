// @ts-check
// The memory that a run was predicted to take, as a bar. Numbers come from `memory_plan` of run.json (docs/memory.md).

import { make } from "../elements.js";
import { t } from "../texts.js";

/**
 * @typedef {{setting: string, saves: number, same_result: boolean}} Lever
 * @typedef {object} Plan sizes in bytes
 * @property {string} [device]
 * @property {number | null} [available] what the device has; null on a CPU
 * @property {number} [peak]
 * @property {Record<string, number>} [parts] of a training step
 * @property {Record<string, number>} [phases]
 * @property {{mode?: string, why?: string, streamed_blocks?: number, blocks?: number}} [base]
 * @property {Lever[]} [levers]
 */

const PARTS = [
  ["base", t("base model"), "#5b93f0"],
  ["activations", t("activations"), "#e08a1e"],
  ["optimizer", t("optimizer"), "#b06ad8"],
  ["adapter", "LoRA", "#3fae7a"],
  ["base_loras", t("base LoRAs"), "#c9b23a"],
  ["encoders", t("encoders"), "#8a94a6"],
];
const UNITS = ["bytes", "KB", "MB", "GB", "TB"];

/**
 * "640 MB", "11.2 GB": units of 1000, as the log has them and cards are sold.
 * @param {number} bytes
 */
export function sizeText(bytes) {
  let unit = 0;
  let value = bytes;
  while (value >= 1000 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value < 10 && unit > 0 ? value.toFixed(1) : Math.round(value)} ${UNITS[unit]}`;
}

/**
 * The parts of a training step, largest room first, each with its share of the bar: of the device's memory, or of the peak if that is more
 * or the device has no limit.
 * @param {Plan} plan
 * @returns {{label: string, colour: string, bytes: number, share: number}[]}
 */
export function segments(plan) {
  const whole = Math.max(plan.available ?? 0, plan.peak ?? 0, 1);
  return PARTS.flatMap(([key, label, colour]) => {
    const bytes = Number(plan.parts?.[key]) || 0;
    return bytes > 0 ? [{ label, colour, bytes, share: bytes / whole }] : [];
  });
}

/**
 * What the bar says in words.
 * @param {Plan} plan
 */
export function summary({ device = "", available, peak = 0, base = {} }) {
  const of = available ? t(" of {size}", { size: sizeText(available) }) : "";
  const streamed = base.mode === "stream" ? t(", {some} of {all} blocks streamed", { some: base.streamed_blocks ?? 0, all: base.blocks ?? 0 }) : "";
  return `${t("{size}{of} on {device}", { size: sizeText(peak), of, device })}${streamed}`;
}

/**
 * Where caching or samples take more than training, and what would save memory.
 * @param {Plan} plan
 * @returns {string[]}
 */
export function remarks(plan) {
  const training = plan.phases?.training ?? 0;
  const higher = Object.entries(plan.phases ?? {}).filter(([name, bytes]) => name !== "training" && bytes > training);
  const levers = (plan.levers ?? []).map(({ setting, saves, same_result }) => same_result ? t("{setting} would save {size}", { setting, size: sizeText(saves) }) : t("{setting} would save {size}, with another result", { setting, size: sizeText(saves) }));
  return [...higher.map(([name, bytes]) => t("The peak is at {phase}: {size}", { phase: name, size: sizeText(bytes) })), ...levers];
}

/** The bar with its legend; nothing for a run without a plan. */
export class MemoryBar {
  /** @param {HTMLElement} parent */
  constructor(parent) {
    this.root = make("div", "loom-memory", parent);
    this.root.hidden = true;
    this.shown = "";
  }

  /** @param {Plan | null | undefined} plan */
  show(plan) {
    const key = JSON.stringify(plan ?? null);
    if (key === this.shown) return;
    this.shown = key;
    this.root.replaceChildren();
    const parts = plan ? segments(plan) : [];
    this.root.hidden = !plan || !parts.length;
    if (!plan || !parts.length) return;
    const head = make("div", "loom-memory-head", this.root);
    make("span", "loom-chart-title", head, t("Memory, predicted"));
    make("span", "", head, summary(plan));
    const bar = make("div", "loom-memory-bar", this.root);
    bar.setAttribute("role", "img");
    bar.setAttribute("aria-label", t("Predicted memory of a training step: {parts}", { parts: parts.map(({ label, bytes }) => `${label} ${sizeText(bytes)}`).join(", ") }));
    const legend = make("div", "loom-memory-legend", this.root);
    for (const { label, colour, bytes, share } of parts) {
      const part = make("span", "", bar);
      part.style.width = `${100 * share}%`;
      part.style.background = colour;
      part.title = `${label} ${sizeText(bytes)}`;
      const entry = make("span", "", legend, `${label} ${sizeText(bytes)}`);
      entry.style.setProperty("--loom-key", colour);
    }
    for (const remark of remarks(plan)) make("p", "loom-note", this.root, remark);
  }
}
