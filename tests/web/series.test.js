import assert from "node:assert/strict";
import test from "node:test";
import { append, ownHeight, scale, smoothed, thinned, usualRange } from "../../web/series.js";

const points = (...values) => values.map((value, index) => ({ step: index + 1, value }));
const near = (a, b) => assert.ok(Math.abs(a - b) < 1e-12, `${a} is not ${b}`);

test("a continued run takes back what lies after its checkpoint", () => {
  const series = points(5, 4, 3, 2);
  append(series, { step: 3, value: 9 });
  assert.deepEqual(series, [{ step: 1, value: 5 }, { step: 2, value: 4 }, { step: 3, value: 9 }]);
  append(series, { step: 4, value: 8 });
  assert.equal(series.length, 4);
});

test("smoothing keeps a constant, from its first value on", () => {
  for (const value of smoothed(points(2, 2, 2, 2), 3)) near(value, 2);
});

test("after one half-life without the old value, its weight is half", () => {
  // Steps 1 and 11, half-life 10: the first value's own weight 1 - 2^(-1/10) is halved once, the second adds 1/2.
  const [, second] = smoothed([{ step: 1, value: 0 }, { step: 11, value: 1 }], 10);
  const first = 1 - 0.5 ** 0.1;
  near(second, 0.5 / (0.5 * first + 0.5));
});

test("gaps count: one step of ten smooths as ten steps of the same value", () => {
  const [, jump] = smoothed([{ step: 0, value: 0 }, { step: 10, value: 1 }], 4);
  const every = [{ step: 0, value: 0 }, ...Array.from({ length: 10 }, (_, index) => ({ step: index + 1, value: 1 }))];
  near(jump, smoothed(every, 4)[10]);
});

test("no points, no values", () => assert.deepEqual(smoothed([], 5), []));

test("the range leaves room round the values", () => {
  const [low, high] = usualRange([1, 2]);
  near(low, 1 - 0.12);
  near(high, 2 + 0.12);
});

test("the range of losses does not reach below 0, that of other values may", () => {
  assert.equal(usualRange([0.1, 5])[0], 0);
  assert.ok(usualRange([-0.1, 5])[0] < -0.1);
});

test("one outlier in a hundred does not stretch the range", () => {
  const values = Array.from({ length: 200 }, (_, index) => index / 200);
  const [, plain] = usualRange(values);
  const [, withOutlier] = usualRange([...values, 1000, 2000]);
  assert.ok(withOutlier < plain + 0.05);
});

test("a measurement among the values lies where it is, not at the edge", () => {
  const values = Array.from({ length: 200 }, (_, index) => 1 + index / 200);
  const [low, high] = usualRange(values, [0.4, 30]);
  assert.ok(low < 0.4 && high > 30);
  assert.ok(usualRange(values, [Number.NaN, Number.POSITIVE_INFINITY])[1] < 3);
  const place = scale(points(...values), [{ step: 0, value: 30 }], 200, BOX);
  assert.ok(place.y(30) > BOX.top, "the base's dot is not cut");
});

test("a range is never empty, and numbers that are none are left out", () => {
  assert.deepEqual(usualRange([]), [0, 1]);
  assert.deepEqual(usualRange([Number.NaN]), [0, 1]);
  const [low, high] = usualRange([3, 3]);
  assert.ok(low < 3 && high > 3);
  const [zeroLow, zeroHigh] = usualRange([0]);
  assert.ok(zeroLow < 0 && zeroHigh > 0);
});

test("thinning keeps order, extremes and the limit", () => {
  const many = Array.from({ length: 10_000 }, (_, index) => ({ step: index, value: Math.sin(index / 50) }));
  many[4321].value = 99;
  many[1234].value = -99;
  const kept = thinned(many, 500);
  assert.ok(kept.length <= 500);
  assert.ok(kept.includes(many[4321]) && kept.includes(many[1234]));
  for (let index = 1; index < kept.length; index += 1) assert.ok(kept[index].step > kept[index - 1].step);
});

test("few points are not thinned, and a flat group gives one point", () => {
  const few = points(1, 2, 3);
  assert.equal(thinned(few, 3), few);
  assert.equal(thinned(points(...Array(100).fill(7)), 10).length, 5);
});

const BOX = { left: 8, right: 108, top: 10, bottom: 60 };

test("the whole run is as wide as the box", () => {
  const place = scale(points(1, 2, 3), [], 101, BOX);
  near(place.x(1), 8);
  near(place.x(101), 108);
  near(place.x(51), 58);
});

test("high values lie above low ones, and what is out of range lies on the edge", () => {
  const place = scale(points(1, 2), [], 10, BOX);
  near(place.y(place.high), 10);
  near(place.y(place.low), 60);
  near(place.y(1e9), 10);
  near(place.y(-1e9), 60);
});

test("validation losses before the first step and after the last one known have their place", () => {
  const place = scale([{ step: 5, value: 1 }], [{ step: 0, value: 4 }], 0, BOX);
  near(place.x(0), 8);
  near(place.x(5), 108);
  assert.ok(place.high > 4);
  const alone = scale([{ step: 7, value: 1 }], [], 0, BOX);
  near(alone.x(7), 8); // one step of no known total: no division by zero
});

test("values with intervals have a height of their own, in which their intervals are whole", () => {
  const box = { left: 0, right: 10, top: 10, bottom: 110 };
  const y = ownHeight([{ step: 1, value: 0.5, low: 0.4, high: 0.6 }, { step: 2, value: 0.7, low: null, high: null }], box);
  assert.ok(y(0.4) < box.bottom && y(0.7) > box.top, "there is room below and above");
  assert.ok(y(0.4) > y(0.5) && y(0.5) > y(0.7), "more is higher");
  const alone = ownHeight([{ step: 1, value: 0.5 }], box)(0.5);
  near(alone, 60);
});
