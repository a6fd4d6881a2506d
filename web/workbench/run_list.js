// @ts-check
// All runs of the server as the sidebar lists them. No DOM, no requests.

import { isActive } from "../runs.js";

/**
 * @typedef {import("../runs.js").Run} Run
 * @typedef {import("../runs.js").Detail} Detail
 */

export class RunList {
  constructor() {
    /** @type {Map<string, Run>} */
    this.runs = new Map();
    /** @type {string[]} names of the runs that wait for their turn, the next one first */
    this.queue = [];
    /** @type {Set<string>} failed since the list was last open */
    this.failures = new Set();
    this.isOffline = false;
    /** How many runs lie in the trash. */
    this.trash = 0;
  }

  /** @param {{runs: Run[], queue?: string[], trash?: number}} answer of the server */
  load({ runs, queue = [], trash = 0 }) {
    this.trash = trash;
    this.runs = new Map(runs.map((run) => [run.name ?? "", run]));
    this.queue = queue;
    this.isOffline = false;
  }

  /**
   * An event of a run. True if the server knows more than the event said: a run that is new here, or one that begins or ends.
   * @param {string} kind
   * @param {Detail} detail
   */
  heard(kind, detail) {
    const name = detail.name ?? "";
    const known = this.runs.get(name);
    if (kind === "sample" && known) known.sample = detail.files?.[0] ?? known.sample;
    if (kind !== "run" && kind !== "step") return false;
    if (kind === "run" && detail.state === "failed") this.failures.add(name);
    this.runs.set(name, { ...known, ...detail });
    return !known || (kind === "run" && known.state !== detail.state);
  }

  /** Active runs in the order of their turns, then the others, the newest first. */
  get sorted() {
    /** @param {Run} run */
    const rank = (run) => {
      const place = this.queue.indexOf(run.name ?? "");
      return isActive(run.state) ? (place < 0 ? 0 : place + 1) : Number.POSITIVE_INFINITY;
    };
    /** @param {Run} run */
    const age = (run) => -(run.updated ?? 0);
    return [...this.runs.values()].sort((a, b) => (rank(a) === rank(b) ? age(a) - age(b) : rank(a) - rank(b)));
  }

  /**
   * The runs whose name or note has every word of a text; ★ finds those with a star.
   * @param {string} text
   */
  found(text) {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    return this.sorted.filter((run) => words.every((word) => said(run).includes(word)));
  }

  get active() {
    return this.sorted.filter((run) => isActive(run.state));
  }

  /** What the sidebar's icon says: how many runs are active, "!" after a failure. */
  get badge() {
    if (this.failures.size) return "!";
    return this.active.length ? String(this.active.length) : null;
  }
}

/** @param {Run} run */
const said = (run) => `${run.starred ? "★ " : ""}${run.name ?? ""} ${run.note ?? ""}`.toLowerCase();

/**
 * A name for a copy that no run has yet: cat-copy, cat-copy-2, ….
 * @param {string} name
 * @param {Iterable<string>} taken
 */
export function copyName(name, taken) {
  const names = new Set(taken);
  const stem = `${name}-copy`;
  let copy = stem;
  for (let number = 2; names.has(copy); number += 1) copy = `${stem}-${number}`;
  return copy;
}
