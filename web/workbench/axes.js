// @ts-check
// Where values lie on a chart, which of them are labelled, and which one is under the pointer. Pure functions.

import { loss } from "../format.js";
import { usualRange } from "../series.js";

/**
 * @typedef {import("../series.js").Point} Point
 * @typedef {import("../series.js").Box} Box
 * @typedef {object} Axes
 * @property {(step: number) => number} x
 * @property {(value: number) => number} y a value outside the range lies on the edge
 * @property {(x: number) => number} stepAt
 * @property {[number, number]} values lower and upper end
 * @property {[number, number]} steps
 */

/**
 * @param {Point[]} points most of which are to be seen
 * @param {[number, number]} steps first and last
 * @param {Box} box
 * @param {boolean} isLog
 * @param {Point[]} [measured] all of which are to be seen
 * @returns {Axes}
 */
export function axes(points, steps, box, isLog, measured = []) {
  const to = isLog ? Math.log10 : (/** @type {number} */ value) => value;
  /** @param {Point[]} all */
  const seen = (all) => all.filter((point) => point.step >= steps[0] && point.step <= steps[1] && (!isLog || point.value > 0)).map((point) => to(point.value));
  const [low, high] = usualRange(seen(points), seen(measured));
  const [first, last] = steps[0] < steps[1] ? steps : [steps[0], steps[0] + 1];
  const width = box.right - box.left;
  return {
    x: (step) => box.left + ((step - first) / (last - first)) * width,
    y: (value) => {
      const place = isLog && value <= 0 ? low : to(value);
      return box.bottom - ((Math.min(Math.max(place, low), high) - low) / (high - low)) * (box.bottom - box.top);
    },
    stepAt: (x) => first + ((x - box.left) / width) * (last - first),
    values: isLog ? [10 ** low, 10 ** high] : [low, high],
    steps: [first, last],
  };
}

/**
 * Round numbers inside a range: 1, 2 or 5 times a power of ten apart.
 * @param {number} low
 * @param {number} high
 * @param {number} most
 */
export function ticks(low, high, most) {
  if (!(high > low)) return [low];
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5, 10].find((factor) => factor * power >= rough) ?? 10);
  const found = [];
  for (let number = Math.ceil(low / step); number * step <= high * (1 + 1e-12); number += 1) found.push(Number((number * step).toPrecision(12)));
  return found;
}

/**
 * Labels of ticks, with as many digits as tell them apart.
 * @param {number[]} values
 */
export function tickTexts(values) {
  const short = values.map(loss);
  return new Set(short).size === values.length ? short : values.map((value) => String(Number(value.toPrecision(6))));
}

/**
 * The same on a logarithmic axis: 1, 2 and 5 times powers of ten; even steps where fewer than two of them are inside.
 * @param {number} low above 0
 * @param {number} high
 * @param {number} most
 */
export function logTicks(low, high, most) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
    for (const factor of [1, 2, 5]) {
      const value = Number((factor * 10 ** power).toPrecision(12));
      if (value >= low && value <= high) found.push(value);
    }
  }
  if (found.length < 2) return ticks(low, high, most);
  const every = Math.ceil(found.length / most);
  return found.filter((_, place) => place % every === 0);
}

/**
 * The point nearest to a step; undefined without any.
 * @param {Point[]} points in order of step
 * @param {number} step
 * @returns {Point | undefined}
 */
export function nearest(points, step) {
  let [low, high] = [0, points.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle].step < step) low = middle;
    else high = middle;
  }
  const [before, after] = [points[low], points[high]];
  return before && step - before.step <= after.step - step ? before : after;
}
