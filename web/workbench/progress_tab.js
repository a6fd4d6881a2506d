// @ts-check
// Loss, learning rate and gradient norm of a run over its steps, and what it takes.

import { make } from "../elements.js";
import { count, duration, loss, pace } from "../format.js";
import { smoothed } from "../series.js";
import { Chart } from "./chart.js";
import { MemoryBar } from "./memory_plan.js";
import { isActive } from "../runs.js";
import { likenessSeries } from "./likeness.js";
import { clock, elapsed, endTime, epochs, gigabytes, series } from "./timeline.js";
import { t } from "../texts.js";

/** @typedef {import("./detail_view.js").Shown} Shown */

const COLOURS = { raw: "#5b93f0", smooth: "#5b93f0", validation: "#e08a1e", rate: "#3fae7a", norm: "#b06ad8" };

/** What the memory in the record is: of a GPU, or of a process on a CPU. */
const USED = { vram_gb: t("VRAM, the most in a step"), ram_gb: t("RAM of ComfyUI's process") };
const LISTS = new Set([t("Layers trained"), t("Layers left out")]);

/**
 * Losses with their curve smoothed over a 25th of the run.
 * @param {import("../series.js").Point[]} points
 */
export function smooth(points) {
  if (!points.length) return [];
  const values = smoothed(points, Math.max((points[points.length - 1].step - points[0].step) / 25, 2));
  return points.map((point, place) => ({ step: point.step, value: values[place] }));
}

export class ProgressTab {
  constructor() {
    this.root = make("div", "loom-progress");
    this.facts = make("dl", "loom-fact-list", this.root);
    this.none = make("p", "loom-note", this.root);
    this.loss = new Chart(this.root, t("Loss"), { isLarge: true, canBeLog: true });
    this.rate = new Chart(this.root, t("Learning rate"));
    this.norm = new Chart(this.root, t("Gradient norm"), { canBeLog: true });
    this.memory = new MemoryBar(this.root);
    this.likeness = new Chart(this.root, t("Image similarity to the training images"));
    this.used = new Chart(this.root, USED.vram_gb);
    this.drift = new Chart(this.root, t("Drift from the base without the trigger"));
    this.more = make("dl", "loom-fact-list", this.root);
  }

  /** @param {Shown} shown */
  show({ run, view, lines }) {
    const losses = series(lines, "loss");
    const total = run.total ?? 0;
    this.none.textContent = losses.length ? "" : isActive(run.state) ? t("The loss appears with the first steps.") : t("It ended before its first step.");
    this.loss.show({
      total,
      marks: run.checkpoints,
      series: [
        { label: t("loss"), colour: COLOURS.raw, points: losses, width: 1, isFaint: true },
        { label: t("smoothed"), colour: COLOURS.smooth, points: smooth(losses) },
        { label: t("validation loss"), colour: COLOURS.validation, points: series(lines, "held_out"), isDots: true },
      ],
    });
    this.rate.show({ total, series: [{ label: t("learning rate"), colour: COLOURS.rate, points: series(lines, "learning_rate") }] });
    this.norm.show({ total, series: [{ label: t("gradient norm"), colour: COLOURS.norm, points: series(lines, "grad_norm") }] });
    this.memory.show(run.memory_plan);
    this.likeness.show({ total, series: likenessSeries(run.likeness ?? []) });
    const kind = series(lines, "vram_gb").length ? "vram_gb" : "ram_gb";
    this.used.name(USED[kind]);
    this.used.show({ total, series: [{ label: "GB", colour: COLOURS.rate, points: series(lines, kind) }] });
    this.drift.show({ total, series: [{ label: t("drift"), colour: COLOURS.validation, points: series(lines, "drift"), isDots: true }] });
    this.renderFacts(run, view, lines);
  }

  /**
   * @param {import("../runs.js").Run} run
   * @param {import("../runs.js").RunView} view
   * @param {import("./timeline.js").Line[]} lines
   */
  renderFacts(run, view, lines) {
    const end = view.isOffline ? null : endTime(run, new Date());
    const measured = view.validationLoss;
    showFacts(this.facts, {
      [t("Step")]: `${count(run.step)} / ${count(run.total)}`,
      [t("Epoch")]: epochs(run, lines),
      [t("Left")]: end ? duration(run.eta ?? 0) : "",
      [t("Ends at")]: end ? end.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }) : "",
      [t("Loss")]: view.losses.length ? loss(view.losses[view.losses.length - 1].value) : "",
      [t("Validation loss")]: measured ? loss(measured.now) : "",
      [t("Base model")]: measured?.base != null ? loss(measured.base) : "",
    });
    showFacts(this.more, {
      [t("Pace")]: pace(run.seconds ?? lines.at(-1)?.seconds ?? 0),
      [t("Time trained")]: duration(elapsed(lines)),
      [t("Started")]: clock(run.created),
      [t("Ended")]: isActive(run.state) ? "" : clock(run.updated),
      [t("VRAM")]: gigabytes(lines, "vram_gb"),
      [t("RAM")]: gigabytes(lines, "ram_gb"),
      [t("Layers trained")]: view.layers.trained,
      [t("LoRA modules changed")]: view.changed,
      [t("Layers left out")]: view.layers.leftOut,
    });
  }
}

/**
 * @param {HTMLElement} list
 * @param {Record<string, string>} facts empty ones are not known
 */
function showFacts(list, facts) {
  list.replaceChildren();
  for (const [name, value] of Object.entries(facts)) {
    if (!value) continue;
    const pair = make("div", LISTS.has(name) ? "loom-wide" : "", list);
    make("dt", "", pair, name);
    make("dd", "", pair, value);
  }
}
