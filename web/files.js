// @ts-check
// Which dropped files a dataset takes, and under which names they are stored. Pure functions.

import { t } from "./texts.js";

const IMAGE = /\.(png|apng|jpg|jpeg|jpe|jfif|mpo|webp|avif|avifs|bmp|gif|tif|tiff|heic|heif|jxl)$/i;
const CAPTION = /\.(txt|caption)$/i;
const TABLE = /^metadata\.(jsonl|csv|tsv|json|parquet)$/i;
const LONGEST = 180; // bytes of a name without its suffix
const ROOT = "loom/"; // inside ComfyUI's input folder

/** What a file dialog offers. */
export const ACCEPT = ".png,.apng,.jpg,.jpeg,.jpe,.jfif,.webp,.avif,.bmp,.gif,.tif,.tiff,.heic,.heif,.jxl,.txt,.caption,.jsonl,.csv,.tsv,.json,.parquet,.zip";

/** @param {string} name */
export const isImage = (name) => IMAGE.test(name);

/** @param {string} name */
export const isCaption = (name) => CAPTION.test(name);

/** @param {string} name */
const isTable = (name) => TABLE.test(name);

/**
 * Whether a file or a folder above it is hidden, or made by a system.
 * @param {string} path
 */
export const isHidden = (path) => path.split("/").some((part) => /^[.@]/.test(part) || part === "__MACOSX");

/**
 * Whether a dataset has a use for a file.
 * @param {string} path
 */
export const isWanted = (path) => {
  const name = path.split("/").at(-1) ?? "";
  return !isHidden(path) && /^.+\.[^.]+$/.test(name) && (isImage(name) || isCaption(name) || isTable(name));
};

/**
 * A name without anything that has a meaning in a path: letters, their marks, digits, spaces and . _ - of any script.
 * @param {string} name
 */
function plain(name) {
  return name.normalize("NFC").replace(/[^\p{L}\p{M}\p{N} ._-]/gu, "_").replace(/^[ .]+|[ .]+$/g, "");
}

/** @param {string} text */
function shortened(text) {
  const letters = [...text];
  while (new TextEncoder().encode(letters.join("")).length > LONGEST) letters.pop();
  return letters.join("");
}

/**
 * The files that are taken, with the names they get: the folders between the dropped one and the file become a part of the
 * name, so that files of two folders do not overwrite each other and a caption stays with its image. No two images get one name.
 * A table is taken where the images that it names keep theirs.
 * @template File
 * @param {{path: string, file: File}[]} files path: as dropped, with "/" between folders
 * @returns {{name: string, file: File}[]}
 */
export function taken(files) {
  const wanted = files.filter(({ path }) => isWanted(path));
  const depth = sharedDepth(wanted.map(({ path }) => path));
  const stems = new Map(); // as dropped: as stored
  const used = new Set();
  const named = wanted.map(({ path, file }) => {
    const inner = path.split("/").slice(depth).join("/");
    const [old, suffix] = [inner.replace(/\.[^.]+$/, ""), inner.slice(inner.lastIndexOf("."))];
    if (!stems.has(old)) {
      const stem = shortened(old.split("/").map(plain).join("_")) || "image";
      let name = stem;
      for (let number = 2; used.has(name.toLowerCase()); number += 1) name = `${stem}-${number}`;
      used.add(name.toLowerCase());
      stems.set(old, name);
    }
    return { name: `${stems.get(old)}${suffix}`, file, kept: inner === `${stems.get(old)}${suffix}` };
  });
  const allKept = named.every((one) => one.kept);
  return named.filter(({ name }) => allKept || !isTable(name)).map(({ name, file }) => ({ name, file }));
}

/**
 * The names of the dropped files that are not taken, without hidden ones.
 * @template File
 * @param {{path: string, file: File}[]} files
 * @returns {string[]}
 */
export function leftOut(files) {
  const sent = new Set(taken(files).map((one) => one.file));
  return files.filter(({ path, file }) => !isHidden(path) && !(isWanted(path) && sent.has(file))).map(({ path }) => path);
}

/** @param {string[]} paths */
function sharedDepth(paths) {
  const [first, ...others] = paths.map((path) => path.split("/").slice(0, -1));
  if (!first) return 0;
  const end = first.findIndex((part, index) => others.some((other) => other[index] !== part));
  return end < 0 ? first.length : end;
}

/**
 * The folder for new files: the node's own, if it was made by a drop; else a new one, named like the dropped folder.
 * @param {string} current value of the node's folder input
 * @param {string} dropped name of the dropped folder; empty for loose files
 * @param {Date} now
 */
export function targetFolder(current, dropped, now) {
  const own = current.startsWith(ROOT) ? current.slice(ROOT.length) : "";
  if (own && own === plain(own)) return current;
  const time = now.toISOString().slice(0, 19).replace(/[-:]/g, "").replace("T", "-");
  return `${ROOT}${plain(dropped) || "images"}-${time}`;
}

/**
 * "12 images, 10 with a caption" of the names in a folder.
 * @param {string[]} names
 */
export function summary(names) {
  const stem = (/** @type {string} */ name) => name.replace(/\.[^.]+$/, "");
  const captions = new Set(names.filter(isCaption).map(stem));
  const images = names.filter(isImage);
  const captioned = images.filter((name) => captions.has(stem(name))).length;
  const counted = { images: images.length, captioned };
  return images.length === 1 ? t("{images} image, {captioned} with a caption file", counted) : t("{images} images, {captioned} with a caption file", counted);
}
