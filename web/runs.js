// @ts-check
// A run as the panel knows it: its name, its addresses on the server, and what was heard of it. No DOM, no requests.

import { loss } from "./format.js";
import { append } from "./series.js";
import { growth } from "./verdict.js";
import { t } from "./texts.js";

const ROOT = "/lora_loom/runs";

/**
 * @typedef {import("./series.js").Point} Point
 * @typedef {{step: number, file: string}} Sample
 * @typedef {{trained?: Record<string, number>, left_out?: Record<string, number>, outside?: string[]}} Layers by their role
 * @typedef {object} Run what the server says of a run; events bring some of it
 * @property {string} [name]
 * @property {string} [state]
 * @property {number} [step]
 * @property {number} [total] steps of the whole run
 * @property {number} [seconds] per step
 * @property {number} [eta] seconds
 * @property {string} [error]
 * @property {string[]} [samples] files of the run
 * @property {string} [sample] its newest sample
 * @property {number | null} [lowest] validation loss
 * @property {number | null} [loss] of its last step
 * @property {number} [created] seconds since 1970
 * @property {number} [updated] seconds since 1970
 * @property {import("./workbench/likeness.js").Likeness[]} [likeness] how alike its images are to the training images, by step
 * @property {number[]} [checkpoints] their steps
 * @property {boolean} [can_sample] there are prompts to render
 * @property {string} [lora] name of its last LoRA file
 * @property {string} [best] name of the LoRA file with the lowest validation loss
 * @property {string[]} [doctor] what the data doctor says of the training images, a heading first
 * @property {string[]} [adapted] what it took where memory ran out, one setting a line
 * @property {string[]} [loras] files of the run
 * @property {string} [lora_folder] what the names of its LoRA files begin with in LoraLoader
 * @property {Layers} [layers] none of a run of an earlier version
 * @property {{modules: number, unmoved: string[]} | null} [movement] modules that training has changed, of a run that has ended
 * @property {import("./workbench/memory_plan.js").Plan | null} [memory_plan] what it was predicted to take
 * @property {string} [note] what a person has written of it
 * @property {boolean} [starred] a person has called it a good one
 * @property {string[]} [pages] compare pages of its sweeps, the newest last
 * @typedef {{step: number, loss?: number, held_out?: number}} MetricsLine
 * @typedef {{step: number, number: number, of: number, image: string}} Forming a sample that is being made, as a data URL
 * @typedef {Run & {node?: string, text?: string, files?: string[], loss?: number, held_out?: number, number?: number, of?: number, image?: string}} Detail of an event
 */

export const STATES = {
  queued: t("Queued"), caching: t("Caching"), running: t("Training"), yielding: t("Waiting for the queue"), paused: t("Paused"),
  stopping: t("Stopping"), finished: t("Finished"), failed: t("Failed"), stopped: t("Stopped"), interrupted: t("Interrupted"),
  damaged: t("Damaged"), // its record cannot be read
};
const ACTIVE = new Set(["queued", "caching", "running", "yielding", "paused", "stopping"]);
/** What is said until it has happened. @type {Record<string, string>} */
export const ASKED = {
  pause: t("Pausing after this step …"), resume: t("Going on …"), stop: t("Stopping after this step …"), save: t("Saving after this step …"),
  sample: t("Rendering samples after this step …"),
};
/** What layers do in a block, in the field's words. @type {Record<string, string>} */
const ROLES = { attention: t("attention"), mlp: t("feed-forward"), modulation: t("modulation"), outside: t("around the blocks") };
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

/**
 * Whether an event says that what was asked for has happened: a state is another one, the rest is done before the next step.
 * @param {string} action
 * @param {string} kind of the event
 */
export const isDone = (action, kind) => kind === "run" || (kind === "step" && (action === "save" || action === "sample"));

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
    const match = /-ema\.\w+$/.test(file) ? null : /step-(\d+)-(\d+)[.-]/.exec(file);
    return match ? [{ step: Number(match[1]), file }] : [];
  });
  const step = Math.max(...found.map((sample) => sample.step));
  return found.find((sample) => sample.step === step) ?? null;
}

