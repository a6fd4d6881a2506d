// @ts-check
// The images of a dataset: dropped here, looked at with their crops, described, checked.

import { make, makeButton } from "../elements.js";
import { ACCEPT } from "../files.js";
import { aboutOthers, chosen, dropped, hasFiles, send } from "../uploads.js";
import { CaptionCard } from "./caption_card.js";
import { matching, replaced, tagCounts } from "./captions.js";
import { fetchFolder, fetchFolders } from "./data_requests.js";
import { graphResolution, useFolder } from "./graph.js";
import { t } from "../texts.js";

/**
 * @typedef {import("./workbench.js").Workbench} Workbench
 * @typedef {import("./data_requests.js").Folder} Folder
 */

const MOST_TAGS = 40;
const LONGEST_TAG = 24; // characters; what is longer is a sentence, unless several captions have it
const MOST_CARDS = 200; // more are reached by the search

export class FolderView {
  /** @param {Workbench} bench */
  constructor(bench) {
    this.bench = bench;
    /** @type {Folder | null} */
    this.content = null;
    /** @type {CaptionCard[]} */
    this.cards = [];
    this.root = make("div", "loom-data");
    const { select, chooser, use } = this.makeHead();
    this.select = select;
    this.chooser = chooser;
    this.use = use;
    this.note = make("p", "loom-note", this.root);
    this.note.setAttribute("role", "status");
    this.body = make("div", "loom-data-body", this.root);
    const { find, to, replace, trigger } = this.makeTools();
    this.find = find;
    this.to = to;
    this.replace = replace;
    this.trigger = trigger;
    this.facts = make("details", "loom-details", this.body);
    this.factsTitle = make("summary", "", this.facts);
    this.factsBody = make("div", "", this.facts);
    this.tags = make("div", "loom-tags", this.body);
    this.grid = make("ul", "loom-cards", this.body);
    for (const kind of ["dragover", "drop"]) this.root.addEventListener(kind, (event) => this.dragged(/** @type {DragEvent} */ (event)));
  }

  makeHead() {
    const head = make("div", "loom-list-head", this.root);
    const select = make("select", "loom-field", head);
    select.setAttribute("aria-label", t("Folder with images"));
    select.addEventListener("change", () => this.open(select.value));
    const chooser = make("input", "", head);
    Object.assign(chooser, { type: "file", multiple: true, accept: ACCEPT, hidden: true });
    chooser.addEventListener("change", () => this.take(chosen(chooser), ""));
    makeButton(head, t("Add images"), t("Images and captions (.txt), or a zip of them"), () => chooser.click());
    const use = makeButton(head, t("Use in graph"), t("Let Loom Dataset in the graph use this folder"), () => this.bench.trying(async () => useFolder(select.value)));
    this.bench.makeExpand(head);
    return { select, chooser, use };
  }

  makeTools() {
    const tools = make("div", "loom-tools", this.body);
    /** @param {string} label @param {string} kind */
    const field = (label, kind) => {
      const made = make("input", "loom-field", tools);
      Object.assign(made, { type: kind, placeholder: label });
      made.setAttribute("aria-label", label);
      made.addEventListener("keydown", (event) => event.stopPropagation());
      return made;
    };
    const find = field(t("Find in captions and names"), "search");
    find.addEventListener("input", () => this.filter());
    const to = field(t("Replace with"), "text");
    const replace = makeButton(tools, t("Replace"), t("In all captions of this folder, exactly as written"), () => this.replaceAll());
    const trigger = field(t("Word before every caption"), "text");
    makeButton(tools, t("Add"), t("Put it before every caption that does not have it yet"), () => this.addTrigger());
    return { find, to, replace, trigger };
  }

  focus() {
    this.select.focus();
  }

  /** @param {string} [folder] to open; else the last one, or the first */
  async load(folder) {
    await this.bench.trying(async () => {
      const folders = await fetchFolders();
      const wanted = folder || this.content?.folder || folders[0] || "";
      if (wanted && !folders.includes(wanted)) folders.unshift(wanted);
      this.select.replaceChildren();
      for (const name of folders) make("option", "", this.select, name).value = name;
      this.select.value = wanted;
      this.select.hidden = this.use.hidden = !folders.length;
      if (wanted) await this.open(wanted);
      else this.render(null);
    });
  }

  /** @param {string} folder */
  async open(folder) {
    this.note.textContent = t("Reading the images …");
    try {
      this.render(await fetchFolder(folder, graphResolution()));
    } catch (error) {
      this.render(null);
      this.note.textContent = error instanceof Error ? error.message : String(error);
    }
  }

