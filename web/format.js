// @ts-check
// Numbers as people read them. Pure functions.

/**
 * "0.42 s/step", "3.1 s/step"; empty while nothing is known.
 * @param {number} seconds
 */
export function pace(seconds) {
  if (!Number.isFinite(seconds) || seconds <= 0) return "";
  if (seconds < 1) return `${seconds.toFixed(2)} s/step`;
  return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s/step`;
}

/**
 * "45 s", "12 min", "3 h 05 min", "2 d 4 h"; empty while nothing is known.
 * @param {number} seconds
 */
export function duration(seconds) {
  if (!Number.isFinite(seconds) || seconds < 0) return "";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${String(minutes % 60).padStart(2, "0")} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
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
export const spread = (value, low, high) => (low == null || high == null ? loss(value) : `${loss(value)} (${loss(low)} to ${loss(high)})`);
