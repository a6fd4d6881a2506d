import assert from "node:assert/strict";
import test from "node:test";
import { isImage, leftOut, summary, taken, targetFolder } from "../../web/files.js";

const names = (...paths) => taken(paths.map((path) => ({ path, file: path }))).map((one) => one.name);
const NOW = new Date("2026-11-28T17:30:05Z");

test("images and captions are taken, by type alone", () => {
  assert.deepEqual(names("a.PNG", "a.txt", "b.jpeg", "c.webp", "x.exe", "y.html", "z.svg", "run.json", "png", ".png"), ["a.PNG", "a.txt", "b.jpeg", "c.webp"]);
});

test("a name cannot lead out of the folder", () => {
  for (const path of ["../../a.png", "..\\a.png", "/etc/a.png", "C:\\a.png", "a\0.png", "./../b.png"]) {
    for (const name of names(path, "q/z.png")) assert.match(name, /^[\p{L}\p{N} ._-]+$/u);
    for (const name of names(path, "q/z.png")) assert.ok(!name.startsWith("."), name);
  }
});

test("files of two folders keep apart, and a caption stays with its image", () => {
  assert.deepEqual(names("cats/a/1.png", "cats/a/1.txt", "cats/b/1.png"), ["a_1.png", "a_1.txt", "b_1.png"]);
  assert.deepEqual(names("cats/1.png", "cats/1.txt"), ["1.png", "1.txt"]);
  assert.deepEqual(names("Möwe über See.jpg"), ["Möwe über See.jpg"]);
});

test("a second drop goes to the folder of the first, and never to a folder that a person named", () => {
  const first = targetFolder("my-images", "cats", NOW);
  assert.equal(first, "loom/cats-20261128-173005");
  assert.equal(targetFolder(first, "", NOW), first);
  assert.equal(targetFolder("", "", NOW), "loom/images-20261128-173005");
  assert.equal(targetFolder("loom/../models", "", NOW), "loom/images-20261128-173005");
  assert.equal(targetFolder("/data/cats", "../x", NOW), "loom/_x-20261128-173005");
});

test("captions are counted by their images", () => {
  assert.equal(summary(["a.png", "a.txt", "b.png", "z.txt"]), "2 images, 1 with a caption file");
  assert.equal(summary(["a.png"]), "1 image, 0 with a caption file");
  assert.equal(isImage("a.txt"), false);
});

test("images of every kind that is read are taken, captions and tables too", () => {
  const every = ["a.png", "a.apng", "a.jfif", "a.JPE", "a.mpo", "a.tif", "a.TIFF", "a.heic", "a.heif", "a.jxl", "a.caption", "metadata.jsonl", "metadata.CSV"];
  assert.deepEqual(names(...every), every);
  assert.deepEqual(names("x/a.png", "y/a.png", "metadata.csv"), ["x_a.png", "y_a.png"], "the table would name no file");
});

test("no two files get one name, and each caption goes with its image", () => {
  assert.deepEqual(names("a?.png", "a?.txt", "a*.png", "a*.txt", "A_.png"), ["a_.png", "a_.txt", "a_-2.png", "a_-2.txt", "A_-3.png"]);
  assert.deepEqual(names("😀.png", "😂.png", "😂.txt"), ["_.png", "_-2.png", "_-2.txt"]);
  assert.deepEqual(names("a/b.png", "a_b.png"), ["a_b.png", "a_b-2.png"]);
  assert.deepEqual(names("กา.png", "กี.png", "กี.txt"), ["กา.png", "กี.png", "กี.txt"]);
});

test("a long name keeps its suffix and fits into a folder of any system", () => {
  for (const letter of ["x", "猫", "😀", "é"]) {
    const [image, caption] = names(`${letter.repeat(240)}.png`, `${letter.repeat(240)}.txt`);
    assert.match(image, /\.png$/);
    assert.equal(caption, image.replace(/png$/, "txt"));
    assert.ok(new TextEncoder().encode(image).length <= 200, image);
  }
});

test("what is not taken is named, but for what systems leave behind", () => {
  const files = ["a.png", "b.psd", "__MACOSX/._a.png", "._a.png", ".DS_Store", "c/clip.mp4", "@eaDir/t.jpg"].map((path) => ({ path, file: path }));
  assert.deepEqual(taken(files).map((one) => one.name), ["a.png"]);
  assert.deepEqual(leftOut(files), ["b.psd", "c/clip.mp4"]);
  assert.deepEqual(leftOut([{ path: "x.pdf", file: null }, { path: "a.png", file: "a.png" }]), ["x.pdf"]);
});
