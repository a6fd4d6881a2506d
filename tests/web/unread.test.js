import assert from "node:assert/strict";
import test from "node:test";
import { greyUnread } from "../../web/unread.js";

function newNode(rate = "auto") {
  const node = { comfyClass: "LoomTrain", widgets: [{ name: "learning_rate", value: 1e-4, options: { advanced: true } }, { name: "rate", value: rate }] };
  greyUnread(node);
  return { node, number: node.widgets[0], choice: node.widgets[1] };
}

test("a number that does not count is grey, and follows its choice", () => {
  const { number, choice } = newNode();
  assert.deepEqual([number.disabled, number.options.advanced], [true, true]);
  choice.value = "value";
  choice.callback();
  assert.deepEqual([number.disabled, number.options.advanced], [false, false]);
});

test("a saved node is grey as its choice says", () => {
  const { node, number, choice } = newNode();
  choice.value = "value";
  node.onConfigure({});
  assert.equal(number.disabled, false);
  assert.equal(newNode("value").number.disabled, false);
});

test("other nodes are left alone", () => {
  const node = { comfyClass: "LoomCache", widgets: [{ name: "rate", value: "auto" }, { name: "learning_rate", value: 1 }] };
  greyUnread(node);
  assert.equal(node.onConfigure, undefined);
});

test("the decay of an average is grey while it does not count, and stays among the advanced inputs", () => {
  const node = { comfyClass: "LoomTrain", widgets: [{ name: "ema", value: 0, options: { advanced: true } }, { name: "average", value: "auto" }] };
  greyUnread(node);
  const [number, choice] = node.widgets;
  assert.equal(number.disabled, true);
  choice.value = "value";
  choice.callback();
  assert.deepEqual([number.disabled, number.options.advanced], [false, true]);
});
