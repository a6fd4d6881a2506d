// @ts-check
// The wizard "New run": model, images, trigger and goal become a graph with what is usual for that model.

import { make, makeButton } from "../elements.js";
import { ACCEPT, summary } from "../files.js";
import { aboutOthers, chosen, dropped, hasFiles, send } from "../uploads.js";
import { openDialog } from "./dialogs.js";
import { fetchFolders } from "./data_requests.js";
import { openNewGraph } from "./graph.js";
import { fetchChoices, fetchModel, makeGraph } from "./requests.js";
import { DEMO, GOALS, groupsOf, isComplete, nameFor, nameOf, usualModel } from "./wishes.js";
import { t } from "../texts.js";

/**
 * @typedef {import("./wishes.js").Wish} Wish
 * @typedef {import("./requests.js").ModelFacts} ModelFacts
 */

const CHOOSE = t("Choose a folder, or drop images here");

/** Ask for a new run, and put its graph on the canvas. */
export async function openWizard() {
  const wizard = new Wizard();
  wizard.dialog.showModal();
  await wizard.fill();
}

class Wizard {
  constructor() {
    /** @type {Wish} */
    this.wish = { model: "", goal: "character", name: "", trigger: "", folder: "", references: "", parts: [], preview: "" };
    this.isNameOwn = false;
    this.hasPreviews = false;
    this.free = "my-lora";
    this.dialog = openDialog("loom-wizard", t("New run"), { isForm: true });
    const form = make("form", "", this.dialog);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.make(true);
    });
    make("h3", "", form, t("New run"));
    this.model = this.select(form, t("Base model"), (value) => this.chooseModel(value));
    this.about = make("p", "loom-note", form);
    this.about.setAttribute("role", "status");
    this.warning = make("p", "loom-warning", form);
    this.parts = make("div", "loom-parts", form);
    this.preview = this.select(form, t("Samples are made by"), (value) => this.change({ preview: value }));
    this.goal = this.select(form, t("What it should learn"), (value) => this.chooseGoal(value));
    for (const [value, label] of GOALS) make("option", "", this.goal, label).value = value;
    this.images = new ImagesField(form, t("Your images"), (folder) => this.change({ folder }));
    this.before = new ImagesField(form, t("Images before the edit, under the same file names"), (references) => this.change({ references }));
    this.trigger = this.text(form, t("Trigger"), t("A word that will call your subject, such as ohwx"), (value) => this.change({ trigger: value }));
    this.name = this.text(form, t("Name of the run and of its LoRA"), "", (value) => {
      this.isNameOwn = value !== "";
      this.change({ name: value });
    });
    this.error = make("p", "loom-error", form);
    this.error.setAttribute("role", "alert");
    const row = make("div", "loom-buttons", form);
    makeButton(row, t("Cancel"), t("Change nothing"), () => this.dialog.close());
    this.build = makeButton(row, t("Only build the graph"), t("Puts the graph on the canvas, and starts nothing"), () => this.make(false));
    this.start = make("button", "loom-button loom-first", row, t("Start training"));
    this.start.type = "submit";
    this.chooseGoal(this.wish.goal);
  }

  /**
   * @param {HTMLElement} parent
   * @param {string} label
   * @param {(value: string) => void} changed
   */
  select(parent, label, changed) {
    const field = make("select", "loom-field", make("label", "", parent, label));
    field.addEventListener("change", () => changed(field.value));
    return field;
  }

  /**
   * @param {HTMLElement} parent
   * @param {string} label
   * @param {string} hint
   * @param {(value: string) => void} changed
   */
  text(parent, label, hint, changed) {
    const field = make("input", "loom-field", make("label", "", parent, label));
    field.placeholder = hint;
    field.addEventListener("input", () => changed(field.value.trim()));
    return field;
  }

  /** The lists of models and folders. */
  async fill() {
    await this.trying(async () => {
      const [choices, folders] = await Promise.all([fetchChoices(), fetchFolders()]);
      this.free = choices.name;
      for (const { label, models } of groupsOf(choices.models)) {
        const group = make("optgroup", "", this.model);
        group.label = label;
        for (const { value, text } of models) make("option", "", group, text).value = value;
      }
      for (const field of [this.images, this.before]) field.list(folders);
      this.model.value = usualModel(choices.models);
      await this.chooseModel(this.model.value);
    });
  }

  /** @param {string} model */
  async chooseModel(model) {
    this.change({ model, parts: [], preview: "" });
    this.showPreviews([]);
    this.facts = undefined;
    this.images.none.textContent = model === DEMO ? t("The demo's own images") : CHOOSE;
    await this.trying(async () => {
      const facts = await fetchModel(model);
      if (model !== this.wish.model) return; // another one was chosen meanwhile
      this.facts = facts;
      this.showModel(facts);
      this.change({ parts: facts.parts.map((part) => part.value) });
    });
  }

  /** @param {ModelFacts} facts */
  showModel(facts) {
    const known = facts.title || t("A model that LoRA Loom has no numbers for");
    this.about.textContent = [known, t("{n} pixels", { n: facts.resolution }), facts.rank ? t("rank {n}", { n: facts.rank }) : "", facts.adapter ? t("with {adapter} while training", { adapter: facts.adapter }) : ""].filter(Boolean).join(" · ");
    this.warning.textContent = [facts.warning, facts.trap].filter(Boolean).join(" ");
    this.showPreviews(facts.previews);
    this.parts.replaceChildren();
    for (const [place, part] of facts.parts.entries()) {
      const field = this.select(this.parts, part.label, (value) => this.change({ parts: this.wish.parts.map((one, at) => (at === place ? value : one)) }));
      make("option", "", field, t("Choose a file")).value = "";
      for (const file of part.files) make("option", "", field, file).value = file;
      field.value = part.value;
    }
  }

  /**
   * Models with few steps that may make the samples; nothing to choose from without one, or for an edit, which has no samples.
   * @param {string[]} names
   */
  showPreviews(names) {
    this.hasPreviews = names.length > 0;
    this.preview.replaceChildren();
    make("option", "", this.preview, t("the base model")).value = "";
    for (const name of names) make("option", "", this.preview, t("{name} (both must fit in memory)", { name: nameOf(name) })).value = name;
    this.hidePreviews();
  }

  hidePreviews() {
    const label = this.preview.parentElement;
    if (label) label.hidden = !this.hasPreviews || this.wish.goal === "edit";
  }

  /** @param {string} goal */
  chooseGoal(goal) {
    this.before.root.hidden = goal !== "edit";
    this.preview.value = goal === "edit" ? "" : this.preview.value;
    this.change({ goal, preview: this.preview.value });
    this.hidePreviews();
  }

  /** @param {Partial<Wish>} changed */
  change(changed) {
    Object.assign(this.wish, changed);
    if (!this.isNameOwn) this.name.value = this.wish.name = nameFor(this.wish.trigger, this.free);
    const is = this.facts !== undefined && isComplete(this.wish);
    this.start.disabled = this.build.disabled = !is;
  }

  /** @param {boolean} isStarted */
  async make(isStarted) {
    if (this.start.disabled) return;
    this.start.disabled = this.build.disabled = true;
    const isDone = await this.trying(async () => openNewGraph(await makeGraph(this.wish), { folder: this.wish.folder, names: this.images.uploaded.get(this.wish.folder) ?? [] }, isStarted));
    if (isDone) this.dialog.close();
    else this.change({});
  }

  /**
   * True if it worked; else the dialog says what did not.
   * @param {() => Promise<unknown>} work
   */
  async trying(work) {
    try {
      await work();
      this.error.textContent = "";
      return true;
    } catch (error) {
      this.error.textContent = error instanceof Error ? error.message : String(error);
      return false;
    }
  }
}

