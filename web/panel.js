// @ts-check
// The panel under a LoomTrain node: state, progress, loss curve, last sample, buttons. All texts go in as text.

import { act, fetchMetrics, fetchRun, fileUrl } from "./client.js";
import { Curve } from "./curve.js";
import { keepFocus, make, makeButton } from "./elements.js";
import { count, duration, loss, pace, spread } from "./format.js";
import { showResults } from "./results.js";
import { isActive, RunView, STATES } from "./runs.js";
import { t } from "./texts.js";

export class Panel {
  /** @param {() => void} startAnother queues the graph with a name of its own for the run */
  constructor(startAnother = () => {}) {
    this.view = new RunView();
    this.root = make("section", "loom-panel");
    const head = make("div", "loom-head", this.root);
    this.chip = make("span", "loom-chip", head);
    this.chip.setAttribute("role", "status");
    this.title = make("span", "loom-title", head);
    this.lossText = make("span", "loom-loss", head);
    this.bar = make("div", "loom-bar", this.root);
    this.bar.setAttribute("role", "progressbar");
    this.bar.setAttribute("aria-label", t("Steps done"));
    this.fill = make("div", "loom-fill", this.bar);
    this.facts = make("div", "loom-facts", this.root);
    const body = make("div", "loom-body", this.root);
    this.curve = new Curve();
    const plot = make("div", "loom-plot", body);
    this.legend = make("div", "loom-legend", plot);
    make("span", "loom-key-loss", this.legend, t("loss"));
    this.validationKey = make("span", "loom-key-validation", this.legend, t("validation loss"));
    this.likenessKey = make("span", "loom-key-likeness", this.legend);
    plot.append(this.curve.canvas);
    this.figure = make("figure", "loom-sample", body);
    this.link = make("a", "", this.figure);
    this.link.target = "_blank";
    this.link.rel = "noopener";
    this.image = make("img", "", this.link);
    this.caption = make("figcaption", "", this.figure);
    this.message = make("div", "loom-message", this.root);
    this.message.setAttribute("aria-live", "polite");
    this.clash = make("div", "loom-clash", this.root);
    this.clashText = make("p", "loom-error", this.clash);
    this.clashText.setAttribute("role", "alert");
    makeButton(this.clash, t("Train as a new run"), t("Sets existing_run to new and queues the graph again. The new run gets a name of its own; the old one stays."), startAnother);
    this.results = make("div", "loom-results", this.root);
    this.row = make("div", "loom-buttons", this.root);
    this.buttons = this.makeButtons(this.row);
    this.passFocus = keepFocus(this.row);
    for (const kind of ["pointerdown", "mousedown"]) this.root.addEventListener(kind, keepFromGraph);
    this.render();
  }

