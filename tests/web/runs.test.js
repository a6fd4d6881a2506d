import assert from "node:assert/strict";
import test from "node:test";
import { belongs, endNotice, filePath, isActive, newestSample, RunView, runPath, STATES } from "../../web/runs.js";

test("a node shows its run, also as name-2, and no other", () => {
  for (const run of ["cat", "cat-2", "cat-17"]) assert.ok(belongs(run, "cat"), run);
  for (const run of ["cat-", "cat-2b", "cats", "cat-2-3", "", "my-cat", "cat-x-2"]) assert.ok(!belongs(run, "cat"), run);
});

test("names and files reach the server whole", () => {
  assert.equal(runPath("a b/c?"), "/lora_loom/runs/a%20b%2Fc%3F");
  assert.equal(filePath("cat", "samples/step 1#.png"), "/lora_loom/runs/cat/files/samples/step%201%23.png");
});

test("the newest sample is the first file of the highest step, by number and not by spelling", () => {
  const files = ["samples/step-000100-0.png", "samples/step-1000000-1.png", "samples/step-1000000-0.png", "samples/step-000200-0.png"];
  assert.deepEqual(newestSample(files), { step: 1_000_000, file: "samples/step-1000000-1.png" });
  assert.equal(newestSample(["curve.png"]), null);
  assert.equal(newestSample([]), null);
});

const RECORD = { name: "cat", state: "running", step: 30, total: 120, samples: ["samples/step-000010-0.png"] };
const LINES = [{ step: 10, loss: 0.5 }, { step: 10, held_out: 0.7 }, { step: 20, loss: 0.4 }];

function loaded(more = {}) {
  const view = new RunView("cat");
  view.load({ ...RECORD, ...more }, LINES);
  return view;
}

test("a record fills the panel", () => {
  const view = loaded();
  assert.deepEqual(view.losses, [{ step: 10, value: 0.5 }, { step: 20, value: 0.4 }]);
  assert.deepEqual(view.validation, [{ step: 10, value: 0.7 }]);
  assert.deepEqual(view.sample, { step: 10, file: "samples/step-000010-0.png" });
  assert.equal(view.progress, 0.25);
});

test("which layers train and which are left out is said by their role", () => {
  const layers = { trained: { attention: 60, mlp: 90 }, left_out: { modulation: 30, outside: 28 }, outside: ["x_embedder", "final_layer"] };
  assert.deepEqual(loaded({ layers }).layers, {
    count: "150 of 208", trained: "60 attention, 90 feed-forward", leftOut: "30 modulation, 28 around the blocks (x_embedder, final_layer)",
  });
  assert.deepEqual(loaded().layers, { count: "", trained: "", leftOut: "" }, "a run of an earlier version");
});

test("the validation loss stands next to the base's", () => {
  const view = loaded();
  assert.deepEqual(view.validationLoss, { now: 0.7, base: null }, "the base was not measured");
  view.load(RECORD, [{ step: 0, held_out: 0.9 }]);
  assert.deepEqual(view.validationLoss, { now: 0.9, base: null }, "it is the base");
  view.heard("step", { step: 20, held_out: 0.5 });
  assert.deepEqual(view.validationLoss, { now: 0.5, base: 0.9 });
  view.load(RECORD, []);
  assert.equal(view.validationLoss, null);
});

test("no run on the server takes the state away and the note with it", () => {
  const view = loaded();
  view.note = "saving";
  view.load(null, []);
  assert.equal(view.run, null);
  assert.equal(view.note, "");
  assert.equal(view.progress, 0);
  assert.equal(view.buttons.any, false);
});

test("a step's event moves the run and adds its loss to the right series", () => {
  const view = loaded();
  assert.equal(view.heard("step", { step: 31, loss: 0.3 }), false);
  assert.equal(view.run.step, 31);
  assert.equal(view.run.state, "running");
  assert.deepEqual(view.losses.at(-1), { step: 31, value: 0.3 });
  view.heard("step", { step: 31, held_out: 0.6 });
  assert.deepEqual(view.validation.at(-1), { step: 31, value: 0.6 });
  assert.equal(view.losses.length, 3);
  view.heard("step", { step: 32, loss: Number.NaN });
  assert.equal(view.losses.length, 3);
});

