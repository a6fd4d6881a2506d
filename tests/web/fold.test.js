import assert from "node:assert/strict";
import test from "node:test";
import { foldAdvanced, foldable, refold } from "../../web/fold.js";

globalThis.window = {};

/** A node as the canvas knows it: a row of 24 pixels for each widget that it lays out. */
function newNode() {
  const widgets = [{ name: "steps", value: 1000, options: {} }];
  for (const name of ["seed", "ema", "keep"]) widgets.push({ name, value: 0, options: { advanced: true } });
  return {
    widgets, size: [300, 96], properties: {}, inputs: [], showAdvanced: false,
    computeSize() { return [200, 24 * this.widgets.filter((widget) => !widget.advanced || this.showAdvanced).length]; },
    setSize(size) { this.size = size; },
    addWidget(_kind, _label, _value, callback) {
      widgets.push({ name: "button", callback, options: {} });
      return widgets.at(-1);
    },
  };
}
const shown = (node) => node.getLayoutWidgets().map((widget) => widget.name).join(" ");

test("an advanced widget is folded while it is at its default", () => {
  const widgets = newNode().widgets;
  const defaults = new Map([["steps", 1000], ["seed", 0], ["ema", 0.5], ["keep", 0]]);
  assert.deepEqual(foldable(widgets, defaults).map((widget) => widget.name), ["seed", "keep"]);
});

test("a number that is not read is folded, whatever it is", () => {
  const widget = { name: "steps", value: 7, disabled: true, options: { advanced: true } };
  assert.deepEqual(foldable([widget], new Map([["steps", 1000]])), [widget]);
});

test("a new node shows its main inputs, and the button the others", () => {
  const node = newNode();
  foldAdvanced(node);
  const button = node.widgets.at(-1);
  assert.equal(shown(node), "steps button");
  assert.equal(button.label, "Show 3 advanced inputs");
  assert.equal(button.serialize, false); // saved workflows list the values of widgets by position
  assert.equal(node.size[1], 48);
  node.widgets[2].value = 0.9;
  button.callback();
  assert.equal(shown(node), "steps seed ema keep button");
  assert.equal(node.size[1], 120);
  button.callback();
  assert.equal(shown(node), "steps ema button");
});

test("the button is not there while the page draws nodes by its newer renderer", () => {
  const node = newNode();
  foldAdvanced(node);
  const button = node.widgets.at(-1);
  globalThis.window.LiteGraph = { vueNodesMode: true };
  assert.ok(button.hidden && button.options.hidden);
  globalThis.window.LiteGraph.vueNodesMode = false;
  assert.ok(!button.hidden && !button.options.hidden);
  delete globalThis.window.LiteGraph;
});

test("a saved value or link stays in sight, and a node saved at its full height is made shorter", () => {
  const node = newNode();
  foldAdvanced(node);
  node.widgets[1].value = 7;
  node.inputs = [{ name: "keep", link: 4 }];
  node.properties = {};
  node.size = [300, 400];
  node.onConfigure({ properties: {} });
  assert.equal(shown(node), "steps seed keep button");
  assert.equal(node.size[1], 400); // one row less, and one for the button
  node.onConfigure({ properties: { loom_folded: true } });
  assert.equal(node.size[1], 400);
});

test("an input that stops being advanced comes into sight, and the node grows by its row", () => {
  const node = newNode();
  foldAdvanced(node);
  const before = node.size[1];
  node.widgets[1].options.advanced = false;
  refold.get(node)();
  assert.equal(shown(node), "steps seed button");
  assert.equal(node.size[1], before + 24);
});

test("the renderer that folds by itself shows no button, and leaves no room for what it hides; the canvas has one after it", () => {
  window.LiteGraph = { vueNodesMode: true };
  const node = newNode();
  foldAdvanced(node);
  const button = node.widgets.at(-1);
  assert.ok(button.hidden);
  assert.deepEqual(node.widgets.slice(0, 4).map((widget) => Boolean(widget.advanced)), [false, true, true, true]);
  assert.equal(shown(node), "steps");
  assert.equal(node.size[1], 96, "it gives the node its size");
  node.widgets[1].value = 7;
  window.LiteGraph.vueNodesMode = false;
  assert.equal(shown(node), "steps seed button");
  assert.equal(button.label, "Show 2 advanced inputs");
  window.LiteGraph = undefined;
});

test("a widget that its frontend calls advanced, though the canvas shows it, has its row", () => {
  const node = newNode();
  Object.defineProperty(node.widgets[1], "advanced", { get: () => true, set: () => {} });
  foldAdvanced(node);
  node.widgets[1].value = 7;
  refold.get(node)();
  assert.equal(shown(node), "steps seed button");
});

test("in a frontend that lays out hidden widgets they take no room while they are folded", () => {
  const node = newNode();
  node.widgets[2].computeSize = () => [10, 60];
  foldAdvanced(node);
  const sizes = () => node.widgets.slice(0, 4).map((widget) => widget.computeSize?.()[1]);
  assert.deepEqual(sizes(), [undefined, -4, -4, -4]);
  node.widgets.at(-1).callback();
  assert.deepEqual(sizes(), [undefined, undefined, 60, undefined]);
  const newer = newNode();
  newer.getLayoutWidgets = () => [];
  foldAdvanced(newer);
  assert.equal(newer.widgets[1].computeSize, undefined);
});
