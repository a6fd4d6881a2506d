// @ts-check
// How alike the images of a run's checkpoints are to its training images, with 95 % intervals. Pure functions.

import { spread } from "../format.js";
import { t } from "../texts.js";

/**
 * @typedef {{step: number, likeness: number, low: number | null, high: number | null, by: string, source: string}} Likeness
 * by: the encoder, whose numbers do not compare with another's; source: samples (made while training) or sweep
 * @typedef {import("./chart.js").Series} Series
 */

const NAMES = new Map([["sweep", t("sweep")], ["samples", t("samples while training")]]);
const COLOURS = ["#3fae7a", "#b06ad8", "#e08a1e", "#5b93f0"];

/**
 * One series for each source and encoder, each point with its interval.
 * @param {Likeness[]} points
 * @returns {Series[]}
 */
export function likenessSeries(points) {
  const encoders = new Set(points.map((one) => one.by));
  /** @type {Map<string, import("../series.js").Point[]>} */
  const found = new Map();
  for (const { step, likeness, low, high, by, source } of points) {
    const name = NAMES.get(source) ?? source;
    const label = encoders.size > 1 ? `${name} (${by})` : name;
    found.set(label, [...(found.get(label) ?? []), { step, value: likeness, low, high }]);
  }
  return [...found].map(([label, series], place) => ({ label, colour: COLOURS[place % COLOURS.length], points: series, isDots: true }));
}

/**
 * What is known of a step, in words; a sweep has more images than the samples of a run and goes first. "" without any.
 * @param {Likeness[]} points
 * @param {number} step
 */
export function likenessAt(points, step) {
  const here = points.filter((one) => one.step === step);
  const one = here.find(({ source }) => source === "sweep") ?? here.at(-1);
  return one ? t("image similarity {value}", { value: spread(one.likeness, one.low, one.high) }) : "";
}