test("a sample that forms is shown until it is made, and only a picture is taken for one", () => {
  const view = loaded();
  const image = "data:image/jpeg;base64,AAAA/+==";
  assert.equal(view.heard("forming", { step: 40, number: 2, of: 3, image }), false);
  assert.equal(view.heard("page", { name: "cat", file: "strips/strip.html" }), true, "its compare page is worth fetching");
  assert.deepEqual(view.forming, { step: 40, number: 2, of: 3, image });
  view.heard("log", { text: "waiting" });
  assert.equal(view.forming?.number, 2);
  view.heard("sample", { step: 40, files: ["samples/step-000040-0.png"] });
  assert.equal(view.forming, null);
  for (const other of ["https://example.com/a.jpg", "data:text/html;base64,AAAA", 'data:image/jpeg;base64,A" onload="x', undefined]) {
    view.heard("forming", { step: 41, image: other });
    assert.equal(view.forming, null);
  }
  view.heard("forming", { step: 41, image });
  view.heard("step", { step: 42, loss: 0.5 });
  assert.equal(view.forming, null);
});

test("samples and logs are kept; only the end of a run asks for its record", () => {
  const view = loaded();
  assert.equal(view.heard("sample", { step: 40, files: ["samples/step-000040-0.png", "b.png"] }), false);
  assert.deepEqual(view.sample, { step: 40, file: "samples/step-000040-0.png" });
  assert.equal(view.heard("log", { text: "waiting" }), false);
  assert.equal(view.note, "waiting");
  assert.equal(view.heard("run", { state: "paused" }), false);
  assert.equal(view.heard("run", { state: "finished" }), true);
});

test("progress is never more than the whole", () => assert.equal(loaded({ step: 500 }).progress, 1));

test("every state has its buttons", () => {
  const shown = (state) => {
    const { any, pause, resume, stop, save } = loaded({ state }).buttons;
    if (!any) return "none";
    const names = [];
    if (!pause.hidden) names.push(pause.disabled ? "(pause)" : "pause");
    if (!resume.hidden) names.push(resume.label.toLowerCase());
    if (!stop.hidden) names.push(stop.disabled ? "(stop)" : "stop");
    if (!save.hidden) names.push(save.disabled ? "(save)" : "save");
    return names.join(" ");
  };
  assert.deepEqual(Object.fromEntries(Object.keys(STATES).map((state) => [state, shown(state)])), {
    queued: "pause stop (save)",
    caching: "pause stop save",
    running: "pause stop save",
    yielding: "pause stop save",
    paused: "resume stop save",
    stopping: "(pause) (stop) (save)",
    finished: "none",
    failed: "continue",
    stopped: "continue",
    interrupted: "continue",
    damaged: "none",
  });
  assert.equal(isActive(undefined), false);
  assert.equal(loaded({ can_sample: true }).buttons.sample.hidden, false);
  assert.equal(loaded().buttons.sample.hidden, true);
});

test("a button answers at once, and the step that follows ends the waiting", () => {
  const view = loaded();
  view.ask("save");
  assert.equal(view.note, "Saving after this step …");
  assert.equal(view.buttons.save.disabled, true);
  assert.equal(view.buttons.pause.disabled, false);
  view.heard("step", { step: 31, loss: 0.3 });
  assert.equal(view.buttons.save.disabled, false);
  assert.equal(view.note, "");
  view.ask("pause");
  view.heard("step", { step: 32, loss: 0.3 });
  assert.equal(view.buttons.pause.disabled, true);
  view.heard("run", { state: "paused" });
  assert.equal(view.asked, "");
});

test("without a connection nothing can be asked", () => {
  const view = loaded();
  view.isOffline = true;
  assert.equal(view.buttons.any, false);
  view.load(RECORD, LINES);
  assert.equal(view.buttons.any, true);
});

