import assert from "node:assert/strict";
import test from "node:test";
import { axes, logTicks, nearest, ticks, tickTexts } from "../../web/workbench/axes.js";
import { likenessAt, likenessSeries } from "../../web/workbench/likeness.js";
import { copyName, RunList } from "../../web/workbench/run_list.js";
import { loraFiles, sampleTable } from "../../web/workbench/samples.js";
import { clock, elapsed, endTime, epochs, gigabytes, joined, series } from "../../web/workbench/timeline.js";

function listed() {
  const list = new RunList();
  const runs = [
    { name: "old", state: "finished", updated: 1 },
    { name: "second", state: "queued", updated: 9 },
    { name: "now", state: "running", updated: 3 },
    { name: "newer", state: "failed", updated: 8 },
    { name: "first", state: "queued", updated: 2 },
  ];
  list.load({ runs, queue: ["first", "second"], trash: 2 });
  return list;
}

test("what trains comes first, then the queue in its order, then the newest", () => {
  assert.deepEqual(listed().sorted.map((run) => run.name), ["now", "first", "second", "newer", "old"]);
});

test("every word of a search has to be in the name", () => {
  const list = listed();
  assert.deepEqual(list.found("NEW").map((run) => run.name), ["newer"]);
  assert.deepEqual(list.found("e w").map((run) => run.name), ["newer"]);
  assert.deepEqual(list.found("zebra"), []);
});

test("a note is searched like a name, and a star is found", () => {
  const list = new RunList();
  list.load({ runs: [{ name: "a", state: "finished", note: "Best face", starred: true }, { name: "b", state: "finished", note: "" }] });
  assert.deepEqual(list.found("face best").map(({ name }) => name), ["a"]);
  assert.deepEqual(list.found("★").map(({ name }) => name), ["a"]);
  assert.deepEqual(list.found("b").map(({ name }) => name).sort(), ["a", "b"]);
});

test("a run that is new or changes its state is asked for; a step is not", () => {
  const list = listed();
  assert.equal(list.heard("step", { name: "now", state: "running", step: 5 }), false);
  assert.equal(list.runs.get("now").step, 5);
  assert.equal(list.heard("run", { name: "now", state: "finished" }), true);
  assert.equal(list.heard("run", { name: "unknown", state: "queued" }), true);
  list.heard("sample", { name: "old", files: ["samples/step-000004-0.png"] });
  assert.equal(list.runs.get("old").sample, "samples/step-000004-0.png");
  assert.equal(list.heard("log", { name: "never" }), false);
  assert.ok(!list.runs.has("never"));
});

test("the badge counts what is active, and a failure is louder", () => {
  const list = listed();
  assert.equal(list.badge, "3");
  list.heard("run", { name: "now", state: "failed" });
  assert.equal(list.badge, "!");
  list.load({ runs: [] });
  list.failures.clear();
  assert.equal(list.badge, null);
});

test("a copy gets a name that is free", () => {
  assert.equal(copyName("cat", ["cat"]), "cat-copy");
  assert.equal(copyName("cat", ["cat", "cat-copy", "cat-copy-2"]), "cat-copy-3");
});

test("samples are a table of steps and prompts, by number", () => {
  const table = sampleTable(["samples/step-000100-1.png", "samples/step-000000-0.png", "samples/step-1000000-0.png", "curve.png"]);
  assert.deepEqual([table.steps, table.prompts], [[0, 100, 1_000_000], [0, 1]]);
  assert.equal(table.file(100, 1), "samples/step-000100-1.png");
  assert.equal(table.file(100, 0), undefined);
});

test("what a continued run does again replaces what it did", () => {
  const lines = [{ step: 1, loss: 1 }, { step: 2, loss: 2 }, { step: 3, loss: 3 }];
  assert.deepEqual(joined(lines, [{ step: 2, loss: 9 }]), [{ step: 1, loss: 1 }, { step: 2, loss: 9 }]);
  assert.equal(joined(lines, []), lines);
});

test("a series has the steps that have the value, as a number", () => {
  const lines = [{ step: 0, held_out: 2 }, { step: 1, loss: 1, seconds: 2 }, { step: 2, loss: Number.NaN, seconds: 3 }];
  assert.deepEqual(series(lines, "loss"), [{ step: 1, value: 1 }]);
  assert.deepEqual(series(lines, "held_out"), [{ step: 0, value: 2 }]);
  assert.equal(elapsed(lines), 5);
});

test("only a run that moves has an end", () => {
  const now = new Date(0);
  assert.equal(endTime({ state: "running", eta: 60 }, now).getTime(), 60_000);
  for (const run of [{ state: "paused", eta: 60 }, { state: "finished", eta: 60 }, { state: "running" }]) assert.equal(endTime(run, now), null);
});

const BOX = { left: 0, right: 100, top: 0, bottom: 100 };
const POINTS = [0.01, 0.1, 1].map((value, step) => ({ step, value }));

test("a step lies where the pointer finds it again", () => {
  const place = axes(POINTS, [0, 2], BOX, false);
  for (const step of [0, 0.5, 2]) assert.ok(Math.abs(place.stepAt(place.x(step)) - step) < 1e-9);
  assert.ok(place.y(1) < place.y(0.1));
});

