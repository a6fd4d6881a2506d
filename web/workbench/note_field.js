// @ts-check
// What a person says of a run: a star for a good one, and a note, saved as it is written.

import { make, makeButton } from "../elements.js";
import { saveNote } from "./requests.js";
import { t } from "../texts.js";

/** @typedef {import("../runs.js").Run} Run */

const PAUSE_MS = 600; // after the last key, before a note is saved

export class NoteField {
  /** @param {HTMLElement} parent @param {import("./workbench.js").Workbench} bench */
  constructor(parent, bench) {
    this.bench = bench;
    this.name = "";
    this.starred = false;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.timer = undefined;
    this.root = make("div", "loom-note-field", parent);
    this.star = makeButton(this.root, "☆", t("Mark this run as a good one"), () => this.toggle());
    this.text = make("input", "loom-field", this.root);
    Object.assign(this.text, { placeholder: t("Note"), maxLength: 2000 });
    this.text.setAttribute("aria-label", t("Note on this run"));
    this.text.addEventListener("keydown", (event) => event.stopPropagation()); // ComfyUI's own keys are for its canvas
    this.text.addEventListener("input", () => this.later());
    this.text.addEventListener("change", () => this.save());
  }

  /** @param {Run} run */
  show(run) {
    const name = run.name ?? "";
    if (name === this.name) return; // what is being written stays
    if (this.timer) this.save(); // of the run that was shown before
    this.name = name;
    this.text.value = run.note ?? "";
    this.mark(run.starred ?? false);
  }

  /** @param {boolean} starred */
  mark(starred) {
    this.starred = starred;
    this.star.textContent = starred ? "★" : "☆";
    this.star.setAttribute("aria-label", t("A good run"));
    this.star.setAttribute("aria-pressed", String(starred));
  }

  toggle() {
    this.mark(!this.starred);
    return this.save();
  }

  later() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.save(), PAUSE_MS);
  }

  async save() {
    clearTimeout(this.timer);
    this.timer = undefined;
    const { name, starred } = this;
    const note = this.text.value;
    await this.bench.trying(() => saveNote(name, note, starred));
    const run = this.bench.list.runs.get(name);
    if (run) Object.assign(run, { note, starred });
  }
}