/** A folder of images: chosen from those that there are, or made of files that are dropped or chosen. */
class ImagesField {
  /**
   * @param {HTMLElement} parent
   * @param {string} label
   * @param {(folder: string) => void} changed
   */
  constructor(parent, label, changed) {
    this.changed = changed;
    /** Names of files by the folder that was made for them. @type {Map<string, string[]>} */
    this.uploaded = new Map();
    this.root = make("div", "loom-images-field", parent);
    this.folder = make("select", "loom-field", make("label", "", this.root, label));
    this.none = make("option", "", this.folder, CHOOSE);
    this.none.value = "";
    this.folder.addEventListener("change", () => changed(this.folder.value));
    const row = make("div", "loom-drop-head", this.root);
    this.status = make("span", "", row, t("Images, captions (.txt), a folder or a zip"));
    this.status.setAttribute("role", "status");
    this.chooser = make("input", "", row);
    Object.assign(this.chooser, { type: "file", multiple: true, accept: ACCEPT, hidden: true });
    this.chooser.addEventListener("change", () => this.take(chosen(this.chooser), ""));
    this.button = makeButton(row, t("Choose files"), t("Images and their captions, .txt files of the same name"), () => this.chooser.click());
    this.root.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
    this.root.addEventListener("drop", (event) => this.drop(event));
  }

  /** @param {string[]} folders */
  list(folders) {
    for (const name of folders) make("option", "", this.folder, name).value = name;
  }

  /** @param {DragEvent} event */
  async drop(event) {
    if (!hasFiles(event)) return;
    event.preventDefault();
    event.stopPropagation();
    const { files, name } = await dropped(event);
    await this.take(files, name);
  }

  /**
   * @param {import("../uploads.js").Dropped[]} files
   * @param {string} name of the dropped folder
   */
  async take(files, name) {
    this.button.disabled = true;
    try {
      const sent = await send(files, { current: "", name, isCaptionEnough: false }, (text) => { this.status.textContent = text; });
      this.uploaded.set(sent.folder, sent.names);
      make("option", "", this.folder, sent.folder).value = sent.folder;
      this.folder.value = sent.folder;
      this.status.textContent = [summary(sent.names), aboutOthers(sent.others)].filter(Boolean).join("; ");
      this.changed(sent.folder);
    } catch (error) {
      this.status.textContent = error instanceof Error ? error.message : String(error);
    }
    this.button.disabled = false;
  }
}