test("a run that has ended names its LoRA files as LoraLoader does", () => {
  const more = { lora: "cat.safetensors", best: "cat-000020.safetensors", lora_folder: "lora_loom/cat/", loras: ["loras/cat.safetensors", "loras/cat-000020.safetensors"] };
  assert.deepEqual(loaded(more).results, []);
  const names = (state, changes) => loaded({ ...more, state, ...changes }).results.map((result) => result.name);
  assert.deepEqual(names("finished", {}), ["lora_loom/cat/cat.safetensors", "lora_loom/cat/cat-000020.safetensors"]);
  assert.deepEqual(names("finished", { step: 20 }), ["lora_loom/cat/cat.safetensors"]); // the best is the last one
  assert.deepEqual(names("stopped", { best: "cat.safetensors" }), ["lora_loom/cat/cat.safetensors"]);
  assert.deepEqual(names("finished", { best: "gone.safetensors", loras: [] }), []);
});

test("only a finished run is judged by its loss", () => {
  const view = loaded({ state: "finished" });
  view.validation = [{ step: 0, value: 1 }, { step: 9, value: 3 }];
  assert.equal(view.growth, 3);
  view.run.state = "running";
  assert.equal(view.growth, 0);
});

test("what a run took where memory ran out stands above what the data doctor found", () => {
  assert.equal(loaded({}).remark, "");
  assert.equal(loaded({ adapted: ["memory ran out: …"] }).remark, "memory ran out: …");
  assert.equal(loaded({ adapted: ["memory ran out: …"], doctor: ["heading"] }).remark, "memory ran out: …");
  assert.equal(loaded({ adapted: ["memory ran out: …"], doctor: ["heading", "finding"] }).remark, "memory ran out: …\nheading\nfinding");
});

test("the page speaks up when a run ends, and only then", () => {
  assert.equal(endNotice({ state: "finished", name: "cat", step: 9 }).detail, "cat: 9 steps");
  assert.deepEqual(endNotice({ state: "failed", name: "cat", error: "no memory" }), { severity: "error", summary: "Training failed", detail: "cat: no memory" });
  for (const state of ["running", "paused", "queued", "stopped"]) assert.equal(endNotice({ state, name: "cat" }), null);
});

test("a run that has ended says how many of its modules it has changed", () => {
  const view = new RunView("a");
  assert.equal(view.changed, "");
  view.load({ state: "finished", movement: { modules: 120, unmoved: ["x", "y"] } }, []);
  assert.equal(view.changed, "118 of 120");
  assert.equal(view.unchanged, "x, y");
  view.load({ state: "running", movement: null }, []);
  assert.equal(view.changed, "");
  assert.equal(view.unchanged, "");
});

test("a name that another run has is said in short, until a run begins", () => {
  const view = loaded();
  view.refused("custom_nodes.lora-loom.trainer.errors.NameTakenError", "run cat exists with another configuration: rank: 4 -> 8. Only steps may change; set existing_run to new\n");
  assert.equal(view.clash, "run cat exists with another configuration: rank: 4 -> 8");
  view.heard("step", { step: 31 });
  assert.notEqual(view.clash, "");
  view.heard("run", { state: "queued" });
  assert.equal(view.clash, "");
});

test("other errors are left to ComfyUI", () => {
  const view = loaded();
  view.refused("lora_loom.trainer.errors.NameTakenError", "taken");
  view.refused("lora_loom.trainer.errors.ConfigError", "rank = 0");
  assert.equal(view.clash, "");
});

test("how alike the samples are comes out of the record, of the average where there is one", () => {
  const view = new RunView("cat");
  const lines = [
    { step: 10, likeness: 0.5, likeness_low: 0.4, likeness_high: 0.6, likeness_by: "clip" },
    { step: 20, likeness: 0.5, likeness_ema: 0.7 },
    { step: 20, loss: 0.1 },
  ];
  view.load(RECORD, lines);
  assert.deepEqual(view.likeness, [{ step: 10, value: 0.5, low: 0.4, high: 0.6 }, { step: 20, value: 0.7, low: null, high: null }]);
  assert.deepEqual(loaded().likeness, []);
});
