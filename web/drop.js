// @ts-check
// Images and captions dropped on Loom Dataset, or chosen there, go into a folder of ComfyUI's input directory.

import { imageUrl } from "./client.js";
import { make, makeButton } from "./elements.js";
import { ACCEPT, isImage, summary } from "./files.js";
import { aboutOthers, chosen, dropped, hasFiles, send } from "./uploads.js";
import { door } from "./workbench/door.js";
import { t } from "./texts.js";

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
  const { onPropertyChanged } = node;
  node.onPropertyChanged = function (name, ...values) {
    if (name === "loom_images") setTimeout(() => zone.show());
    return onPropertyChanged?.call(this, name, ...values);
  };
}

class DropZone {
  /** @param {ComfyNode} node */
  constructor(node) {
    this.node = node;
    this.root = make("section", "loom-drop");
    this.root.setAttribute("aria-label", t("Images of this dataset"));
    const head = make("div", "loom-drop-head", this.root);
    this.text = make("span", "", head, t("Drop images, captions (.txt), a folder or a zip here"));
    this.text.setAttribute("role", "status");
    this.chooser = make("input", "", head);
    Object.assign(this.chooser, { type: "file", multiple: true, accept: ACCEPT, hidden: true });
    this.chooser.addEventListener("change", () => this.take(chosen(this.chooser), ""));
    this.edit = makeButton(head, t("Captions"), t("Look at the images of this folder and edit their captions, in the sidebar."), () => door.openData(String(this.folder?.value ?? "")));
    this.button = makeButton(head, t("Choose images"), t("Images and their captions, .txt files of the same name."), () => this.chooser.click());
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
    this.text.textContent = names.length ? summary(names) : t("Drop images, captions (.txt), a folder or a zip here");
  }

  /**
   * True: the event is used up.
   * @param {DragEvent} event
   */
  async drop(event) {
    const { files, name } = await dropped(event);
    await this.take(files, name);
    return true;
  }

  /**
   * @param {import("./uploads.js").Dropped[]} files
   * @param {string} name of the dropped folder
   */
  async take(files, name) {
    const current = String(this.folder?.value ?? "");
    const before = this.content;
    this.button.disabled = true;
    try {
      const sent = await send(files, { current, name, isCaptionEnough: before.length > 0 }, (text) => { this.text.textContent = text; });
      this.finish(sent.folder, [...new Set([...(sent.folder === current ? before : []), ...sent.names])].sort());
      if (sent.others.length) this.text.textContent = `${this.text.textContent}; ${aboutOthers(sent.others)}`;
    } catch (error) {
      this.text.textContent = error instanceof Error ? error.message : String(error);
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
