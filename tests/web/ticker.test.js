import assert from "node:assert/strict";
import test from "node:test";
import "./comfyui.js";

const { tickerText } = await import("../../web/workbench/ticker.js");

test("the ticker says how far the run is, and that nothing is known of it without a server", () => {
  const run = { name: "cat", state: "running", step: 42, total: 100, eta: 720 };
  assert.equal(tickerText(run, 0), "cat 42 %, 12 min left");
  assert.equal(tickerText({ ...run, state: "paused" }, 2), "cat 42 % Paused (+2)");
  assert.equal(tickerText(run, 2, true), "cat: no connection");
});
