// @ts-check
// Files that a person drops or chooses, on their way into a folder of ComfyUI's input directory.

import { upload } from "./client.js";
import { isImage, leftOut, taken, targetFolder } from "./files.js";
import { isZip, unzipped } from "./zip.js";
import { t } from "./texts.js";

/** @typedef {{path: string, file: File}} Dropped */

/** @param {DragEvent} event */
export const hasFiles = (event) => [...(event.dataTransfer?.items ?? [])].some((item) => item.kind === "file");

/**
 * The files of a drop with those of all folders, and the name of the first folder.
 * @param {DragEvent} event
 * @returns {Promise<{files: Dropped[], name: string}>}
 */
export async function dropped(event) {
  const items = [...(event.dataTransfer?.items ?? [])]; // empty after the first await
  const entries = items.flatMap((item) => item.webkitGetAsEntry?.() ?? []);
  const files = items.flatMap((item) => (item.kind === "file" && !item.webkitGetAsEntry?.() ? (item.getAsFile() ?? []) : []));
  const found = [...files.map((file) => ({ path: file.name, file })), ...(await Promise.all(entries.map(read))).flat()];
  return { files: found, name: entries.find((entry) => entry.isDirectory)?.name ?? "" };
}

/**
 * The files that were chosen in a file dialog, which is empty afterwards.
 * @param {HTMLInputElement} chooser
 * @returns {Dropped[]}
 */
export function chosen(chooser) {
  const files = [...(chooser.files ?? [])].map((file) => ({ path: file.webkitRelativePath || file.name, file }));
  chooser.value = "";
  return files;
}

/**
 * Upload what a dataset takes of these files. Throws if there is no image, or the server refuses one.
 * @param {Dropped[]} files
 * @param {{current: string, name: string, isCaptionEnough: boolean}} target current: the folder so far; name: of a dropped folder
 * @param {(text: string) => void} say
 * @returns {Promise<{folder: string, names: string[], others: string[]}>} others: files that are not taken
 */
export async function send(files, { current, name, isCaptionEnough }, say) {
  const unpacked = [];
  for (const one of files) unpacked.push(...(isZip(one.file.name) ? await unzipped(one.file) : [one]));
  const accepted = taken(unpacked);
  if (!accepted.some((one) => isImage(one.name) || isCaptionEnough)) {
    throw new Error(t("None of these {n} files is an image (png, jpg, webp, avif, bmp, gif)", { n: unpacked.length }));
  }
  const zip = files.length === 1 && isZip(files[0].file.name) ? files[0].file.name.replace(/\.zip$/i, "") : "";
  const folder = targetFolder(current, name || zip, new Date());
  for (const [index, one] of accepted.entries()) {
    say(t("Uploading {n} of {all} …", { n: index + 1, all: accepted.length }));
    if (one.file) await upload(one.file, folder, one.name);
  }
  return { folder, names: accepted.map((one) => one.name), others: leftOut(unpacked) };
}

/**
 * A sentence about files that were not taken; "" for none.
 * @param {string[]} others
 */
export const aboutOthers = (others) => (others.length ? t("{n} files left out: {names}", { n: others.length, names: others.slice(0, 3).join(", ") }) : "");

/**
 * The files of an entry, with those of all folders in it.
 * @param {FileSystemEntry} entry
 * @returns {Promise<Dropped[]>}
 */
async function read(entry) {
  if (entry.isFile) {
    const file = await new Promise((done, fail) => /** @type {FileSystemFileEntry} */ (entry).file(done, fail));
    return [{ path: entry.fullPath.replace(/^\//, ""), file }];
  }
  const reader = /** @type {FileSystemDirectoryEntry} */ (entry).createReader();
  const inside = [];
  for (;;) {
    /** @type {FileSystemEntry[]} */
    const some = await new Promise((done, fail) => reader.readEntries(done, fail)); // at most 100 at a time
    if (!some.length) break;
    inside.push(...some);
  }
  return (await Promise.all(inside.map(read))).flat();
}