/**
 * What the page says when a run ends, wherever its node is; null for every other event.
 * @param {Detail} detail of a "run" event
 * @param {{best?: string, doubt?: string}} [known] the file with the lowest validation loss; why the LoRA may be spoilt
 * @returns {{severity: string, summary: string, detail: string, life?: number} | null}
 */
export function endNotice({ state, name = "", step = 0, error = "" }, { best = "", doubt = "" } = {}) {
  if (state === "finished" && doubt) return { severity: "warn", summary: t("LoRA trained, but the loss rose"), detail: `${name}: ${doubt}` };
  const advice = best ? t(". Lowest validation loss: {best}", { best }) : "";
  if (state === "finished") return { severity: "success", summary: t("LoRA trained"), detail: `${t("{name}: {steps} steps", { name, steps: step })}${advice}`, life: 15_000 };
  if (state === "failed") return { severity: "error", summary: t("Training failed"), detail: `${name}: ${error}` };
  return null;
}

const PICTURE = /^data:image\/jpeg;base64,[\w+/=]+$/;

/**
 * The rough picture in an event; null for anything that is none.
 * @param {Detail} detail
 * @returns {Forming | null}
 */
function forming({ step = 0, number = 1, of = 1, image = "" }) {
  return PICTURE.test(image) ? { step, number, of, image } : null;
}

/**
 * The image similarity in a line of the record: of what the LoRA file holds, the average where there is one.
 * @param {MetricsLine & Record<string, unknown>} line
 * @returns {Point[]}
 */
