// @ts-check
// Images and captions dropped on Loom Dataset, or chosen there, go into a folder of ComfyUI's input directory.

import { imageUrl, upload } from "./client.js";
import { make, makeButton } from "./elements.js";
import { ACCEPT, isImage, summary, taken, targetFolder } from "./files.js";

/** @typedef {{path: string, file: File}} Dropped */

const NODE = "LoomDataset";
const HEIGHT = 64;
const MOST_IMAGES = 24; // thumbnails

/** @param {ComfyNode} node */
export function takeDrops(node) {
  if (node.comfyClass !== NODE) return;
  const zone = new DropZone(node);
  const widget = node.addDOMWidget("loom_drop", "loom_drop", zone.root, {
    serialize: false,
    hideOnZoom: false,
    hideInPanel: true,
    getMinHeight: () => HEIGHT,
    getMaxHeight: () => 5 * HEIGHT,
  });
  widget.serialize = false;
  node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
  node.onDragOver = (event) => hasFiles(event);
  node.onDragDrop = (event) => hasFiles(event) && zone.drop(event);
  const { onConfigure } = node;
  node.onConfigure = function (...values) {
    onConfigure?.apply(this, values);
    zone.show();
  };
}

/** @param {DragEvent} event */
const hasFiles = (event) => [...(event.dataTransfer?.items ?? [])].some((item) => item.kind === "file");

class DropZone {
  /** @param {ComfyNode} node */
  constructor(node) {
    this.node = node;
    this.root = make("section", "loom-drop");
    this.root.setAttribute("aria-label", "Images of this dataset");
    const head = make("div", "loom-drop-head", this.root);
    this.text = make("span", "", head, "Drop images, captions (.txt) or a folder here");
    this.text.setAttribute("role", "status");
    this.chooser = make("input", "", head);
    Object.assign(this.chooser, { type: "file", multiple: true, accept: ACCEPT, hidden: true });
    this.chooser.addEventListener("change", () => this.chosen());
    this.button = makeButton(head, "Choose images", "Images and their captions, .txt files of the same name.", () => this.chooser.click());
    this.images = make("div", "loom-thumbs", this.root);
    for (const kind of ["pointerdown", "mousedown"]) this.root.addEventListener(kind, (event) => event.stopPropagation());
    this.root.addEventListener("dragover", (event) => this.over(event));
    this.root.addEventListener("drop", (event) => this.over(event) && this.drop(event));
  }

  /**
   * A file over the zone is the zone's: the canvas would make a node of it.
   * @param {DragEvent} event
   */
  over(event) {
    if (!hasFiles(event)) return false;
    event.preventDefault();
    event.stopPropagation();
    return true;
  }

  get folder() {
    return this.node.widgets?.find((widget) => widget.name === "folder");
  }

  /** What was uploaded, as long as the node's folder is that one. Saved with the workflow. */
  get content() {
    const kept = /** @type {{folder?: string, names?: string[]} | undefined} */ (this.node.properties.loom_images);
    return kept && kept.folder === this.folder?.value && Array.isArray(kept.names) ? kept.names.map(String) : [];
  }

  show() {
    const names = this.content;
    const folder = String(this.folder?.value ?? "");
    this.images.replaceChildren();
    for (const name of names.filter(isImage).slice(0, MOST_IMAGES)) {
      const image = make("img", "", this.images);
      image.loading = "lazy";
      image.alt = image.title = name;
      image.src = imageUrl(folder, name);
    }
    this.text.textContent = names.length ? summary(names) : "Drop images, captions (.txt) or a folder here";
  }

  async chosen() {
    const files = [...(this.chooser.files ?? [])].map((file) => ({ path: file.name, file }));
    this.chooser.value = "";
    await this.take(files, "");
  }

  /**
   * True: the event is used up.
   * @param {DragEvent} event
   */
  async drop(event) {
    const items = [...(event.dataTransfer?.items ?? [])]; // empty after the first await
    const entries = items.flatMap((item) => item.webkitGetAsEntry?.() ?? []);
    const files = items.flatMap((item) => (item.kind === "file" && !item.webkitGetAsEntry?.() ? (item.getAsFile() ?? []) : []));
    const found = [...files.map((file) => ({ path: file.name, file })), ...(await Promise.all(entries.map(read))).flat()];
    await this.take(found, entries.find((entry) => entry.isDirectory)?.name ?? "");
    return true;
  }

  /**
   * @param {Dropped[]} files
   * @param {string} name of the dropped folder
   */
  async take(files, name) {
    const accepted = taken(files);
    if (!accepted.some((one) => isImage(one.name) || this.content.length)) {
      this.text.textContent = `None of these ${files.length} files is an image (png, jpg, webp, avif, bmp, gif)`;
      return;
    }
    const folder = targetFolder(String(this.folder?.value ?? ""), name, new Date());
    const names = new Set(folder === this.folder?.value ? this.content : []);
    this.button.disabled = true;
    try {
      for (const [index, one] of accepted.entries()) {
        this.text.textContent = `Uploading ${index + 1} of ${accepted.length} …`;
        await upload(one.file, folder, one.name);
        names.add(one.name);
      }
      this.finish(folder, [...names].sort());
    } catch (error) {
      this.text.textContent = `Upload stopped: ${error instanceof Error ? error.message : error}`;
    }
    this.button.disabled = false;
  }

  /**
   * @param {string} folder
   * @param {string[]} names
   */
  finish(folder, names) {
    this.node.properties.loom_images = { folder, names };
    if (this.folder) {
      this.folder.value = folder;
      this.folder.callback?.(folder);
    }
    this.show();
    this.node.setDirtyCanvas?.(true, true);
    this.node.setSize([this.node.size[0], Math.max(this.node.size[1], this.node.computeSize()[1] + HEIGHT)]);
  }
}

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