test("on a logarithmic axis equal factors are equally far apart", () => {
  const place = axes(POINTS, [0, 2], BOX, true);
  assert.ok(Math.abs(place.y(0.01) - place.y(0.1) - (place.y(0.1) - place.y(1))) < 1e-9);
  assert.equal(place.y(0), place.y(place.values[0]), "0 has no logarithm: it lies on the edge");
});

test("zoomed in, the values in sight decide the range", () => {
  const [low, high] = axes(POINTS, [0, 1], BOX, false).values;
  assert.ok(low < 0.01 && high > 0.1 && high < 0.2);
});

test("labels are round numbers inside the range", () => {
  assert.deepEqual(ticks(0, 1000, 5), [0, 200, 400, 600, 800, 1000]);
  assert.deepEqual(ticks(0.1, 0.35, 3), [0.1, 0.2, 0.3]);
  assert.deepEqual(ticks(3, 3, 3), [3]);
  assert.deepEqual(tickTexts([0.1, 0.2]), ["0.1", "0.2"]);
  assert.deepEqual(tickTexts([1.268, 1.27, 1.272]), ["1.268", "1.27", "1.272"]);
  assert.deepEqual(logTicks(0.01, 1, 9), [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1]);
  assert.deepEqual(logTicks(0.31, 0.39, 3), ticks(0.31, 0.39, 3), "no power of ten is near");
});

test("the nearest point is found between, before and behind them all", () => {
  const points = [0, 10, 20].map((step) => ({ step, value: step }));
  for (const [step, found] of [[-5, 0], [4, 0], [6, 10], [14, 10], [16, 20], [99, 20]]) assert.equal(nearest(points, step).step, found);
  assert.equal(nearest([], 3), undefined);
  assert.equal(nearest([{ step: 7, value: 1 }], 3).step, 7);
});

test("LoRA files come by step, each with the validation loss of its step; the last one once, by the name of the run", () => {
  const run = { step: 200, lora: "cat.safetensors", best: "cat-000100.safetensors", lora_folder: "lora_loom/cat/", loras: ["loras/cat.safetensors", "loras/cat-000100.safetensors", "loras/cat-000050.safetensors", "loras/cat-000200.safetensors"] };
  const lines = [{ step: 50, loss: 1 }, { step: 100, held_out: 0.5 }, { step: 200, held_out: 0.75 }];
  assert.deepEqual(loraFiles(run, lines).map((one) => [one.step, one.loss, one.isBest, one.name]), [
    [50, null, false, "lora_loom/cat/cat-000050.safetensors"],
    [100, 0.5, true, "lora_loom/cat/cat-000100.safetensors"],
    [200, 0.75, false, "lora_loom/cat/cat.safetensors"],
  ]);
});

test("an epoch stands next to how many there will be, memory next to the most that was taken", () => {
  const lines = [{ step: 10, epoch: 0.5, ram_gb: 1.5 }, { step: 20, epoch: 1, ram_gb: 1.25 }, { step: 20, held_out: 1 }];
  assert.equal(epochs({ total: 250 }, lines), "1 / 12.5");
  assert.equal(epochs({ total: 20 }, lines), "1");
  assert.equal(epochs({ total: 20 }, [{ step: 1, loss: 1 }]), "", "a run of an earlier version");
  assert.equal(gigabytes(lines, "ram_gb"), "1.25 GB, at most 1.50");
  assert.equal(gigabytes([{ step: 1, vram_gb: 23.46 }], "vram_gb"), "23.5 GB");
  assert.equal(gigabytes(lines, "vram_gb"), "");
});

test("a time of another day says which", () => {
  const noon = new Date(2024, 4, 3, 12, 30);
  assert.match(clock(noon.getTime() / 1000, noon), /^\D*12:30\D*$/);
  assert.match(clock(noon.getTime() / 1000, new Date(2024, 4, 4)), /3/);
  assert.equal(clock(undefined), "");
});

test("image similarity is a series for each source and encoder, with the interval of each point", () => {
  const point = { step: 50, likeness: 0.54, low: 0.52, high: 0.561, by: "ViT-L", source: "sweep" };
  const other = { ...point, likeness: 0.5, low: null, high: null, source: "samples" };
  assert.deepEqual(likenessSeries([other, point]).map(({ label, points }) => [label, points]), [
    ["samples while training", [{ step: 50, value: 0.5, low: null, high: null }]],
    ["sweep", [{ step: 50, value: 0.54, low: 0.52, high: 0.561 }]],
  ]);
  assert.deepEqual(likenessSeries([point, { ...point, by: "ViT-H" }]).map((one) => one.label), ["sweep (ViT-L)", "sweep (ViT-H)"]);
  assert.equal(likenessAt([point, other], 50), "image similarity 0.54 (0.52 to 0.561)");
  assert.equal(likenessAt([other], 50), "image similarity 0.5");
  assert.equal(likenessAt([point], 60), "");
});

test("the list knows how many runs lie in the trash, also of a server that does not say it", () => {
  const list = listed();
  assert.equal(list.trash, 2);
  list.load({ runs: [] });
  assert.equal(list.trash, 0);
});