  /** @param {Folder | null} content */
  render(content) {
    this.content = content;
    this.body.hidden = !content;
    this.note.textContent = content ? "" : t("Drop images here, a folder or a zip of them; captions are .txt files of the same name.");
    if (!content) return;
    this.cards = content.images.map((image) => new CaptionCard(content.folder, image, { canEdit: content.can_edit, changed: () => this.described() }));
    if (!content.can_edit) this.note.textContent = t("This folder is outside the folders of ComfyUI and the roots in lora_loom.json: its captions can be read here, not written.");
    this.described();
    this.filter();
  }

  /** Captions are new. */
  described() {
    if (this.content) this.renderFacts(this.content);
    this.renderTags();
  }

  /** @param {Folder} content */
  renderFacts({ images, buckets, warnings }) {
    const captioned = images.filter(({ caption }) => caption).length;
    const title = [images.length === 1 ? t("{n} image", { n: 1 }) : t("{n} images", { n: images.length }), t("{n} with a caption", { n: captioned })];
    if (warnings.length) title.push(warnings.length === 1 ? t("{n} warning", { n: 1 }) : t("{n} warnings", { n: warnings.length }));
    this.factsTitle.textContent = title.join(", ");
    this.factsBody.replaceChildren();
    const most = Math.max(...buckets.map((bucket) => bucket.images), 1);
    for (const bucket of buckets) {
      const row = make("div", "loom-bucket", this.factsBody);
      make("span", "", row, `${bucket.width} × ${bucket.height}`);
      make("span", "loom-bucket-bar", row).style.width = `${(60 * bucket.images) / most}%`;
      make("span", "", row, String(bucket.images));
    }
    for (const warning of warnings) make("p", "loom-warning", this.factsBody, warning);
  }

  renderTags() {
    this.tags.replaceChildren();
    const counts = tagCounts(this.content?.images.map(({ caption }) => caption) ?? []);
    for (const [tag, count] of counts.filter((one) => one[1] > 1 || one[0].length <= LONGEST_TAG).slice(0, MOST_TAGS)) {
      makeButton(this.tags, `${tag.slice(0, 40)} ${count}`, t("Only images with {tag}", { tag }), () => {
        this.find.value = this.find.value === tag ? "" : tag;
        this.filter();
      });
    }
  }

  filter() {
    const found = new Set(matching(this.content?.images ?? [], this.find.value));
    this.grid.replaceChildren(...this.cards.filter(({ image }) => found.has(image)).slice(0, MOST_CARDS).map(({ root }) => root));
    if (found.size > MOST_CARDS) this.note.textContent = t("The first {n} of {all}: find the others by a word.", { n: MOST_CARDS, all: found.size });
    this.replace.disabled = !this.find.value || !found.size;
  }

  async replaceAll() {
    await this.set(replaced(this.content?.images ?? [], this.find.value, this.to.value));
  }

  async addTrigger() {
    const word = this.trigger.value.trim();
    const without = (this.content?.images ?? []).filter(({ caption }) => word && !caption.includes(word));
    await this.set(without.map((image) => ({ image, caption: [word, image.caption].filter(Boolean).join(", ") })));
  }

  /** @param {{image: import("./data_requests.js").Image, caption: string}[]} changes */
  async set(changes) {
    const cards = new Map(this.cards.map((card) => [card.image, card]));
    for (const { image, caption } of changes) await cards.get(image)?.set(caption);
    this.filter();
    this.note.textContent = changes.length === 1 ? t("{n} caption changed", { n: 1 }) : t("{n} captions changed", { n: changes.length });
  }

  /** @param {DragEvent} event */
  async dragged(event) {
    if (!hasFiles(event)) return;
    event.preventDefault();
    event.stopPropagation();
    if (event.type !== "drop") return;
    const { files, name } = await dropped(event);
    await this.take(files, name);
  }

  /**
   * @param {import("../uploads.js").Dropped[]} files
   * @param {string} name of a dropped folder
   */
  async take(files, name) {
    const current = this.content?.folder ?? "";
    try {
      const { folder, others } = await send(files, { current, name, isCaptionEnough: Boolean(this.content) }, (text) => { this.note.textContent = text; });
      await this.load(folder);
      if (others.length) this.note.textContent = aboutOthers(others);
    } catch (error) {
      this.note.textContent = error instanceof Error ? error.message : String(error);
    }
  }
}
