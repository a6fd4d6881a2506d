// @ts-check
// The images and captions in a zip file, read in the browser: what is uploaded are the files in it.

import { isHidden, isWanted } from "./files.js";
import { t } from "./texts.js";

const END = 0x06054b50;
const ENTRY = 0x02014b50;
const ENCRYPTED = 1;
const STORED = 0;
const DEFLATED = 8;
const LARGE = 0xffffffff; // then the real number is in a zip64 field
const MOST_FILES = 20_000;
const MOST_BYTES = 8e9; // of one zip file, unpacked

/** @typedef {{path: string, method: number, packed: number, size: number, at: number}} Entry */

/** @param {string} name */
export const isZip = (name) => /\.zip$/i.test(name);

/**
 * A name in UTF-8; one of older programs in some code page stays one of its own, and its caption's is the same.
 * @param {Uint8Array} name
 */
function decoded(name) {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(name);
  } catch {
    return new TextDecoder("windows-1252").decode(name);
  }
}

/**
 * What a zip file lists, but for folders. Throws for one that cannot be read here.
 * @param {DataView} bytes of the whole file
 * @returns {Entry[]}
 */
export function listed(bytes) {
  let end = bytes.byteLength - 22;
  while (end >= 0 && bytes.getUint32(end, true) !== END) end -= 1;
  if (end < 0) throw new Error(t("this is not a zip file, or it is cut off"));
  const count = bytes.getUint16(end + 10, true);
  let place = bytes.getUint32(end + 16, true);
  if (place === LARGE) throw new Error(t("this zip file is larger than 4 GB: unpack it, and drop the folder"));
  const found = [];
  for (let number = 0; number < count; number += 1) {
    if (place + 46 > end || bytes.getUint32(place, true) !== ENTRY) throw new Error(t("this zip file is damaged"));
    const [name, extra, comment] = [28, 30, 32].map((offset) => bytes.getUint16(place + offset, true));
    const path = decoded(new Uint8Array(bytes.buffer, bytes.byteOffset + place + 46, name));
    if (bytes.getUint16(place + 8, true) & ENCRYPTED) throw new Error(t("this zip file has a password: unpack it, and drop the folder"));
    const [packed, size, at] = [20, 24, 42].map((offset) => bytes.getUint32(place + offset, true));
    if (!path.endsWith("/")) found.push({ path, method: bytes.getUint16(place + 10, true), packed, size, at });
    place += 46 + name + extra + comment;
  }
  return found;
}

/**
 * The content of an entry. Throws if it is not what the list says.
 * @param {DataView} bytes
 * @param {Entry} entry
 */
async function content(bytes, { path, method, packed, size, at }) {
  const start = at + 30 + bytes.getUint16(at + 26, true) + bytes.getUint16(at + 28, true);
  if (start + packed > bytes.byteLength || (method !== STORED && method !== DEFLATED)) throw new Error(t("{path} in this zip file cannot be read", { path }));
  const part = new Blob([new Uint8Array(/** @type {ArrayBuffer} */ (bytes.buffer), bytes.byteOffset + start, packed)]);
  if (method === STORED) return part;
  const reader = part.stream().pipeThrough(new DecompressionStream("deflate-raw")).getReader();
  const chunks = [];
  let total = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    total += value.length;
    if (total > size) throw new Error(t("{path} in this zip file is larger than it says", { path }));
    chunks.push(value);
  }
  return new Blob(chunks);
}

/**
 * The files of a zip file but for hidden ones; those that no dataset has a use for are named, and null. Throws with the reason if it
 * cannot be read.
 * @param {Blob} file
 * @returns {Promise<{path: string, file: File | null}[]>}
 */
export async function unzipped(file) {
  const bytes = new DataView(await file.arrayBuffer());
  const every = listed(bytes).filter(({ path }) => !isHidden(path));
  const wanted = every.filter(({ path }) => isWanted(path));
  if (wanted.length > MOST_FILES || wanted.reduce((sum, { size }) => sum + size, 0) > MOST_BYTES) throw new Error(t("this zip file holds too much: unpack it, and drop its folders one by one"));
  /** @type {{path: string, file: File | null}[]} */
  const found = [];
  for (const entry of wanted) {
    const name = entry.path.split("/").at(-1) ?? "";
    found.push({ path: entry.path, file: new File([await content(bytes, entry)], name) });
  }
  return [...found, ...every.filter(({ path }) => !isWanted(path)).map(({ path }) => ({ path, file: null }))];
}
