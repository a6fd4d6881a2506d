// @ts-check
// The record of a run, metrics.jsonl, as series and facts. Pure functions.

import { isActive } from "../runs.js";
import { t } from "../texts.js";

const MINUTE = /** @type {const} */ ({ hour: "2-digit", minute: "2-digit" });

/**
 * @typedef {import("../series.js").Point} Point
 * @typedef {import("../runs.js").MetricsLine & {learning_rate?: number, grad_norm?: number, drift?: number, seconds?: number, epoch?: number, vram_gb?: number, ram_gb?: number}} Line
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
 * @param {"loss" | "held_out" | "learning_rate" | "grad_norm" | "drift" | "epoch" | "vram_gb" | "ram_gb"} key
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

/**
 * How often a run has gone through its images, of how often it will: "3.2 / 12.5"; "" of a run that did not record it.
 * @param {{total?: number}} run
 * @param {Line[]} lines
 */
export function epochs({ total = 0 }, lines) {
  const last = series(lines, "epoch").at(-1);
  if (!last) return "";
  /** @param {number} value */
  const text = (value) => String(Number(value.toPrecision(3)));
  return total > last.step ? `${text(last.value)} / ${text((last.value * total) / last.step)}` : text(last.value);
}

/**
 * Memory that a run takes, and the most that it took: "7.9 GB, at most 8.4"; "" where it was not recorded.
 * @param {Line[]} lines
 * @param {"vram_gb" | "ram_gb"} key
 */
export function gigabytes(lines, key) {
  const values = series(lines, key).map((point) => point.value);
  const [last, most] = [values.at(-1), values.reduce((a, b) => Math.max(a, b), 0)].map((value) => value?.toFixed(value < 10 ? 2 : 1));
  if (last === undefined) return "";
  return last === most ? `${last} GB` : t("{last} GB, at most {most}", { last, most: String(most) });
}

/**
 * A time of today as the clock shows it, another one with its day; "" for none.
 * @param {number | undefined} seconds since 1970
 * @param {Date} now
 */
export function clock(seconds, now = new Date()) {
  if (!seconds) return "";
  const time = new Date(1000 * seconds);
  const isToday = time.toDateString() === now.toDateString();
  return isToday ? time.toLocaleTimeString([], MINUTE) : time.toLocaleString([], { ...MINUTE, day: "numeric", month: "short" });
}
