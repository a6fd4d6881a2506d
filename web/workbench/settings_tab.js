// @ts-check
// The settings of a run that differ from their defaults, or from those of another run.

import { make } from "../elements.js";
import { fetchSettings } from "./requests.js";
import { t } from "../texts.js";

/**
 * @typedef {import("./workbench.js").Workbench} Workbench
 * @typedef {import("./detail_view.js").Shown} Shown
 * @typedef {import("./requests.js").Settings} Settings
 */

/**
 * The settings in which runs differ, with each one's value.
 * @param {Record<string, unknown>[]} runs
 * @returns {{name: string, values: unknown[]}[]}
 */
export function differing(runs) {
  const names = [...new Set(runs.flatMap((run) => Object.keys(run)))].sort();
  return names.map((name) => ({ name, values: runs.map((run) => run[name]) })).filter(({ values }) => new Set(values.map((value) => JSON.stringify(value))).size > 1);
}

/** @param {unknown} value */
export const valueText = (value) => (value === undefined ? "" : typeof value === "string" ? value || t("(empty)") : JSON.stringify(value));

/**
 * @param {HTMLElement} parent
 * @param {string[]} heads
 * @param {unknown[][]} rows
 */
export function makeTable(parent, heads, rows) {
  const table = make("table", "loom-settings", parent);
  const head = make("tr", "", make("thead", "", table));
  for (const text of heads) make("th", "", head, text).scope = "col";
  const body = make("tbody", "", table);
  for (const [name, ...values] of rows) {
    const row = make("tr", "", body);
    const cell = make("th", "", row);
    cell.scope = "row";
    for (const part of String(name).split(/(?<=[._])/)) cell.append(part, document.createElement("wbr")); // a long name breaks between its words
    for (const value of values) make("td", "", row, valueText(value));
  }
  return table;
}

export class SettingsTab {
  /** @param {Workbench} bench */
  constructor(bench) {
    this.bench = bench;
    this.name = "";
    this.root = make("div", "loom-settings-tab");
    const label = make("label", "", this.root, t("Compare with "));
    this.other = make("select", "loom-field", label);
    this.other.addEventListener("change", () => this.render());
    this.body = make("div", "", this.root);
  }

  /** @param {Shown} shown */
  show({ run }) {
    const name = run.name ?? "";
    if (name === this.name) return; // a run's settings do not change while it is open
    this.name = name;
    this.other.replaceChildren();
    make("option", "", this.other, t("the defaults")).value = "";
    for (const one of this.bench.list.sorted) if (one.name !== name) make("option", "", this.other, one.name).value = one.name ?? "";
    this.render();
  }

  async render() {
    const [name, other] = [this.name, this.other.value];
    await this.bench.trying(async () => {
      const [own, its] = await Promise.all([fetchSettings(name), other ? fetchSettings(other) : null]);
      if (name !== this.name || other !== this.other.value || !own) return;
      this.body.replaceChildren();
      if (its) this.table([name, other], differing([own.all, its.all]).map((row) => [row.name, ...row.values]));
      else this.table([t("this run"), t("default")], own.changed.map((row) => [row.name, row.value, row.default]));
    });
  }

  /** @param {string[]} heads @param {unknown[][]} rows */
  table(heads, rows) {
    if (rows.length) makeTable(this.body, [t("setting"), ...heads], rows);
    else make("p", "loom-note", this.body, t("No setting differs."));
  }
}
