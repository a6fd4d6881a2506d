// @ts-check
// The LoRA files of a run next to each other: their validation losses, the sweep's page, and the one that is wanted in the graph.

import { fileUrl } from "../client.js";
import { make, makeButton, makeLink } from "../elements.js";
import { count, loss } from "../format.js";
import { addLoader } from "./graph.js";
import { likenessAt } from "./likeness.js";
import { loraFiles } from "./samples.js";
import { t } from "../texts.js";

/**
 * @typedef {import("./workbench.js").Workbench} Workbench
 * @typedef {import("./detail_view.js").Shown} Shown
 * @typedef {import("./samples.js").LoraFile} LoraFile
 */

export class CompareTab {
  /** @param {Workbench} bench */
  constructor(bench) {
    this.bench = bench;
    this.root = make("div", "loom-compare-tab");
    this.note = make("p", "loom-note", this.root, t("Loom Sweep with Loom Strip renders the same prompts with every checkpoint; its page appears here."));
    this.files = make("div", "loom-files", this.root);
    this.sheet = make("div", "", this.root);
  }

  /** @param {Shown} shown */
  show({ run, lines }) {
    const files = loraFiles(run, lines);
    const page = run.pages?.at(-1) ?? "";
    this.note.hidden = Boolean(page);
    const key = JSON.stringify([run.name, files, run.likeness]);
    if (this.files.dataset.key !== key) {
      this.files.dataset.key = key; // a new button would lose the focus
      this.files.replaceChildren();
      for (const one of files) this.addFile(run.name ?? "", one, likenessAt(run.likeness ?? [], one.step));
    }
    if (this.sheet.dataset.key === `${run.name} ${page}`) return;
    this.sheet.dataset.key = `${run.name} ${page}`;
    this.sheet.replaceChildren();
    if (page) this.addPage(fileUrl(run.name ?? "", page));
  }

  /** @param {string} run @param {LoraFile} file @param {string} likeness */
  addFile(run, { file, name, step, loss: measured, isBest }, likeness) {
    const row = make("div", "loom-result", this.files);
    const facts = [t("step {step}", { step: count(step) })];
    if (measured !== null) facts.push(t("validation {loss}", { loss: loss(measured) }));
    if (isBest) facts.push(t("lowest"));
    if (likeness) facts.push(likeness);
    make("span", "loom-card-name", row, facts.join(", ")).title = name;
    makeLink(row, t("Download"), fileUrl(run, file)).title = name;
    makeButton(row, t("Use this one"), t("Add a loader with {name} to the graph", { name }), () => this.bench.trying(() => addLoader(name)));
  }

  /** @param {string} address */
  addPage(address) {
    makeLink(make("div", "loom-menu", this.sheet), t("Open compare page"), address);
    const frame = make("iframe", "loom-sheet", this.sheet);
    frame.title = t("Images of all checkpoints next to each other");
    frame.setAttribute("sandbox", "allow-scripts");
    frame.src = address;
  }
}
