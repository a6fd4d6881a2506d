// @ts-check
// One run in detail: state and buttons, and behind tabs its progress, samples, settings and log.

import { keepFocus, make, makeButton } from "../elements.js";
import { ASKED, RunView, STATES } from "../runs.js";
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
    this.back = makeButton(head, t("‹ Runs"), t("Back to the list of runs"), () => bench.open(""));
    this.chip = make("span", "loom-chip", head);
    this.chip.setAttribute("role", "status");
    bench.makeExpand(head);
    this.title = make("h3", "", this.root);
    this.message = make("p", "loom-message", this.root);
    this.message.setAttribute("aria-live", "polite");
    this.menu = make("div", "", this.root);
    this.passFocus = keepFocus(this.menu);
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

  focus() {
    this.back.focus();
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
    this.title.textContent = this.title.title = name;
    this.note.show(run);
    this.renderState();
    if (this.tab) this.tabs[this.tab].show(this.shown);
  }

  /** State and buttons, which depend on the connection as well. */
  renderState() {
    if (!this.shown) return;
    const { run, view } = this.shown;
    const { isOffline, queue } = this.bench.list;
    const known = view.growth ? t("Finished, loss rose") : (STATES[/** @type {keyof typeof STATES} */ (run.state)] ?? run.state ?? "");
    const text = isOffline ? t("No connection") : known;
    if (this.chip.textContent !== text) this.chip.textContent = text; // a screen reader says what changes
    const asked = this.bench.wish?.name === run.name ? ASKED[this.bench.wish?.action ?? ""] : "";
    const message = asked || (run.state === "failed" ? (run.error ?? "") : view.doubt || view.remark);
    if (this.message.textContent !== message) this.message.textContent = message;
    this.root.dataset.state = isOffline ? "offline" : view.growth ? "doubtful" : run.state;
    if (view.isOffline !== isOffline) {
      view.isOffline = isOffline;
      if (this.tab === "Progress") this.tabs[this.tab].show(this.shown); // nothing is left of the time that was left
    }
    const key = JSON.stringify([run.name, run.state, run.lora, queue, isOffline]);
    if (this.menu.dataset.key === key) return; // a new button would lose the focus
    this.menu.dataset.key = key;
    this.menu.replaceChildren();
    if (!isOffline) makeRunMenu(this.menu, this.bench, run);
    this.passFocus();
  }
}
