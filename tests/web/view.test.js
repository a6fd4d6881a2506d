import assert from "node:assert/strict";
import test from "node:test";
import "./comfyui.js";

const { around, placed } = await import("../../web/view.js");

/** Where a point of the graph is in the window. */
const at = ({ scale, offset }, x, y) => [(x + offset[0]) * scale, (y + offset[1]) * scale].map(Math.round);

test("a graph that fits lies in the middle of the room, no larger than it is", () => {
  const shown = placed({ left: -100, top: -50, width: 400, height: 200 }, { left: 500, top: 60, width: 1000, height: 700 });
  assert.equal(shown.scale, 1);
  assert.deepEqual(at(shown, -100, -50), [800, 310]);
});

test("a larger one is made smaller until it fits", () => {
  const shown = placed({ left: 0, top: 0, width: 2000, height: 1000 }, { left: 300, top: 60, width: 1600, height: 1000 });
  assert.equal(shown.scale, 0.8);
  assert.deepEqual([at(shown, 0, 0), at(shown, 2000, 1000)], [[300, 160], [1900, 960]]);
});

test("in a small window it stays readable, and begins where the sidebar ends", () => {
  const shown = placed({ left: -15, top: -75, width: 2000, height: 1100 }, { left: 390, top: 86, width: 880, height: 700 });
  assert.equal(shown.scale, 0.7);
  assert.deepEqual(at(shown, -15, -75), [390, 86]);
});

test("the box around nodes and groups", () => {
  assert.deepEqual(around([[0, 10, 5, 5], [-3, 0, 1, 40]]), { left: -3, top: 0, width: 8, height: 40 });
});
