import assert from "node:assert/strict";
import test from "node:test";
import { split } from "../../web/report.js";

test("a table ends at the first empty line; without one all is wrapped", () => {
  assert.deepEqual(split("a b\n1 2\n\nTake 2.\n\nMore.", true), ["a b\n1 2", "\n\nTake 2.\n\nMore."]);
  assert.deepEqual(split("one line", true), ["", "one line"]);
  assert.deepEqual(split("a\n\nb", false), ["", "a\n\nb"]);
});
