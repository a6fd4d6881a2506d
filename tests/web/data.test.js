import assert from "node:assert/strict";
import test from "node:test";
import zlib from "node:zlib";
import { matching, replaced, tagCounts } from "../../web/workbench/captions.js";
import { isZip, listed, unzipped } from "../../web/zip.js";

test("a tag counts once an image, the most frequent first", () => {
  assert.deepEqual(tagCounts(["cat, sofa, cat", "cat", "dog ,\nsofa", ""]), [["cat", 2], ["sofa", 2], ["dog", 1]]);
});

test("a text is replaced as it is written, wherever it stands", () => {
  const images = [{ caption: "a.b a.b" }, { caption: "axb" }];
  assert.deepEqual(replaced(images, "a.b", "$&"), [{ image: images[0], caption: "$& $&" }]);
  assert.deepEqual(replaced(images, "", "x"), []);
});

test("an image is found by its name or its caption", () => {
  const images = [{ name: "A.png", caption: "x" }, { name: "b.png", caption: "an A" }, { name: "c.png", caption: "" }];
  assert.deepEqual(matching(images, "a").map(({ name }) => name), ["A.png", "b.png"]);
  assert.equal(matching(images, "").length, 3);
});

/** A zip file as an archiver writes it. */
function zip(files, { flags = 0, declared } = {}) {
  const parts = [];
  const index = [];
  let at = 0;
  for (const [path, text, method] of files) {
    const [name, raw] = [Buffer.from(path), Buffer.from(text)];
    const packed = method ? zlib.deflateRawSync(raw) : raw;
    const size = declared ?? raw.length;
    const local = Buffer.alloc(30);
    local.writeUInt32LE(0x04034b50, 0);
    local.writeUInt16LE(name.length, 26);
    const entry = Buffer.alloc(46);
    entry.writeUInt32LE(0x02014b50, 0);
    entry.writeUInt16LE(flags, 8);
    entry.writeUInt16LE(method ? 8 : 0, 10);
    entry.writeUInt32LE(packed.length, 20);
    entry.writeUInt32LE(size, 24);
    entry.writeUInt16LE(name.length, 28);
    entry.writeUInt32LE(at, 42);
    parts.push(local, name, packed);
    index.push(entry, name);
    at += 30 + name.length + packed.length;
  }
  const end = Buffer.alloc(22);
  end.writeUInt32LE(0x06054b50, 0);
  end.writeUInt16LE(files.length, 10);
  end.writeUInt32LE(at, 16);
  return new Blob([...parts, ...index, end]);
}

test("a zip gives its images and captions, packed or not, and names what else is in it", async () => {
  const file = zip([["set/", "", 0], ["set/a.png", "pixels".repeat(99), 1], ["set/a.txt", "a cat", 0], ["set/run.exe", "x", 0], ["__MACOSX/a.png", "x", 0], [".hidden/b.png", "x", 0]]);
  const found = await unzipped(file);
  assert.deepEqual(found.map(({ path }) => path), ["set/a.png", "set/a.txt", "set/run.exe"]);
  assert.equal(found[2].file, null, "it is not unpacked");
  assert.equal(await found[0].file.text(), "pixels".repeat(99));
  assert.equal(await found[1].file.text(), "a cat");
  assert.ok(isZip("A.ZIP") && !isZip("a.zip.png"));
});

test("names of a zip in an old code page stay apart, and images keep their captions", async () => {
  const latin = (text) => Buffer.from(text, "latin1");
  const found = await unzipped(zip([[latin("caf\xe9.png"), "x", 0], [latin("caf\xe9.txt"), "y", 0], [latin("caf\xe8.png"), "z", 0]]));
  assert.deepEqual(found.map(({ path }) => path), ["caf\xe9.png", "caf\xe9.txt", "caf\xe8.png"]);
});

test("a zip that is cut off, locked, damaged or larger than it says is told", async () => {
  await assert.rejects(unzipped(new Blob(["not a zip"])), /not a zip file/);
  await assert.rejects(unzipped(zip([["a.png", "x", 0]], { flags: 1 })), /password/);
  await assert.rejects(unzipped(zip([["a.png", "x".repeat(1000), 1]], { declared: 10 })), /larger than it says/);
  const bytes = new Uint8Array(await zip([["a.png", "x", 0]]).arrayBuffer());
  bytes[bytes.length - 6] = 3; // where the list begins
  assert.throws(() => listed(new DataView(bytes.buffer)), /damaged/);
});
