// @ts-check
// Series of losses: what arrives, what the curve shows of it, and where that lies on the canvas. Pure functions.

/**
 * @typedef {{step: number, value: number, low?: number | null, high?: number | null}} Point low, high: ends of its interval, where there is one
 * @typedef {{left: number, right: number, top: number, bottom: number}} Box in CSS pixels
 * @typedef {object} Scale
 * @property {number} low value at the lower edge of the box
 * @property {number} high value at its upper edge
 * @property {number} first step at its left edge
 * @property {number} last step at its right edge
 * @property {(step: number) => number} x
 * @property {(value: number) => number} y a value outside the range lies on the edge
 */

/**
 * Add a point in place. A run that was continued begins at its checkpoint: what lies at this step or after it was taken
 * back, and goes.
 * @param {Point[]} points
 * @param {Point} point
 */
export function append(points, point) {
  while (points.length && points[points.length - 1].step >= point.step) points.pop();
  points.push(point);
}

/**
 * Exponential average without a start at zero, over any spacing of steps: a value's weight halves every `halfLife` steps.
 * @param {Point[]} points in order of step
 * @param {number} halfLife
 * @returns {number[]} the smoothed values
 */
export function smoothed(points, halfLife) {
  let sum = 0;
  let weight = 0;
  let last = points.length ? points[0].step : 0;
  return points.map(({ step, value }) => {
    const keep = 0.5 ** (Math.max(step - last, 1) / halfLife);
    last = step;
    sum = keep * sum + (1 - keep) * value;
    weight = keep * weight + (1 - keep);
    return sum / weight;
  });
}

/**
 * The range most values lie in, so that one outlier does not flatten the curve, and all measurements; above 0 where all values are.
 * @param {number[]} values
 * @param {number[]} [measured] few, each of which is to be seen where it lies
 * @returns {[low: number, high: number]}
 */
export function usualRange(values, measured = []) {
  const kept = measured.filter(Number.isFinite);
  const sorted = [...values.filter(Number.isFinite), ...kept].sort((a, b) => a - b);
  if (!sorted.length) return [0, 1];
  /** @param {number} share */
  const at = (share) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
  const [low, high] = [Math.min(at(0.01), ...kept), Math.max(at(0.98), ...kept)];
  const room = (high - low || Math.abs(high) || 1) * 0.12;
  return [sorted[0] > 0 ? Math.max(low - room, 0) : low - room, high + room];
}

/**
 * At most `most` points: of each group its lowest and highest value, so that spikes stay visible.
 * @param {Point[]} points
 * @param {number} most
 * @returns {Point[]}
 */
export function thinned(points, most) {
  if (points.length <= most) return points;
  const kept = [];
  const size = Math.ceil((2 * points.length) / most);
  for (let start = 0; start < points.length; start += size) {
    const group = points.slice(start, start + size);
    const low = group.reduce((a, b) => (b.value < a.value ? b : a));
    const high = group.reduce((a, b) => (b.value > a.value ? b : a));
    kept.push(...(low.step <= high.step ? [low, high] : [high, low]).slice(0, low === high ? 1 : 2));
  }
  return kept;
}

/**
 * Where values with intervals lie in a box of their own: all of them, intervals too, with room above and below.
 * @param {Point[]} points at least one
 * @param {Box} box
 * @returns {(value: number) => number}
 */
export function ownHeight(points, box) {
  const ends = points.flatMap(({ value, low, high }) => [value, low ?? value, high ?? value]);
  const [least, most] = [Math.min(...ends), Math.max(...ends)];
  const room = (most - least || Math.abs(most) || 1) * 0.15;
  return (value) => box.bottom - ((value - least + room) / (most - least + 2 * room)) * (box.bottom - box.top);
}

/**
 * Where a step and a value lie in the box. The whole run is as wide as the box, so the curve grows into it.
 * @param {Point[]} losses at least one
 * @param {Point[]} validation
 * @param {number} total steps of the whole run; 0 while it is not known
 * @param {Box} box
 * @returns {Scale}
 */
export function scale(losses, validation, total, box) {
  const [values, measured] = [losses, validation].map((points) => points.map((point) => point.value));
  const [low, high] = usualRange(values, measured);
  const first = Math.min(losses[0].step, validation[0]?.step ?? Number.POSITIVE_INFINITY);
  const last = Math.max(total, losses[losses.length - 1].step, first + 1);
  return {
    low, high, first, last,
    x: (step) => box.left + ((step - first) / (last - first)) * (box.right - box.left),
    y: (value) => box.bottom - ((Math.min(Math.max(value, low), high) - low) / (high - low)) * (box.bottom - box.top),
  };
}
