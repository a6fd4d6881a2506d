// @ts-check
// The list of runs: what each is doing, found by name, chosen to compare their curves.

import { fileUrl } from "../client.js";
import { make, makeButton } from "../elements.js";
import { count, duration, loss } from "../format.js";
import { isActive, STATES } from "../runs.js";
import { openWizard } from "./new_run.js";
import { move } from "./requests.js";
import { openTrash } from "./trash.js";
import { t } from "../texts.js";

/**
 * @typedef {import("../runs.js").Run} Run
 * @typedef {import("./workbench.js").Workbench} Workbench
 * @typedef {{root: HTMLElement, update: (run: Run) => void}} Row
 */

/** At most so many curves are told apart. */
export const MOST_COMPARED = 5;

export class ListView {
  /** @param {Workbench} bench */
  constructor(bench) {
    this.bench = bench;
    this.root = make("div", "loom-list");
    const head = make("div", "loom-list-head", this.root);
    this.search = make("input", "loom-field", head);
    Object.assign(this.search, { type: "search", placeholder: t("Find a run") });
    this.search.setAttribute("aria-label", t("Find a run by its name, or by its note"));
    this.search.addEventListener("input", () => this.render());
    this.search.addEventListener("keydown", (event) => event.stopPropagation());
    this.compare = makeButton(head, t("Compare"), t("Curves and settings of the chosen runs"), () => bench.compare([...this.chosen]));
    makeButton(head, t("New run"), t("Choose a model and your images: the graph is built for you"), () => openWizard()).classList.add("loom-first");
    this.note = make("p", "loom-note", this.root);
    this.note.setAttribute("role", "status");
    this.rows = make("ul", "loom-rows", this.root);
    this.empty = make("div", "loom-empty", this.root);
    make("p", "", this.empty, t("No run yet. “New run” asks for a model and your images, and builds the graph; a template is the other way."));
    makeButton(this.empty, t("Browse templates"), t("Templates of LoRA Loom"), () => bench.browse());
    this.trash = makeButton(make("div", "loom-list-foot", this.root), t("Trash"), t("Runs that were deleted: bring one back, or delete all for good"), () => openTrash(bench));
    /** @type {Set<string>} */
    this.chosen = new Set();
    /** The run that is dragged over the queue. */
    this.dragged = "";
    /** @type {Map<string, Row>} */
    this.known = new Map();
  }

  /** To the run that was open, or to the search. */
  focus() {
    const row = this.known.get(this.bench.before)?.root;
    const open = row?.isConnected ? row.querySelector("button") : null;
    (open ?? this.search).focus();
  }

  render() {
    const { list } = this.bench;
    const runs = list.found(this.search.value);
    this.empty.hidden = list.runs.size > 0;
    this.note.textContent = list.runs.size && !runs.length ? t("No run has this name.") : "";
    this.compare.disabled = this.chosen.size < 2;
    this.compare.hidden = list.runs.size < 2;
    this.trash.hidden = !list.trash;
    this.trash.textContent = t("Trash ({n})", { n: list.trash });
    const names = runs.map((run) => run.name ?? "");
    for (const name of [...this.known.keys()]) if (!list.runs.has(name)) this.known.delete(name);
    const rows = names.map((name) => this.row(name).root);
    if (rows.length !== this.rows.children.length || rows.some((row, place) => this.rows.children[place] !== row)) this.rows.replaceChildren(...rows);
    for (const run of runs) this.row(run.name ?? "").update(run);
  }

  /** @param {string} name */
  row(name) {
    const known = this.known.get(name) ?? this.makeRow(name);
    this.known.set(name, known);
    return known;
  }

