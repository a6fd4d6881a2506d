import assert from "node:assert/strict";
import { test } from "node:test";
import { groupsOf, isComplete, nameFor, nameOf, usualModel } from "../../web/workbench/wishes.js";

const wish = { model: "checkpoints/a.safetensors", goal: "character", name: "cat", trigger: "", folder: "loom/cats", references: "", parts: [] };

test("models stand under the folder that ComfyUI has them in, the demo last", () => {
  const groups = groupsOf(["diffusion_models/b/c.safetensors", "checkpoints/a.safetensors", "demo"]);
  assert.deepEqual(groups.map(({ label }) => label), ["Checkpoints", "Diffusion models", "Without a model file"]);
  assert.deepEqual(groups[1].models, [{ value: "diffusion_models/b/c.safetensors", text: "b/c.safetensors" }]);
  assert.deepEqual(groupsOf(["demo"]).length, 1);
});

test("a model is called by its path below the folder that lists it", () => {
  assert.equal(nameOf("diffusion_models/turbo/z.safetensors"), "turbo/z.safetensors");
});

test("the first real model is chosen, the demo only where there is no other", () => {
  assert.equal(usualModel(["checkpoints/a", "demo"]), "checkpoints/a");
  assert.equal(usualModel(["demo"]), "demo");
  assert.equal(usualModel([]), "");
});

test("a run is named after its trigger, by letters that a folder may have", () => {
  assert.equal(nameFor("ohwx", "my-lora"), "ohwx");
  assert.equal(nameFor("  my cat/<b> ", "x"), "my-cat-b");
  assert.equal(nameFor("Кошка 猫", "x"), "Кошка-猫");
  assert.equal(nameFor("../", "my-lora-2"), "my-lora-2");
});

test("a graph needs a model, images, a name, every file, and for an edit the images before it", () => {
  assert.equal(isComplete(wish), true);
  for (const changed of [{ model: "" }, { folder: "" }, { name: "" }, { parts: ["a", ""] }, { goal: "edit" }]) {
    assert.equal(isComplete({ ...wish, ...changed }), false, JSON.stringify(changed));
  }
  assert.equal(isComplete({ ...wish, goal: "edit", references: "before" }), true);
  assert.equal(isComplete({ ...wish, model: "demo", folder: "" }), true, "the demo has images of its own");
});
