import assert from "node:assert/strict";
import { test } from "node:test";
import { remarks, segments, sizeText, summary } from "../../web/workbench/memory_plan.js";

const GB = 1e9;
const plan = {
  device: "cuda:0",
  available: 24 * GB,
  peak: 18 * GB,
  parts: { base: 12 * GB, adapter: 0.25 * GB, optimizer: 0.5 * GB, activations: 5 * GB, encoders: 0, base_loras: 0.2 * GB },
  phases: { caching: 0, training: 17.95 * GB, samples: 18 * GB },
  base: { mode: "resident", why: "it fits", streamed_blocks: 0, blocks: 57 },
  levers: [{ setting: "memory.gradient_checkpointing = true", saves: 3 * GB, same_result: true }, { setting: "model.quantize", saves: 6 * GB, same_result: false }],
};

test("sizes have the unit that a person would take", () => {
  assert.deepEqual([0, 999, 1500, 5.5e6, 11.24 * GB, 1.5 * GB].map(sizeText), ["0 bytes", "999 bytes", "1.5 KB", "5.5 MB", "11 GB", "1.5 GB"]);
});

test("parts are shares of the card, and what takes nothing is left out", () => {
  const parts = segments(plan);
  assert.deepEqual(parts.map(({ label }) => label), ["base model", "activations", "optimizer", "LoRA", "base LoRAs"]);
  assert.equal(parts[0].share, 0.5);
  assert.ok(parts.reduce((sum, { share }) => sum + share, 0) < 1);
});

test("without a limit, and above it, the bar is as long as the peak", () => {
  const sum = (/** @type {object} */ changed) => segments({ ...plan, peak: 17.95 * GB, ...changed }).reduce((total, { share }) => total + share, 0);
  assert.ok(Math.abs(sum({ available: null }) - 1) < 1e-9);
  assert.ok(Math.abs(sum({ available: 8 * GB }) - 1) < 1e-9);
  assert.deepEqual(segments({}), []);
});

test("the words say the peak, the card, and what is streamed", () => {
  assert.equal(summary(plan), "18 GB of 24 GB on cuda:0");
  assert.equal(summary({ ...plan, available: null, device: "cpu", base: { mode: "stream", streamed_blocks: 40, blocks: 57 } }), "18 GB on cpu, 40 of 57 blocks streamed");
});

test("a phase above training is named, and each setting that saves", () => {
  assert.deepEqual(remarks(plan), ["The peak is at samples: 18 GB", "memory.gradient_checkpointing = true would save 3.0 GB", "model.quantize would save 6.0 GB, with another result"]);
  assert.deepEqual(remarks({}), []);
});
