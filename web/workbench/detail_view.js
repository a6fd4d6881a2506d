// @ts-check
// One run in detail: state and buttons, and behind tabs its progress, samples, settings and log.

import { make, makeButton } from "../elements.js";
import { RunView, STATES } from "../runs.js";
import { CompareTab } from "./compare_tab.js";
import { LogTab } from "./log_tab.js";
import { ProgressTab } from "./progress_tab.js";
import { NoteField } from "./note_field.js";
import { makeRunMenu } from "./run_menu.js";
import { SamplesTab } from "./samples_tab.js";
import { SettingsTab } from "./settings_tab.js";
import { t } from "../texts.js";

/**
 * @typedef {import("./workbench.js").Workbench} Workbench
 * @typedef {import("../runs.js").Run} Run
 * @typedef {import("./timeline.js").Line} Line
 * @typedef {{run: Run, view: RunView, lines: Line[]}} Shown
 * @typedef {{root: HTMLElement, show: (shown: Shown) => void}} Tab
 */

/** @type {Record<string, string>} */
const LABELS = { Progress: t("Progress"), Samples: t("Samples"), Compare: t("Compare"), Settings: t("Settings"), Log: t("Log") };

export class DetailView {
  /** @param {Workbench} bench */
  constructor(bench) {
    this.bench = bench;
    this.root = make("div", "loom-detail");
    const head = make("div", "loom-detail-head", this.root);
    makeButton(head, t("‹ Runs"), t("Back to the list of runs"), () => bench.open(""));
    this.title = make("h3", "", head);
    this.chip = make("span", "loom-chip", head);
    this.chip.setAttribute("role", "status");
    this.expand = makeButton(head, t("Expand"), t("Over the whole page; Escape leaves"), () => bench.expand());
    this.message = make("p", "loom-message", this.root);
    this.menu = make("div", "", this.root);
    this.note = new NoteField(this.root, bench);
    /** @type {Record<string, Tab>} */
    this.tabs = { Progress: new ProgressTab(), Samples: new SamplesTab(bench), Compare: new CompareTab(bench), Settings: new SettingsTab(bench), Log: new LogTab() };
    this.bar = make("div", "loom-tabs", this.root);
    this.bar.setAttribute("role", "tablist");
    this.body = make("div", "loom-tab", this.root);
    this.body.setAttribute("role", "tabpanel");
    for (const label of Object.keys(this.tabs)) {
      const tab = makeButton(this.bar, LABELS[label], LABELS[label], () => this.turn(label));
      tab.setAttribute("role", "tab");
    }
    this.bar.addEventListener("keydown", (event) => this.key(event));
    this.turn("Progress");
  }

  /** @param {string} label */
  turn(label) {
    this.tab = label;
    for (const [place, name] of Object.keys(this.tabs).entries()) {
      const button = this.bar.children[place];
      const isChosen = name === label;
      button.setAttribute("aria-selected", String(isChosen));
      /** @type {HTMLElement} */ (button).tabIndex = isChosen ? 0 : -1;
    }
    this.body.setAttribute("aria-label", LABELS[label]);
    this.body.replaceChildren(this.tabs[label].root);
    if (this.shown) this.tabs[label].show(this.shown);
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const labels = Object.keys(this.tabs);
    const place = (labels.indexOf(this.tab ?? "") + step + labels.length) % labels.length;
    this.turn(labels[place]);
    /** @type {HTMLElement} */ (this.bar.children[place]).focus();
  }

  /**
   * @param {Run} run
   * @param {Line[]} lines of metrics.jsonl
   */
  show(run, lines) {
    const name = run.name ?? "";
    const view = new RunView(name);
    view.load(run, lines);
    this.shown = { run, view, lines };
    this.title.textContent = name;
    this.root.dataset.state = view.growth ? "doubtful" : run.state;
    this.chip.textContent = view.growth ? t("Finished, loss rose") : (STATES[/** @type {keyof typeof STATES} */ (run.state)] ?? run.state ?? "");
    this.note.show(run);
    this.message.textContent = run.state === "failed" ? (run.error ?? "") : view.doubt || view.remark;
    const key = JSON.stringify([name, run.state, run.lora, this.bench.list.queue]);
    if (this.menu.dataset.key !== key) {
      this.menu.dataset.key = key; // a new button would lose the focus
      this.menu.replaceChildren();
      makeRunMenu(this.menu, this.bench, run);
    }
    if (this.tab) this.tabs[this.tab].show(this.shown);
  }
}
