// @ts-check
// The record of a run, metrics.jsonl, as series and facts. Pure functions.

import { isActive } from "../runs.js";

/**
 * @typedef {import("../series.js").Point} Point
 * @typedef {import("../runs.js").MetricsLine & {learning_rate?: number, grad_norm?: number, drift?: number, seconds?: number}} Line
 */

/**
 * Put newer lines behind the older ones. A run that was continued begins at its checkpoint: what it does again replaces
 * what it did.
 * @param {Line[]} lines in order of step
 * @param {Line[]} newer
 */
export function joined(lines, newer) {
  if (!newer.length) return lines;
  const from = newer[0].step;
  return [...lines.filter((line) => line.step < from), ...newer];
}

/**
 * @param {Line[]} lines
 * @param {"loss" | "held_out" | "learning_rate" | "grad_norm" | "drift"} key
 * @returns {Point[]}
 */
export const series = (lines, key) =>
  lines.flatMap((line) => {
    const value = Number(line[key]);
    return key in line && Number.isFinite(value) ? [{ step: line.step, value }] : [];
  });

/**
 * Seconds of training so far.
 * @param {Line[]} lines
 */
export const elapsed = (lines) => lines.reduce((sum, line) => sum + (line.seconds ?? 0), 0);

/**
 * When a run will end, by the clock of this computer; null if that is not known.
 * @param {{state?: string, eta?: number}} run
 * @param {Date} now
 */
export function endTime(run, now) {
  return isActive(run.state) && run.state !== "paused" && run.eta ? new Date(now.getTime() + 1000 * run.eta) : null;
}
