import assert from "node:assert/strict";
import test from "node:test";
import { count, duration, loss, pace } from "../../web/format.js";

const table = (name, format, rows) =>
  test(name, () => {
    for (const [value, text] of rows) assert.equal(format(value), text, String(value));
  });

table("a pace has two digits where they matter, and none while it is unknown", pace, [
  [0.42, "0.42 s/step"], [0.999, "1.00 s/step"], [1, "1.0 s/step"], [3.14, "3.1 s/step"], [10, "10 s/step"], [0, ""], [-1, ""],
  [Number.NaN, ""], [undefined, ""],
]);

table("a duration changes its unit where the smaller one stops to matter", duration, [
  [0, "0 s"], [89.4, "89 s"], [90, "2 min"], [3540, "59 min"], [3600, "1 h 00 min"], [3 * 3600 + 300, "3 h 05 min"],
  [48 * 3600, "2 d 0 h"], [52 * 3600, "2 d 4 h"], [-1, ""], [Number.POSITIVE_INFINITY, ""], [undefined, ""],
]);

table("a loss has three significant digits", loss, [
  [0.043123, "0.0431"], [12.345, "12.3"], [0, "0"], [0.1, "0.1"], [Number.NaN, ""], [undefined, ""],
]);

test("a count has all its digits, whatever the reader puts between them", () => {
  const digits = (value) => count(value).replace(/\D/g, "");
  assert.equal(digits(12000), "12000");
  assert.equal(digits(0), "0");
  assert.equal(digits(undefined), "0");
  assert.equal(digits(null), "0");
});
