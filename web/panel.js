// The panel under a LoomTrain node: state, progress, loss curve, last sample, buttons. All texts go in as text.

import { ACTIVE, act, fetchMetrics, fetchRun, fileUrl } from "./client.js";
import { Curve } from "./curve.js";
import { count, duration, loss, pace } from "./format.js";

const STATES = {
  queued: "Queued", caching: "Caching", running: "Training", yielding: "Waiting for the queue", paused: "Paused",
  stopping: "Stopping", finished: "Finished", failed: "Failed", stopped: "Stopped", interrupted: "Interrupted",
};
const CAN_CONTINUE = new Set(["failed", "stopped", "interrupted"]);

function make(tag, className, parent, text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  parent?.append(element);
  return element;
}

export class Panel {
  constructor() {
    this.name = "";
    this.run = null;
    this.clear();
    this.build();
    this.render();
  }

  clear() {
    this.points = [];
    this.held = [];
    this.note = "";
    this.sample = null;
  }

  build() {
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
    this.shown = make("figure", "loom-sample", body);
    this.picture = make("img", "", this.shown);
    this.caption = make("figcaption", "", this.shown);
    this.message = make("div", "loom-message", this.root);
    this.buttons = this.makeButtons(make("div", "loom-buttons", this.root));
    // A press on a button must not begin a drag of the node.
    for (const kind of ["pointerdown", "mousedown"]) this.root.addEventListener(kind, (event) => event.target.closest("button") && event.stopPropagation());
  }

  makeButtons(parent) {
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

  /** Show a run by name: whatever the server has of it, from the first step on. */
  async follow(name) {
    if (name !== this.name) {
      this.name = name;
      this.run = null;
      this.clear();
      this.render();
    }
    await this.refresh();
  }

  /** Fetch what may have been missed: after a (re)load, a lost connection, and when a run ends. */
  async refresh() {
    const name = this.name;
    if (!name) return;
    try {
      const run = await fetchRun(name);
      if (name !== this.name) return; // renamed meanwhile
      this.run = run;
      this.note = "";
      if (run) {
        await this.readMetrics(name);
        if (run.samples?.length) this.sample = newest(run.samples);
      }
    } catch (error) {
      this.note = error.message;
    }
    this.render();
  }

  async readMetrics(name) {
    const lines = await fetchMetrics(name, -1);
    if (name !== this.name) return;
    this.points = lines.filter((line) => "loss" in line).map((line) => ({ step: line.step, value: line.loss }));
    this.held = lines.filter((line) => "held_out" in line).map((line) => ({ step: line.step, value: line.held_out }));
  }

  /** An event of this run. */
  heard(kind, detail) {
    if (kind === "log") this.note = detail.text;
    if (kind === "sample") this.sample = { step: detail.step, file: detail.files[0] };
    if (kind === "run" || kind === "step") this.run = { ...this.run, ...detail };
    if (kind === "step") this.take(detail);
    if (kind === "run" && !ACTIVE.has(detail.state)) this.refresh();
    this.render();
  }

  take(detail) {
    const add = (list, value) => {
      while (list.length && list[list.length - 1].step >= detail.step) list.pop(); // a continued run begins at its checkpoint
      list.push({ step: detail.step, value });
    };
    if ("held_out" in detail) add(this.held, detail.held_out);
    else if (Number.isFinite(detail.loss)) add(this.points, detail.loss);
  }

  async act(action) {
    try {
      this.run = { ...this.run, ...(await act(this.name, action)) };
      this.note = action === "save" ? "saving after this step" : "";
    } catch (error) {
      this.note = error.message;
    }
    this.render();
  }

  render() {
    const run = this.run;
    const state = run?.state ?? "none";
    this.root.dataset.state = state;
    this.chip.textContent = run ? (STATES[state] ?? state) : "No run yet";
    this.title.textContent = this.name;
    const last = this.points[this.points.length - 1];
    this.lossText.textContent = last ? `loss ${loss(last.value)}` : "";
    this.fill.style.width = run?.total ? `${Math.min(100, (100 * run.step) / run.total)}%` : "0";
    this.renderFacts(run, state);
    this.curve.show(this.points, this.held, run?.total ?? 0);
    this.renderSample();
    const error = state === "failed" ? run.error : "";
    this.message.textContent = error || this.note;
    this.message.classList.toggle("loom-error", Boolean(error));
    this.renderButtons(run, state);
  }

  renderFacts(run, state) {
    this.facts.replaceChildren();
    if (!run) {
      make("span", "", this.facts, "Queue the graph to start training.");
      return;
    }
    const moving = ACTIVE.has(state);
    const facts = [`step ${count(run.step)} / ${count(run.total)}`];
    if (moving && run.seconds) facts.push(pace(run.seconds));
    if (moving && run.eta) facts.push(`${duration(run.eta)} left`);
    for (const fact of facts) make("span", "", this.facts, fact);
  }

  renderSample() {
    this.shown.hidden = !this.sample;
    if (!this.sample) return;
    const address = fileUrl(this.name, this.sample.file);
    if (this.picture.getAttribute("src") !== address) this.picture.src = address;
    this.caption.textContent = `step ${count(this.sample.step)}`;
  }

  renderButtons(run, state) {
    const active = ACTIVE.has(state);
    const { pause, resume, stop, save, sample } = this.buttons;
    pause.hidden = !active || state === "paused";
    resume.hidden = !(state === "paused" || CAN_CONTINUE.has(state));
    resume.textContent = state === "paused" ? "Resume" : "Continue";
    pause.disabled = state === "stopping";
    stop.disabled = !active || state === "stopping";
    save.disabled = !active || state === "queued" || state === "stopping";
    sample.hidden = !run?.can_sample;
    stop.parentElement.hidden = !run || (!active && !CAN_CONTINUE.has(state));
  }
}

/** samples/step-000120-0.png: the first picture of the highest step. */
function newest(files) {
  const found = files.map((file) => ({ file, match: /step-(\d+)-(\d+)\./.exec(file) })).filter(({ match }) => match);
  if (!found.length) return null;
  const step = Math.max(...found.map(({ match }) => Number(match[1])));
  const first = found.find(({ match }) => Number(match[1]) === step);
  return { step, file: first.file };
}
