// @ts-check
// The sidebar tab "LoRA Loom": which of its views is open, and what keeps them up to date.

import { act, fetchMetrics, fetchRun } from "../client.js";
import { make, makeButton } from "../elements.js";
import { isActive, isDone } from "../runs.js";
import { growth } from "../verdict.js";
import { CompareView } from "./compare_view.js";
import { FolderView } from "./data_view.js";
import { DetailView } from "./detail_view.js";
import { ListView } from "./list_view.js";
import { fetchRuns, fetchThinned } from "./requests.js";
import { RunList } from "./run_list.js";
import { joined, series } from "./timeline.js";
import { t } from "../texts.js";

/**
 * @typedef {import("../runs.js").Run} Run
 * @typedef {import("../runs.js").Detail} Detail
 * @typedef {{root: HTMLElement, focus: () => void}} View
 */

const REFRESH_MS = 2000; // between two requests for the record of a run that trains
const JUDGED = 20; // newest finished runs whose losses are read
const JUDGED_STEPS = 300;

export class Workbench {
  /** @param {() => void} browse opens ComfyUI's templates */
  constructor(browse) {
    this.browse = browse;
    this.list = new RunList();
    /** How many times its start the loss of a finished run ends at; 0: not far above. @type {Map<string, number>} */
    this.growths = new Map();
    this.root = make("div", "loom-bench");
    this.bar = make("div", "loom-tabs", this.root);
    this.bar.setAttribute("role", "group");
    this.bar.setAttribute("aria-label", t("Runs or data"));
    makeButton(this.bar, t("Runs"), t("What trains, waits and has ended"), () => this.open(""));
    makeButton(this.bar, t("Data"), t("Images and their captions"), () => this.openData());
    this.offline = make("p", "loom-note loom-warning", this.root);
    this.offline.setAttribute("role", "status");
    this.error = make("p", "loom-error", this.root);
    this.error.setAttribute("role", "alert");
    this.place = make("div", "loom-place", this.root);
    /** @type {HTMLButtonElement[]} */
    this.expanders = [];
    this.listView = new ListView(this);
    this.detailView = new DetailView(this);
    this.compareView = new CompareView(this);
    this.dataView = new FolderView(this);
    /** The run in detail; "" while the list is open. */
    this.name = "";
    /** The run that was open before. */
    this.before = "";
    /** @type {import("./timeline.js").Line[]} */
    this.lines = [];
    /** What a run was asked for and has not done yet. @type {{name: string, action: string} | undefined} */
    this.wish = undefined;
    /** @type {(() => void)[]} called when the list has changed */
    this.followers = [];
    this.turn(this.listView);
  }

  /**
   * The focus goes with the view, for whoever works without a mouse.
   * @param {View} view
   */
  turn(view) {
    const hadFocus = this.place.contains(document.activeElement);
    this.view = view;
    this.place.replaceChildren(view.root);
    if (hadFocus) requestAnimationFrame(() => this.focus()); // its rows are drawn by then
    this.bar.hidden = view !== this.listView && view !== this.dataView;
    const chosen = view === this.dataView ? t("Data") : t("Runs");
    for (const button of this.bar.children) button.setAttribute("aria-pressed", String(button.textContent === chosen));
  }

  /** @param {string} [folder] */
  async openData(folder) {
    this.name = "";
    this.turn(this.dataView);
    await this.dataView.load(folder);
  }

  /** @param {HTMLElement} parent */
  mount(parent) {
    this.parent = parent;
    parent.append(this.root);
    this.list.failures.clear();
    requestAnimationFrame(() => this.isAwaited && this.focus()); // ComfyUI puts the place itself on the page only now
    this.refresh();
  }

  /** Let the keys go to the view that is open, as soon as it is on the page. */
  focus() {
    this.isAwaited = !this.root.isConnected;
    if (!this.isAwaited) this.view?.focus();
  }

  /** Everything anew: when it is opened, after an action, when a run begins or ends. */
  async refresh() {
    await this.trying(async () => this.list.load(await fetchRuns()));
    this.changed();
    if (this.name) await this.refreshRun();
    await this.judge();
  }

