// @ts-check
// One image of a dataset: what is cropped away is pale, and its caption is saved while it is written.

import { make } from "../elements.js";
import { saveCaption, thumbnailUrl } from "./data_requests.js";
import { t } from "../texts.js";

/** @typedef {import("./data_requests.js").Image} Image */

const UNDESCRIBED = "no caption file"; // the server's words
const PAUSE_MS = 700; // after the last key

export class CaptionCard {
  /**
   * @param {string} folder
   * @param {Image} image
   * @param {{canEdit: boolean, changed: () => void}} bench
   */
  constructor(folder, image, { canEdit, changed }) {
    this.folder = folder;
    this.image = image;
    this.changed = changed;
    this.root = make("li", "loom-card");
    const frame = make("div", "loom-crop", this.root);
    const shown = make("img", "", frame);
    shown.loading = "lazy";
    shown.alt = image.caption || image.name;
    shown.src = thumbnailUrl(folder, image.name);
    const [left, top, width, height] = image.crop.map((part) => 100 * part);
    const kept = make("span", "loom-kept", frame);
    Object.assign(kept.style, { left: `${left}%`, top: `${top}%`, width: `${width}%`, height: `${height}%` });
    const body = make("div", "loom-card-body", this.root);
    const head = make("div", "loom-card-head", body);
    make("span", "loom-card-name", head, image.name).title = image.name;
    make("span", "loom-card-size", head, `${image.width} × ${image.height} → ${image.bucket.join(" × ")}`);
    this.warnings = make("div", "", body);
    this.warn();
    this.field = make("textarea", "loom-field", body);
    this.field.value = image.caption;
    this.field.rows = 3;
    this.field.disabled = !canEdit;
    this.field.placeholder = t("No caption");
    this.field.setAttribute("aria-label", t("Caption of {name}", { name: image.name }));
    this.field.addEventListener("keydown", (event) => event.stopPropagation());
    this.field.addEventListener("input", () => this.wait());
    this.field.addEventListener("change", () => this.save());
    this.state = make("span", "loom-saved", body);
    this.state.setAttribute("role", "status");
  }

  warn() {
    this.warnings.replaceChildren();
    for (const warning of this.image.warnings) if (warning !== UNDESCRIBED || !this.image.caption) make("div", "loom-warning", this.warnings, warning);
  }

  wait() {
    clearTimeout(this.timer);
    this.state.textContent = "…";
    this.timer = setTimeout(() => this.save(), PAUSE_MS);
  }

  /** @param {string} caption */
  set(caption) {
    this.field.value = caption;
    return this.save();
  }

  async save() {
    clearTimeout(this.timer);
    const caption = this.field.value.trim();
    if (caption === this.image.caption) {
      if (this.state.textContent === "…") this.state.textContent = t("Saved");
      return;
    }
    try {
      await saveCaption(this.folder, this.image.name, caption);
      this.image.caption = caption;
      this.state.textContent = t("Saved");
      this.state.classList.remove("loom-error");
      this.warn();
      this.changed();
    } catch (error) {
      this.state.textContent = t("Not saved: {why}", { why: error instanceof Error ? error.message : String(error) });
      this.state.classList.add("loom-error");
    }
  }
}