function likenessOf(line) {
  const end = "likeness_ema" in line ? "_ema" : "";
  const [value, low, high] = ["likeness", "likeness_low", "likeness_high"].map((name) => line[`${name}${end}`]);
  if (typeof value !== "number") return [];
  return [{ step: line.step, value, low: typeof low === "number" ? low : null, high: typeof high === "number" ? high : null }];
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
    /** How alike the samples are to the training images, by step, with intervals. @type {Point[]} */
    this.likeness = [];
    /** @type {Sample | null} */
    this.sample = null;
    /** @type {Forming | null} while samples are made */
    this.forming = null;
    /** The last thing that was said about it. */
    this.note = "";
    /** The action that was asked for and has not happened yet. */
    this.asked = "";
    /** The server cannot be reached. */
    this.isOffline = false;
    /** Why the node could not start a run of this name: one with other settings has it. */
    this.clash = "";
  }

  /**
   * The node has failed.
   * @param {string} kind class of the error
   * @param {string} message
   */
  refused(kind, message) {
    this.clash = kind.endsWith("NameTakenError") ? message.split(". Only ")[0].trim() : ""; // what may change is in ComfyUI's own message
  }

  /**
   * An action was asked for: say so at once, for the server answers only between two steps.
   * @param {string} action
   */
  ask(action) {
    this.asked = action;
    this.note = ASKED[action] ?? "";
  }

  /**
   * The action failed, or the server has answered it; what waits for the end of a step is still to come.
   * @param {string} [note]
   */
  answered(note = "") {
    this.asked = "";
    this.note = note;
  }

  /**
   * All there is on the server, after a (re)load or a lost connection.
   * @param {Run | null} run
   * @param {MetricsLine[]} lines of metrics.jsonl
   */
  load(run, lines) {
    this.run = run;
    this.isOffline = false;
    this.answered();
    if (!run) return;
    /** @param {"loss" | "held_out"} key */
    const series = (key) => lines.flatMap((line) => (key in line ? [{ step: line.step, value: Number(line[key]) }] : []));
    this.losses = series("loss");
    this.validation = series("held_out");
    this.likeness = lines.flatMap(likenessOf);
    if (run.samples?.length) this.sample = newestSample(run.samples);
  }

  /**
   * An event of this run. True if the whole record is worth fetching: the run ended by it, or its sweep has a page.
   * @param {string} kind
   * @param {Detail} detail
   */
  heard(kind, detail) {
    if (kind === "page") return true;
    if (this.asked && isDone(this.asked, kind)) this.answered();
    if (kind === "run") this.clash = "";
    if (kind === "log") this.note = detail.text ?? "";
    this.forming = kind === "forming" ? forming(detail) : kind === "log" ? this.forming : null;
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

  /** The newest validation loss and, when a later one than its own is there, that of the base without a LoRA; null before the first. */
  get validationLoss() {
    const [first] = this.validation, last = this.validation[this.validation.length - 1];
    return last ? { now: last.value, base: first.step === 0 && last.step > 0 ? first.value : null } : null;
  }

  /** How many layers train, and which by their role: "60 attention, 90 feed-forward"; "" where nothing is known. */
  get layers() {
    const { trained = {}, left_out = {}, outside = [] } = this.run?.layers ?? {};
    /** @param {Record<string, number>} counts */
    const sum = (counts) => Object.values(counts).reduce((all, one) => all + one, 0);
    /** @param {Record<string, number>} counts */
    const listed = (counts) => Object.entries(counts).map(([role, layers]) => `${layers} ${ROLES[role] ?? role}`).join(", ");
    const around = outside.length ? ` (${outside.join(", ")})` : "";
    const [some, none] = [sum(trained), sum(left_out)];
    return { count: some ? t("{some} of {all}", { some, all: some + none }) : "", trained: listed(trained), leftOut: listed(left_out) + around };
  }

  /** How many of its modules training has changed, which are more than layers where a fused one is trained in parts: "118 of 120"; "" before the end of the run. */
  get changed() {
    const { modules = 0, unmoved = [] } = this.run?.movement ?? {};
    return modules ? t("{some} of {all}", { some: modules - unmoved.length, all: modules }) : "";
  }

  /** The first modules that training should have changed and has not. */
  get unchanged() {
    return (this.run?.movement?.unmoved ?? []).slice(0, 20).join(", ");
  }

  /** Share of the run that is done, 0 to 1. */
  get progress() {
    return this.run?.total ? Math.min(1, (this.run.step ?? 0) / this.run.total) : 0;
  }

  /** How many times its start the loss of a finished run ends at, if that is far above it; else 0. */
  get growth() {
    return this.run?.state === "finished" ? growth(this.losses, this.validation) : 0;
  }

  /** What that means, in words; empty if all is well. */
  get doubt() {
    const times = this.growth;
    return times ? t("The loss ends at {times} times its start: this LoRA is likely spoilt. Try a lower learning_rate.", { times: loss(Number(times.toPrecision(2))) }) : "";
  }

  /** What it took where memory ran out, and what the data doctor found; empty where nothing stands out. */
  get remark() {
    const [heading = "", ...findings] = this.run?.doctor ?? [];
    return [...(this.run?.adapted ?? []), ...(findings.length ? [heading, ...findings] : [])].join("\n");
  }

  /**
   * The LoRA files of a run that has ended: the last one, and the one with the lowest validation loss.
   * @returns {{label: string, file: string, name: string}[]} name: as LoraLoader lists it
   */
  get results() {
    const { state, step = 0, lora, best = "", loras = [], lora_folder: folder = "" } = this.run ?? {};
    if (isActive(state)) return [];
    const isLast = best === lora || best.endsWith(`-${String(step).padStart(6, "0")}.safetensors`);
    const files = [["LoRA", lora], [t("Lowest validation loss"), isLast ? "" : best]];
    return files.flatMap(([label, name]) => {
      const file = loras.find((path) => name && path.endsWith(`/${name}`));
      return file ? [{ label: String(label), file, name: `${folder}${name}` }] : [];
    });
  }

  /** Which buttons are there, which of them can be pressed, and what the second one is called. */
  get buttons() {
    const state = this.run?.state;
    const active = isActive(state) && !this.isOffline;
    const canContinue = CAN_CONTINUE.has(state ?? "");
    /** @param {string} action */
    const waits = (action) => this.asked === action;
    return {
      any: Boolean(this.run) && !this.isOffline && (active || canContinue),
      pause: { hidden: !active || state === "paused", disabled: waits("pause") || state === "stopping" },
      resume: { hidden: !(state === "paused" || canContinue), disabled: waits("resume"), label: state === "paused" ? t("Resume") : t("Continue") },
      stop: { hidden: !active, disabled: waits("stop") || state === "stopping" },
      save: { hidden: !active, disabled: waits("save") || state === "queued" || state === "stopping" },
      sample: { hidden: !active || !this.run?.can_sample, disabled: waits("sample") },
    };
  }
}
