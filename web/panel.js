// @ts-check
// The panel under a LoomTrain node: state, progress, loss curve, last sample, buttons. All texts go in as text.

import { act, fetchMetrics, fetchRun, fileUrl } from "./client.js";
import { Curve } from "./curve.js";
import { count, duration, loss, pace } from "./format.js";
import { isActive, RunView, STATES } from "./runs.js";

/**
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {string} className
 * @param {HTMLElement | null} [parent]
 * @param {string} [text]
 * @returns {HTMLElementTagNameMap[Tag]}
 */
function make(tag, className, parent, text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  parent?.append(element);
  return element;
}

export class Panel {
  constructor() {
    this.view = new RunView();
    this.root = make("div", "loom-panel");
    const head = make("div", "loom-head", this.root);
    this.chip = make("span", "loom-chip", head);
    this.title = make("span", "loom-title", head);
    this.lossText = make("span", "loom-loss", head);
    const bar = make("div", "loom-bar", this.root);
    this.fill = make("div", "loom-fill", bar);
    this.facts = make("div", "loom-facts", this.root);
    const body = make("div", "loom-body", this.root);
    this.curve = new Curve();
    make("div", "loom-plot", body).append(this.curve.canvas);
    this.figure = make("figure", "loom-sample", body);
    this.image = make("img", "", this.figure);
    this.caption = make("figcaption", "", this.figure);
    this.message = make("div", "loom-message", this.root);
    this.row = make("div", "loom-buttons", this.root);
    this.buttons = this.makeButtons(this.row);
    for (const kind of ["pointerdown", "mousedown"]) this.root.addEventListener(kind, keepFromGraph);
    this.render();
  }

  /** @param {HTMLElement} parent */
  makeButtons(parent) {
    /** @param {string} label @param {string} hint @param {string} action */
    const button = (label, hint, action) => {
      const element = make("button", "loom-button", parent, label);
      element.type = "button";
      element.title = hint;
      element.addEventListener("click", () => this.act(action));
      return element;
    };
    return {
      pause: button("Pause", "Finish the step in flight, then hold.", "pause"),
      resume: button("Resume", "Go on from where it stands.", "resume"),
      stop: button("Stop", "Finish the step in flight, save, end.", "stop"),
      save: button("Save now", "Write a checkpoint and a LoRA file, and go on.", "save"),
      sample: button("Sample now", "Render the prompts of LoomValidation now.", "sample"),
    };
  }

  /**
   * Show a run by name: whatever the server has of it, from the first step on.
   * @param {string} name
   */
  async follow(name) {
    if (name !== this.view.name) {
      this.view = new RunView(name);
      this.render();
    }
    await this.refresh();
  }

  /** Fetch what may have been missed: after a (re)load, a lost connection, and when a run ends. */
  async refresh() {
    const view = this.view;
    if (!view.name) return;
    try {
      const run = await fetchRun(view.name);
      const lines = run ? await fetchMetrics(view.name, -1) : [];
      if (view !== this.view) return; // another run is shown meanwhile
      view.load(run, lines);
    } catch (error) {
      view.note = words(error);
    }
    this.render();
  }

  /**
   * An event of this run.
   * @param {string} kind
   * @param {import("./runs.js").Detail} detail
   */
  heard(kind, detail) {
    if (this.view.heard(kind, detail)) this.refresh();
    this.render();
  }

  /** @param {string} action */
  async act(action) {
    const view = this.view;
    try {
      view.run = { ...view.run, ...(await act(view.name, action)) };
      view.note = action === "save" ? "saving after this step" : "";
    } catch (error) {
      view.note = words(error);
    }
    this.render();
  }

  render() {
    const { name, run, losses, validation, note, progress } = this.view;
    const state = run?.state ?? "none";
    this.root.dataset.state = state;
    this.chip.textContent = run ? (STATES[/** @type {keyof typeof STATES} */ (state)] ?? state) : "No run yet";
    this.title.textContent = name;
    const last = losses[losses.length - 1];
    this.lossText.textContent = last ? `loss ${loss(last.value)}` : "";
    this.fill.style.width = `${100 * progress}%`;
    this.renderFacts();
    this.curve.show(losses, validation, run?.total ?? 0);
    this.renderSample();
    const error = state === "failed" ? (run?.error ?? "") : "";
    this.message.textContent = error || note;
    this.message.classList.toggle("loom-error", Boolean(error));
    this.renderButtons();
  }

  renderFacts() {
    const run = this.view.run;
    this.facts.replaceChildren();
    if (!run) {
      make("span", "", this.facts, "Queue the graph to start training.");
      return;
    }
    const moving = isActive(run.state);
    const facts = [`step ${count(run.step)} / ${count(run.total)}`];
    if (moving && run.seconds) facts.push(pace(run.seconds));
    if (moving && run.eta) facts.push(`${duration(run.eta)} left`);
    for (const fact of facts) make("span", "", this.facts, fact);
  }

  renderSample() {
    const { name, sample } = this.view;
    this.figure.hidden = !sample;
    if (!sample) return;
    const address = fileUrl(name, sample.file);
    if (this.image.getAttribute("src") !== address) this.image.src = address;
    this.caption.textContent = `step ${count(sample.step)}`;
  }

  renderButtons() {
    const { any, pause, resume, stop, save, sample } = this.view.buttons;
    this.row.hidden = !any;
    this.buttons.pause.hidden = pause.hidden;
    this.buttons.pause.disabled = pause.disabled;
    this.buttons.resume.hidden = resume.hidden;
    this.buttons.resume.textContent = resume.label;
    this.buttons.stop.disabled = stop.disabled;
    this.buttons.save.disabled = save.disabled;
    this.buttons.sample.hidden = sample.hidden;
  }
}

/**
 * A press on a button must not begin a drag of the node.
 * @param {Event} event
 */
function keepFromGraph(event) {
  if (event.target instanceof Element && event.target.closest("button")) event.stopPropagation();
}

/** @param {unknown} error */
const words = (error) => (error instanceof Error ? error.message : String(error));
