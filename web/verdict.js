// @ts-check
// Whether a run's loss says that it went wrong: it ends far above its start. Pure functions.

/** @typedef {import("./series.js").Point} Point */

const MUCH = 1.5;
const ENOUGH = 20; // losses; with fewer, chance decides

/** @param {number[]} values */
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

/**
 * How many times its start the loss ends at, if that is far above it; else 0.
 *
 * The validation loss before the first step is the best start. The training loss is noisy, and a run may be lost at its
 * second step, so that nearly all losses of the second half have to lie above the first one, or their mean above twice
 * the mean of the first tenth.
 * @param {Point[]} losses
 * @param {Point[]} validation
 */
export function growth(losses, validation) {
  if (validation.length > 1 && validation[0].step === 0) {
    const ratio = validation[validation.length - 1].value / validation[0].value;
    return ratio > MUCH ? ratio : 0;
  }
  const values = losses.map((point) => point.value).filter(Number.isFinite);
  if (values.length < ENOUGH) return 0;
  const tenth = Math.ceil(values.length / 10);
  const end = mean(values.slice(-tenth));
  const begin = mean(values.slice(0, tenth));
  const later = values.slice(values.length >> 1).sort((a, b) => a - b);
  const low = later[Math.floor(0.02 * later.length)];
  if (low > MUCH * values[0]) return end / values[0];
  return end > 2 * begin ? end / begin : 0;
}