  /** @param {HTMLElement} parent */
  makeButtons(parent) {
    /** @param {string} label @param {string} hint @param {string} action */
    const button = (label, hint, action) => makeButton(parent, label, hint, () => this.act(action));
    return {
      pause: button(t("Pause"), t("Finish the step in flight, then hold."), "pause"),
      resume: button(t("Resume"), t("Go on from where it stands."), "resume"),
      stop: button(t("Stop"), t("Finish the step in flight, save, end."), "stop"),
      save: button(t("Save now"), t("Write a checkpoint and a LoRA file, and go on."), "save"),
      sample: button(t("Sample now"), t("Render the prompts of LoomValidation now."), "sample"),
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
    if (this.view.heard(kind, detail) || kind === "sample") this.refresh(); // the record has the scores of the samples
    this.render();
  }

  /**
   * Its node has failed.
   * @param {string} kind class of the error
   * @param {string} message
   */
  refuse(kind, message) {
    this.view.refused(kind, message);
    this.render();
  }

  /** The server cannot be reached; what is shown may be old. */
  lose() {
    this.view.isOffline = true;
    this.render();
  }

  /** @param {string} action */
  async act(action) {
    const view = this.view;
    view.ask(action);
    this.render();
    try {
      const run = await act(view.name, action);
      if (run.state !== view.run?.state) view.answered();
      view.run = { ...view.run, ...run };
    } catch (error) {
      view.answered(words(error));
    }
    this.render();
  }

  render() {
    const { name, run, losses, validation, likeness, note, progress, growth, isOffline } = this.view;
    const state = run?.state ?? "none";
    this.root.dataset.state = isOffline ? "offline" : growth ? "doubtful" : state;
    this.root.setAttribute("aria-label", t("Training run {name}", { name }));
    setText(this.chip, this.stateText(state));
    this.title.textContent = name;
    const last = losses[losses.length - 1];
    this.lossText.textContent = last ? t("loss {loss}", { loss: loss(last.value) }) : "";
    this.fill.style.width = `${100 * progress}%`;
    this.bar.setAttribute("aria-valuenow", String(Math.round(100 * progress)));
    this.renderFacts();
    this.curve.show(losses, validation, run?.total ?? 0, likeness);
    this.legend.hidden = !losses.length;
    this.validationKey.hidden = !validation.length;
    const alike = likeness[likeness.length - 1];
    this.likenessKey.hidden = !alike;
    if (alike) this.likenessKey.textContent = t("image similarity {value}", { value: spread(alike.value, alike.low, alike.high) });
    this.renderSample();
    const error = state === "failed" ? (run?.error ?? "") : "";
    setText(this.message, error || note || this.view.doubt || this.view.remark);
    this.clash.hidden = !this.view.clash;
    setText(this.clashText, this.view.clash);
    showResults(this.results, this.view);
    this.message.classList.toggle("loom-error", Boolean(error));
    this.renderButtons();
  }

  /** @param {string} state */
  stateText(state) {
    if (this.view.isOffline) return t("No connection");
    if (this.view.growth) return t("Finished, loss rose");
    if (!this.view.run) return t("No run yet");
    return STATES[/** @type {keyof typeof STATES} */ (state)] ?? state;
  }

  renderFacts() {
    const run = this.view.run;
    this.facts.replaceChildren();
    if (!run) {
      make("span", "", this.facts, t("Queue the graph to start training."));
      return;
    }
    const moving = isActive(run.state) && run.state !== "paused" && !this.view.isOffline;
    const facts = [t("step {step} / {total}", { step: count(run.step), total: count(run.total) })];
    if (moving && run.seconds) facts.push(pace(run.seconds));
    if (moving && run.eta) facts.push(t("{time} left", { time: duration(run.eta) }));
    const measured = this.view.validationLoss;
    if (measured) facts.push([t("validation {loss}", { loss: loss(measured.now) }), ...(measured.base === null ? [] : [t("base {loss}", { loss: loss(measured.base) })])].join(", "));
    for (const fact of facts) make("span", "", this.facts, fact);
    this.renderLayers();
  }

  /** How many layers train; at the end, only that some have not changed. */
  renderLayers() {
    const { unchanged, changed, layers } = this.view;
    if (unchanged) make("span", "", this.facts, t("only {changed} LoRA modules have changed", { changed })).title = t("Not changed: {modules}", { modules: unchanged });
    else if (layers.count) make("span", "", this.facts, t("trains {count} layers", { count: layers.count })).title = `${layers.trained}. ${layers.leftOut ? t("Left out: {layers}.", { layers: layers.leftOut }) : t("No layer is left out.")}`;
  }

  renderSample() {
    const { name, sample, forming } = this.view;
    this.figure.hidden = !sample && !forming;
    if (forming) {
      this.image.src = forming.image;
      this.link.removeAttribute("href");
      this.image.alt = t("A sample that is being made");
      this.caption.textContent = t("step {step}: sample {number} of {of} is being made", { step: count(forming.step), number: forming.number, of: forming.of });
      return;
    }
    if (!sample) return;
    const address = fileUrl(name, sample.file);
    if (this.image.getAttribute("src") !== address) this.image.src = address;
    this.link.href = address;
    this.image.alt = t("Sample at step {step}, opens in full size", { step: count(sample.step) });
    this.caption.textContent = t("step {step}", { step: count(sample.step) });
  }

  renderButtons() {
    const { any, pause, resume, stop, save, sample } = this.view.buttons;
    this.row.hidden = !any;
    this.buttons.pause.hidden = pause.hidden;
    this.buttons.pause.disabled = pause.disabled;
    this.buttons.resume.hidden = resume.hidden;
    this.buttons.resume.textContent = resume.label;
    this.buttons.resume.disabled = resume.disabled;
    this.buttons.stop.hidden = stop.hidden;
    this.buttons.save.hidden = save.hidden;
    this.buttons.sample.disabled = sample.disabled;
    this.buttons.stop.disabled = stop.disabled;
    this.buttons.save.disabled = save.disabled;
    this.buttons.sample.hidden = sample.hidden;
    this.passFocus();
  }
}

/**
 * A press on a button must not begin a drag of the node.
 * @param {Event} event
 */
function keepFromGraph(event) {
  if (event.target instanceof Element && event.target.closest("button, a")) event.stopPropagation();
}

/**
 * A screen reader says what changes: only what did change.
 * @param {HTMLElement} element
 * @param {string} text
 */
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** @param {unknown} error */
const words = (error) => (error instanceof Error ? error.message : String(error));
