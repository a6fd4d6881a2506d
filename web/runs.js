// @ts-check
// A run as the panel knows it: its name, its addresses on the server, and what was heard of it. No DOM, no requests.

import { append } from "./series.js";

const ROOT = "/lora_loom/runs";

/**
 * @typedef {import("./series.js").Point} Point
 * @typedef {{step: number, file: string}} Sample
 * @typedef {object} Run what the server says of a run; events bring some of it
 * @property {string} [name]
 * @property {string} [state]
 * @property {number} [step]
 * @property {number} [total] steps of the whole run
 * @property {number} [seconds] per step
 * @property {number} [eta] seconds
 * @property {string} [error]
 * @property {string[]} [samples] files of the run
 * @property {boolean} [can_sample] there are prompts to render
 * @typedef {{step: number, loss?: number, held_out?: number}} MetricsLine
 * @typedef {Run & {node?: string, text?: string, files?: string[], loss?: number, held_out?: number}} Detail of an event
 */

export const STATES = {
  queued: "Queued", caching: "Caching", running: "Training", yielding: "Waiting for the queue", paused: "Paused",
  stopping: "Stopping", finished: "Finished", failed: "Failed", stopped: "Stopped", interrupted: "Interrupted",
};
const ACTIVE = new Set(["queued", "caching", "running", "yielding", "paused", "stopping"]);
const CAN_CONTINUE = new Set(["failed", "stopped", "interrupted"]);

/** @param {string | undefined} state */
export const isActive = (state) => ACTIVE.has(state ?? "");

/**
 * Whether a node that asks for `wanted` may show this run: it goes by that name, or by name-2, name-3, ….
 * @param {string} run
 * @param {string} wanted
 */
export function belongs(run, wanted) {
  return run === wanted || (run.startsWith(`${wanted}-`) && /^\d+$/.test(run.slice(wanted.length + 1)));
}

/** @param {string} name */
export const runPath = (name) => `${ROOT}/${encodeURIComponent(name)}`;

/**
 * @param {string} name
 * @param {string} file inside the run's folder, with "/" between folders
 */
export const filePath = (name, file) => `${runPath(name)}/files/${file.split("/").map(encodeURIComponent).join("/")}`;

/**
 * The first file of the highest step: samples/step-000120-0.png; null if no file is a sample.
 * @param {string[]} files
 * @returns {Sample | null}
 */
export function newestSample(files) {
  const found = files.flatMap((file) => {
    const match = /step-(\d+)-(\d+)\./.exec(file);
    return match ? [{ step: Number(match[1]), file }] : [];
  });
  const step = Math.max(...found.map((sample) => sample.step));
  return found.find((sample) => sample.step === step) ?? null;
}

/** What is known of one run. The panel renders it; whoever hears of the run changes it. */
export class RunView {
  constructor(name = "") {
    this.name = name;
    /** @type {Run | null} null while the server knows no run of this name */
    this.run = null;
    /** @type {Point[]} */
    this.losses = [];
    /** @type {Point[]} */
    this.validation = [];
    /** @type {Sample | null} */
    this.sample = null;
    /** The last thing that was said about it. */
    this.note = "";
  }

  /**
   * All there is on the server, after a (re)load or a lost connection.
   * @param {Run | null} run
   * @param {MetricsLine[]} lines of metrics.jsonl
   */
  load(run, lines) {
    this.run = run;
    this.note = "";
    if (!run) return;
    /** @param {"loss" | "held_out"} key */
    const series = (key) => lines.flatMap((line) => (key in line ? [{ step: line.step, value: Number(line[key]) }] : []));
    this.losses = series("loss");
    this.validation = series("held_out");
    if (run.samples?.length) this.sample = newestSample(run.samples);
  }

  /**
   * An event of this run. True if the run ended by it, so that the whole record is worth fetching.
   * @param {string} kind
   * @param {Detail} detail
   */
  heard(kind, detail) {
    if (kind === "log") this.note = detail.text ?? "";
    if (kind === "sample") this.sample = { step: detail.step ?? 0, file: detail.files?.[0] ?? "" };
    if (kind === "run" || kind === "step") this.run = { ...this.run, ...detail };
    if (kind === "step") this.take(detail);
    return kind === "run" && !isActive(detail.state);
  }

  /** @param {Detail} detail */
  take(detail) {
    const step = detail.step ?? 0;
    if (detail.held_out !== undefined) append(this.validation, { step, value: detail.held_out });
    else if (detail.loss !== undefined && Number.isFinite(detail.loss)) append(this.losses, { step, value: detail.loss });
  }

  /** Share of the run that is done, 0 to 1. */
  get progress() {
    return this.run?.total ? Math.min(1, (this.run.step ?? 0) / this.run.total) : 0;
  }

  /** Which buttons are there, which of them can be pressed, and what the second one is called. */
  get buttons() {
    const state = this.run?.state;
    const active = isActive(state);
    const canContinue = CAN_CONTINUE.has(state ?? "");
    return {
      any: Boolean(this.run) && (active || canContinue),
      pause: { hidden: !active || state === "paused", disabled: state === "stopping" },
      resume: { hidden: !(state === "paused" || canContinue), label: state === "paused" ? "Resume" : "Continue" },
      stop: { disabled: !active || state === "stopping" },
      save: { disabled: !active || state === "queued" || state === "stopping" },
      sample: { hidden: !this.run?.can_sample },
    };
  }
}
