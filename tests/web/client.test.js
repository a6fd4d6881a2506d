import assert from "node:assert/strict";
import test from "node:test";
import { server } from "./comfyui.js";

const { act, fetchMetrics, fetchRun, fileUrl, imageUrl, listen, upload } = await import("../../web/client.js");

const answers = (content, status = 200) => {
  server.answer = new Response(JSON.stringify(content), { status });
  server.requests.length = 0;
};

test("a run is read past the browser's cache", async () => {
  answers({ name: "my cat", step: 3 });
  assert.deepEqual(await fetchRun("my cat"), { name: "my cat", step: 3 });
  assert.deepEqual(server.requests, [["/lora_loom/runs/my%20cat", { cache: "no-store" }]]);
});

test("no such run is no error", async () => {
  answers({ error: "there is no run" }, 404);
  assert.equal(await fetchRun("cat"), null);
  answers({}, 404);
  assert.deepEqual(await fetchMetrics("cat", -1), []);
});

test("metrics are asked for from a step on", async () => {
  answers({ metrics: [{ step: 8, loss: 1 }] });
  assert.deepEqual(await fetchMetrics("cat", 7), [{ step: 8, loss: 1 }]);
  assert.equal(server.requests[0][0], "/lora_loom/runs/cat/metrics?since=7");
});

test("an action is a POST with a JSON body: the server refuses every other", async () => {
  answers({ state: "paused" });
  assert.deepEqual(await act("cat", "pause"), { state: "paused" });
  const [[route, options]] = server.requests;
  assert.equal(route, "/lora_loom/runs/cat/pause");
  assert.equal(options.method, "POST");
  assert.equal(options.headers["Content-Type"], "application/json");
  assert.deepEqual(JSON.parse(options.body), {});
});

test("a refusal comes in the server's own words", async () => {
  answers({ error: "run cat is not active" }, 409);
  await assert.rejects(act("cat", "stop"), { message: "run cat is not active" });
  answers({ error: "name = '..'" }, 400);
  await assert.rejects(fetchRun(".."), { message: "name = '..'" });
});

test("files have an address below the server's own", () => {
  assert.equal(fileUrl("cat", "samples/a.png"), "/api/lora_loom/runs/cat/files/samples/a.png");
});

test("events arrive with their kind", () => {
  const heard = [];
  listen((kind, detail) => heard.push([kind, detail]));
  server.listeners.get("lora_loom.step")({ detail: { step: 4 } });
  server.listeners.get("reconnected")({});
  assert.deepEqual(heard, [["step", { step: 4 }], ["reconnected", {}]]);
  assert.deepEqual([...server.listeners.keys()], ["lora_loom.run", "lora_loom.step", "lora_loom.sample", "lora_loom.forming", "lora_loom.log", "lora_loom.page", "reconnecting", "reconnected"]);
});

test("a file goes into a folder of the input directory, under the name it is given", async () => {
  answers({ name: "a.png" });
  await upload(new Blob(["x"]), "loom/cats", "a.png");
  const [[route, { method, body }]] = server.requests;
  assert.deepEqual([route, method], ["/upload/image", "POST"]);
  assert.deepEqual([body.get("subfolder"), body.get("type"), body.get("overwrite"), body.get("image").name], ["loom/cats", "input", "true", "a.png"]);
  answers({}, 413);
  await assert.rejects(upload(new Blob(["x"]), "loom/cats", "a.png"), /a\.png: 413/);
  assert.equal(imageUrl("loom/a b", "1&2.png"), "/api/view?filename=1%262.png&subfolder=loom%2Fa+b&type=input&preview=webp%3B60");
});
