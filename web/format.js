// @ts-check
// Numbers as people read them. Pure functions.

import { t } from "./texts.js";

/**
 * "0.42 s/step", "3.1 s/step"; empty while nothing is known.
 * @param {number} seconds
 */
export function pace(seconds) {
  if (!Number.isFinite(seconds) || seconds <= 0) return "";
  if (seconds < 1) return t("{n} s/step", { n: seconds.toFixed(2) });
  return t("{n} s/step", { n: seconds.toFixed(seconds < 10 ? 1 : 0) });
}

/**
 * "45 s", "12 min", "3 h 05 min", "2 d 4 h"; empty while nothing is known.
 * @param {number} seconds
 */
export function duration(seconds) {
  if (!Number.isFinite(seconds) || seconds < 0) return "";
  if (seconds < 90) return t("{n} s", { n: Math.round(seconds) });
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return t("{n} min", { n: minutes });
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return t("{h} h {m} min", { h: hours, m: String(minutes % 60).padStart(2, "0") });
  return t("{d} d {h} h", { d: Math.floor(hours / 24), h: hours % 24 });
}

/**
 * Three significant digits: "0.0431", "12.3"; empty for what is no number.
 * @param {number} value
 */
export function loss(value) {
  return Number.isFinite(value) ? String(Number(value.toPrecision(3))) : "";
}

/**
 * "12,000" in the reader's own way.
 * @param {number | null | undefined} value
 */
export function count(value) {
  return Number(value ?? 0).toLocaleString();
}

/**
 * "0.54 (0.52 to 0.56)": a value with its interval; the value alone without one.
 * @param {number} value
 * @param {number | null | undefined} low
 * @param {number | null | undefined} high
 */
export const spread = (value, low, high) => (low == null || high == null ? loss(value) : t("{value} ({low} to {high})", { value: loss(value), low: loss(low), high: loss(high) }));
