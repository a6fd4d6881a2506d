// @ts-check
// Which dropped files a dataset takes, and under which names they are stored. Pure functions.

import { t } from "./texts.js";

const IMAGE = /\.(png|jpe?g|webp|avif|bmp|gif)$/i;
const CAPTION = /\.txt$/i;
const ROOT = "loom/"; // inside ComfyUI's input folder

/** What a file dialog offers. */
export const ACCEPT = ".png,.jpg,.jpeg,.webp,.avif,.bmp,.gif,.txt,.zip";

/** @param {string} name */
export const isImage = (name) => IMAGE.test(name);

/** @param {string} name */
export const isCaption = (name) => CAPTION.test(name);

/**
 * A name without anything that has a meaning in a path: letters, digits, spaces and . _ - of any script.
 * @param {string} name
 */
function plain(name) {
  return name.normalize("NFC").replace(/[^\p{L}\p{N} ._-]/gu, "_").replace(/^[ .]+|[ .]+$/g, "").slice(0, 80);
}

/**
 * The files that are taken, with the names they get: the folders between the dropped one and the file become a part of the
 * name, so that files of two folders do not overwrite each other and a caption stays with its image.
 * @template File
 * @param {{path: string, file: File}[]} files path: as dropped, with "/" between folders
 * @returns {{name: string, file: File}[]}
 */
export function taken(files) {
  const depth = sharedDepth(files.map(({ path }) => path));
  return files
    .map(({ path, file }) => ({ name: path.split("/").slice(depth).map(plain).join("_"), file }))
    .filter(({ name }) => isImage(name) || isCaption(name));
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
