// @ts-check
// The samples of a run: a slider over its steps, the base without a LoRA next to them, each in full size by a click.

import { fileUrl } from "../client.js";
import { make, makeButton } from "../elements.js";
import { count } from "../format.js";
import { isActive } from "../runs.js";
import { showImages } from "./dialogs.js";
import { addLoader } from "./graph.js";
import { sampleTable } from "./samples.js";
import { t } from "../texts.js";

/**
 * @typedef {import("./workbench.js").Workbench} Workbench
 * @typedef {import("./detail_view.js").Shown} Shown
 */

export class SamplesTab {
  /** @param {Workbench} bench */
  constructor(bench) {
    this.bench = bench;
    this.name = "";
    this.table = sampleTable([]);
    this.root = make("div", "loom-samples");
    this.none = make("p", "loom-note", this.root, t("No samples: connect Loom Validation to Loom Train LoRA, and write prompts there."));
    const head = make("div", "loom-slider", this.root);
    this.label = make("label", "", head);
    this.slider = make("input", "", head);
    this.slider.type = "range";
    this.slider.min = "0";
    this.slider.setAttribute("aria-label", t("Step"));
    this.slider.addEventListener("input", () => this.choose(Number(this.slider.value)));
    this.slider.addEventListener("keydown", (event) => event.stopPropagation());
    this.label.append(this.slider);
    this.step = make("output", "", this.label);
    this.head = head;
    this.buttons = make("div", "loom-menu", this.root);
    this.grid = make("div", "loom-grid", this.root);
    this.files = make("div", "loom-files", this.root);
    /** @type {number | null} null: the newest */
    this.at = null;
  }

  /** @param {Shown} shown */
  show({ run, view }) {
    const name = run.name ?? "";
    if (name !== this.name) this.at = null;
    this.name = name;
    this.table = sampleTable(run.samples ?? []);
    const { steps } = this.table;
    this.none.hidden = steps.length > 0;
    this.head.hidden = steps.length < 2;
    this.slider.max = String(Math.max(steps.length - 1, 0));
    this.renderImages();
    this.renderButtons(run);
    this.renderFiles(run, view.results);
  }

  get place() {
    return Math.min(this.at ?? Number.POSITIVE_INFINITY, this.table.steps.length - 1);
  }

  /** @param {number} place */
  choose(place) {
    this.at = place === this.table.steps.length - 1 ? null : place;
    this.renderImages();
  }

  renderImages() {
    const { steps, prompts, file } = this.table;
    const step = steps[this.place];
    this.slider.value = String(this.place);
    this.step.textContent = step === undefined ? "" : stepText(step);
    const key = JSON.stringify([this.name, step, steps[0], prompts]);
    if (this.grid.dataset.key === key) return;
    this.grid.dataset.key = key;
    this.grid.replaceChildren();
    for (const prompt of step === undefined ? [] : prompts) {
      for (const at of steps[0] === 0 && step !== 0 ? [0, step] : [step]) this.addImage(file(at, prompt), at, prompt);
    }
    this.grid.classList.toggle("loom-pairs", steps[0] === 0 && step !== 0);
  }

  /**
   * @param {string | undefined} file
   * @param {number} step
   * @param {number} prompt
   */
  addImage(file, step, prompt) {
    const button = makeButton(this.grid, "", t("Full size; the arrow keys go through the steps"), () => this.enlarge(step, prompt));
    button.className = "loom-cell";
    if (file) {
      const image = make("img", "", button);
      image.src = fileUrl(this.name, file);
      image.alt = ""; // the words below it say what it is
    }
    make("span", "", button, t("prompt {n}, {step}", { n: prompt + 1, step: stepText(step) }));
  }

  /** @param {number} step @param {number} prompt */
  enlarge(step, prompt) {
    const shown = this.table.steps.flatMap((at) => {
      const file = this.table.file(at, prompt);
      return file ? [{ at, address: fileUrl(this.name, file), text: `${this.name}, ${t("prompt {n}, {step}", { n: prompt + 1, step: stepText(at) })}` }] : [];
    });
    showImages(shown, Math.max(0, shown.findIndex((one) => one.at === step)));
  }

  /** @param {import("../runs.js").Run} run */
  renderButtons(run) {
    const canSample = isActive(run.state) && Boolean(run.can_sample);
    if (this.buttons.childElementCount === Number(canSample)) return;
    this.buttons.replaceChildren();
    if (canSample) makeButton(this.buttons, t("Sample now"), t("Make the samples of LoomValidation after this step"), () => this.bench.trying(() => this.bench.ask(this.name, "sample")));
  }

  /**
   * @param {import("../runs.js").Run} run
   * @param {{label: string, name: string}[]} results
   */
  renderFiles(run, results) {
    const key = JSON.stringify([run.name, results]);
    if (this.files.dataset.key === key) return;
    this.files.dataset.key = key;
    this.files.replaceChildren();
    for (const { label, name } of results) {
      const row = make("div", "loom-result", this.files);
      make("span", "loom-name", row, name).title = label;
      makeButton(row, t("Use this one"), t("Add a loader with {name} to the graph", { name }), () => this.bench.trying(() => addLoader(name)));
    }
  }
}

/** @param {number} step */
const stepText = (step) => (step === 0 ? t("base model") : t("step {step}", { step: count(step) }));