  /**
   * @param {string} name
   * @returns {Row}
   */
  makeRow(name) {
    const root = make("li", "loom-row");
    const check = make("input", "", root);
    check.type = "checkbox";
    check.title = t("Choose to compare");
    check.setAttribute("aria-label", t("Choose {name} to compare", { name }));
    check.addEventListener("change", () => this.choose(name, check));
    const open = makeButton(root, "", t("Open {name}", { name }), () => this.bench.open(name));
    open.className = "loom-open";
    const thumb = make("span", "loom-thumb", open);
    const body = make("span", "loom-row-body", open);
    const line = make("span", "loom-row-head", body);
    const title = make("span", "loom-row-name", line, name);
    const chip = make("span", "loom-chip", line);
    const bar = make("span", "loom-bar", body);
    const fill = make("span", "loom-fill", bar);
    const facts = make("span", "loom-row-facts", body);
    this.takeDrags(root, name);
    /** @param {Run} run */
    const update = (run) => {
      root.draggable = this.bench.list.queue.includes(name);
      root.dataset.state = this.bench.list.isOffline && isActive(run.state) ? "offline" : this.bench.growths.get(name) ? "doubtful" : run.state;
      chip.textContent = this.stateText(run);
      title.textContent = run.starred ? `★ ${name}` : name;
      open.title = run.note || t("Open {name}", { name });
      bar.hidden = !isActive(run.state);
      fill.style.width = `${run.total ? (100 * (run.step ?? 0)) / run.total : 0}%`;
      facts.replaceChildren();
      for (const fact of figures(run, this.bench.list.isOffline)) make("span", "", facts, fact);
      for (const text of texts(run)) make("span", "loom-row-text", facts, text);
      showThumbnail(thumb, name, run.sample ?? "");
    };
    return { root, update };
  }

  /**
   * A run that waits is dragged to another's place in the queue; the button "Next" of its menu does it without a mouse.
   * @param {HTMLElement} root
   * @param {string} name
   */
  takeDrags(root, name) {
    const isTarget = () => this.dragged !== "" && this.dragged !== name && this.bench.list.queue.includes(name);
    root.addEventListener("dragstart", (event) => {
      this.dragged = name;
      event.dataTransfer?.setData("text/plain", name);
    });
    root.addEventListener("dragend", () => { this.dragged = ""; });
    root.addEventListener("dragover", (event) => isTarget() && event.preventDefault());
    root.addEventListener("drop", (event) => {
      if (!isTarget()) return;
      event.preventDefault();
      const [run, place] = [this.dragged, this.bench.list.queue.indexOf(name)];
      this.bench.trying(() => move(run, place).then(() => this.bench.refresh()));
    });
  }

  /** @param {Run} run */
  stateText(run) {
    if (this.bench.list.isOffline && isActive(run.state)) return t("No connection");
    const place = this.bench.list.queue.indexOf(run.name ?? "");
    if (place >= 0) return t("Queued, place {n}", { n: place + 1 });
    if (this.bench.growths.get(run.name ?? "")) return t("Finished, loss rose");
    return STATES[/** @type {keyof typeof STATES} */ (run.state)] ?? run.state ?? "";
  }

  /** @param {string} name @param {HTMLInputElement} check */
  choose(name, check) {
    if (check.checked && this.chosen.size >= MOST_COMPARED) check.checked = false;
    if (check.checked) this.chosen.add(name);
    else this.chosen.delete(name);
    this.compare.disabled = this.chosen.size < 2;
  }
}

/**
 * Short facts, each of which is shown whole.
 * @param {Run} run
 * @param {boolean} isOffline
 */
function figures(run, isOffline) {
  const facts = [t("{step} / {total} steps", { step: count(run.step), total: count(run.total) })];
  if (isActive(run.state) && run.state !== "paused" && run.eta && !isOffline) facts.push(t("{time} left", { time: duration(run.eta) }));
  if (run.lowest != null) facts.push(t("validation {loss}", { loss: loss(run.lowest) }));
  else if (run.loss != null) facts.push(t("loss {loss}", { loss: loss(run.loss) }));
  return facts;
}

/**
 * Sentences, which are cut at the end of their line.
 * @param {Run} run
 */
const texts = (run) => [run.state === "failed" || run.state === "damaged" ? run.error : "", run.note].filter((text) => text);

/**
 * @param {HTMLElement} place
 * @param {string} run
 * @param {string} file
 */
function showThumbnail(place, run, file) {
  if (place.dataset.file === file) return;
  place.dataset.file = file;
  place.replaceChildren();
  if (!file) return;
  const image = make("img", "", place);
  image.alt = ""; // the name next to it says what it is
  image.loading = "lazy";
  image.src = fileUrl(run, file);
}
