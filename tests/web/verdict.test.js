import assert from "node:assert/strict";
import test from "node:test";
import { growth } from "../../web/verdict.js";

const points = (values) => values.map((value, index) => ({ step: index + 1, value }));
/** Losses of a healthy run: noise of the timesteps, 0.1 to 0.9, the same at every test. */
const noise = (count, level = 0.5) => Array.from({ length: count }, (_, i) => level * (0.2 + ((i * 37) % 101) / 62));

test("a loss that explodes at the second step is seen, though only one value lies before it", () => {
  const lost = points([0.61, 4.6, ...noise(298, 1).map((value) => value + 1)]);
  assert.ok(growth(lost, []) > 2);
});

test("a loss that rises late is seen", () => {
  assert.ok(growth(points([...noise(200), ...noise(100, 2)]), []) > 2);
});

test("a healthy run is not called lost, whatever its first value", () => {
  for (const first of [0.1, 0.5, 0.9]) assert.equal(growth(points([first, ...noise(300)]), []), 0);
  assert.equal(growth(points([0.1, 5, 5]), []), 0); // too few to tell
  assert.equal(growth([], []), 0);
});

test("the validation loss decides where it was measured before the first step", () => {
  const at = (step, value) => ({ step, value });
  assert.equal(growth(points(noise(100, 1)), [at(0, 0.4), at(100, 0.3)]), 0);
  assert.equal(growth(points(noise(100, 1)), [at(0, 0.4), at(100, 1)]), 2.5);
});