  /** The run in detail. */
  async refreshRun() {
    const { name } = this;
    this.asked = Date.now();
    await this.trying(async () => {
      const last = this.lines.at(-1)?.step ?? -1;
      const [run, newer] = await Promise.all([fetchRun(name), fetchMetrics(name, last)]);
      if (name !== this.name || !run) return;
      const begun = run.step ?? 0;
      this.lines = joined(begun < last ? await fetchMetrics(name, -1) : this.lines, newer); // continued from a checkpoint before
      this.detailView.show(run, this.lines);
    });
  }

  /** Whether the losses of finished runs ended far above their start. */
  async judge() {
    const unknown = this.list.sorted.slice(0, JUDGED).filter((run) => run.state === "finished" && !this.growths.has(run.name ?? ""));
    for (const { name = "" } of unknown) {
      await this.trying(async () => {
        const lines = await fetchThinned(name, JUDGED_STEPS);
        this.growths.set(name, growth(series(lines, "loss"), series(lines, "held_out")));
      });
    }
    if (unknown.length) this.changed();
  }

  changed() {
    this.offline.textContent = this.list.isOffline ? t("No connection to ComfyUI: this may be old.") : "";
    if (this.root.isConnected) this.listView.render();
    if (this.name) this.detailView.renderState();
    for (const follower of this.followers) follower();
  }

  /**
   * An event from the server.
   * @param {string} kind
   * @param {Detail} detail
   */
  heard(kind, detail) {
    if (kind === "reconnecting") this.lose();
    if (kind === "reconnected") this.refresh();
    const { name = "" } = detail;
    if (this.wish?.name === name && isDone(this.wish.action, kind)) this.wish = undefined;
    if (kind === "run") this.growths.delete(name);
    if (this.list.heard(kind, detail)) this.refresh();
    else this.changed();
    const isDue = kind === "run" || kind === "sample" || kind === "page" || Date.now() - (this.asked ?? 0) > REFRESH_MS;
    if (name && name === this.name && this.root.isConnected && isDue) this.refreshRun();
  }

  /**
   * Ask a run for something, and say so at once: it is done only between two steps. Throws with the server's own words.
   * @param {string} name
   * @param {string} action
   */
  async ask(name, action) {
    this.wish = { name, action };
    this.detailView.renderState();
    try {
      await act(name, action);
    } catch (error) {
      this.wish = undefined;
      throw error;
    }
    await this.refresh();
  }

  /** The server cannot be reached; what is shown may be old. */
  lose() {
    this.wish = undefined;
    this.list.isOffline = true;
    this.error.textContent = "";
  }

  /**
   * Do something, and say so if it does not work.
   * @param {() => Promise<unknown>} work
   */
  async trying(work) {
    try {
      await work();
      this.error.textContent = "";
    } catch (error) {
      if (!this.list.isOffline) this.error.textContent = error instanceof Error ? error.message : String(error);
    }
  }

  /** @param {string} name of a run; "" for the list */
  open(name) {
    if (name !== this.name) this.lines = [];
    this.before = this.name;
    this.name = name;
    this.turn(name ? this.detailView : this.listView);
    const run = this.list.runs.get(name);
    if (run) this.detailView.show(run, this.lines);
    if (name) this.refreshRun();
    else this.changed();
  }

  /** @param {string[]} names */
  async compare(names) {
    this.name = "";
    this.turn(this.compareView);
    await this.trying(() => this.compareView.show(names));
  }

  /**
   * The button of a view that shows the workbench over the whole page, and puts it back.
   * @param {HTMLElement} parent
   */
  makeExpand(parent) {
    this.expanders.push(makeButton(parent, t("Expand"), t("Over the whole page; Escape leaves"), () => this.expand()));
  }

  /** Over the whole page, until Escape. */
  expand() {
    if (this.page) {
      this.page.close();
      return;
    }
    const page = make("dialog", "loom-dialog loom-page", document.body);
    page.setAttribute("aria-label", "LoRA Loom");
    page.addEventListener("keydown", (event) => event.stopPropagation());
    page.addEventListener("close", () => {
      this.page = undefined;
      this.parent?.append(this.root);
      page.remove();
      for (const button of this.expanders) button.textContent = t("Expand");
    });
    for (const button of this.expanders) button.textContent = t("Close");
    this.page = page;
    page.append(this.root);
    page.showModal();
  }

  /** @returns {Run | undefined} the run that trains now */
  get current() {
    return this.list.active.find((run) => run.state !== "queued") ?? this.list.active[0];
  }

  get isActive() {
    return isActive(this.current?.state);
  }
}
