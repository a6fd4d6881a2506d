import assert from "node:assert/strict";
import test from "node:test";
import { keepMeaning, meanings } from "../../web/before.js";

const DEFINITION = {
  input: {
    required: { steps: ["INT", { default: 1000 }], learning_rate: ["FLOAT", { default: 0.0001 }], model: ["MODEL"] },
    optional: { ema: ["FLOAT", { default: 0 }], rate: [["auto", "value"], { default: "auto", before: "value" }] },
  },
};

/** A node whose values ComfyUI sets from a saved one: as many as there are, in their order. */
function newNode(values = [1000, 0.0001, 0, "auto"]) {
  const names = ["steps", "learning_rate", "ema", "rate"];
  const widgets = names.map((name, place) => ({ name, value: values[place] }));
  const node = { widgets: [{ name: "panel", value: "", serialize: false }, ...widgets] };
  node.onConfigure = (info) => {
    for (const [place, value] of (info?.widgets_values ?? []).entries()) widgets[place].value = value;
  };
  keepMeaning(node, meanings(DEFINITION));
  return { node, value: (name) => widgets.find((widget) => widget.name === name).value };
}

test("an input says what a workflow without it means", () => {
  assert.deepEqual([...meanings(DEFINITION)], [["rate", "value"]]);
  assert.equal(meanings(undefined).size, 0);
});

test("a new node begins at its default", () => {
  const { value } = newNode();
  assert.equal(value("rate"), "auto");
});

test("a workflow of before, which has no value for the input, keeps what it meant", () => {
  const { node, value } = newNode();
  node.onConfigure({ widgets_values: [1500, 0.0004, 0.9] });
  assert.deepEqual([value("steps"), value("learning_rate"), value("ema"), value("rate")], [1500, 0.0004, 0.9, "value"]);
});

test("a workflow that has a value keeps it", () => {
  for (const saved of ["auto", "value"]) {
    const { node, value } = newNode();
    node.onConfigure({ widgets_values: [1500, 0.0004, 0.9, saved] });
    assert.equal(value("rate"), saved);
  }
});

test("a node without later inputs is left alone", () => {
  const node = {};
  keepMeaning(node, meanings({ input: { required: { steps: ["INT", { default: 1 }] } } }));
  assert.equal(node.onConfigure, undefined);
});
