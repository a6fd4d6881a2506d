import assert from "node:assert/strict";
import test from "node:test";
import { recall, remember } from "../../web/memory.js";

function newStore(content = null) {
  let text = content;
  return { getItem: () => text, setItem: (_key, value) => { text = value; } };
}

test("a node's last output comes back, and no other node's", () => {
  const store = newStore();
  remember(store, "graph/1", { text: ["old"] });
  remember(store, "graph/1", { text: ["new"], images: [{ filename: "a.png" }], other: 1 });
  assert.deepEqual(recall(store, "graph/1"), { text: ["new"], images: [{ filename: "a.png" }] });
  assert.equal(recall(store, "graph/2"), undefined);
});

test("the oldest are forgotten, and a long report is cut", () => {
  const store = newStore();
  for (let node = 0; node < 60; node++) remember(store, String(node), { text: ["x".repeat(30_000)] });
  assert.equal(recall(store, "19"), undefined);
  assert.equal(recall(store, "20").text[0].length, 20_000);
});

test("a damaged or full store is no error", () => {
  for (const text of ["{", "7", "[[1]]", "null"]) assert.equal(recall(newStore(text), "1"), undefined);
  remember({ getItem: () => null, setItem: () => { throw new Error("full"); } }, "1", { text: ["a"] });
});
