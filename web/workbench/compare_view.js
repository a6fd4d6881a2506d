// @ts-check
// Two to five runs: their smoothed losses and validation losses in one chart, and the settings in which they differ.

import { make, makeButton } from "../elements.js";
import { Chart } from "./chart.js";
import { smooth } from "./progress_tab.js";
import { fetchSettings, fetchThinned } from "./requests.js";
import { differing, makeTable } from "./settings_tab.js";
import { series } from "./timeline.js";
import { t } from "../texts.js";

/** @typedef {import("./workbench.js").Workbench} Workbench */

const COLOURS = ["#5b93f0", "#e08a1e", "#3fae7a", "#b06ad8", "#d9534f"];
const STEPS = 1000;

export class CompareView {
  /** @param {Workbench} bench */
  constructor(bench) {
    this.bench = bench;
    this.root = make("div", "loom-compare");
    const head = make("div", "loom-detail-head", this.root);
    this.back = makeButton(head, t("‹ Runs"), t("Back to the list of runs"), () => bench.open(""));
    make("h3", "", head, t("Compare runs"));
    bench.makeExpand(head);
    this.loss = new Chart(this.root, t("Loss, smoothed"), { isLarge: true, canBeLog: true });
    this.validation = new Chart(this.root, t("Validation loss"), { isLarge: true, canBeLog: true });
    this.settings = make("div", "", this.root);
  }

  focus() {
    this.back.focus();
  }

  /** @param {string[]} names */
  async show(names) {
    const found = await Promise.all(names.map(async (name) => ({ name, lines: await fetchThinned(name, STEPS), settings: await fetchSettings(name) })));
    /** @param {(lines: import("./timeline.js").Line[]) => import("../series.js").Point[]} points @param {boolean} isDots */
    const lines = (points, isDots) => found.map((one, place) => ({ label: one.name, colour: COLOURS[place], points: points(one.lines), isDots }));
    this.loss.show({ total: 0, series: lines((record) => smooth(series(record, "loss")), false) });
    this.validation.show({ total: 0, series: lines((record) => series(record, "held_out"), true) });
    this.settings.replaceChildren();
    const rows = differing(found.map((one) => one.settings?.all ?? {}));
    if (rows.length) makeTable(this.settings, [t("setting"), ...names], rows.map((row) => [row.name, ...row.values]));
    else make("p", "loom-note", this.settings, t("No setting differs."));
  }
}
