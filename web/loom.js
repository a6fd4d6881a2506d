// Puts a panel under every LoomTrain node and keeps it true; lets nodes that report show their text.

import { app } from "../../scripts/app.js";
import { listen } from "./client.js";
import { Panel } from "./panel.js";
import { listenToReports } from "./report.js";

const NODE = "LoomTrain";
const HEIGHT = 260;
const panels = new Map(); // node -> Panel

function addStyle() {
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = new URL("./panel.css", import.meta.url).href;
  document.head.append(link);
}

const nameWidget = (node) => node.widgets?.find((widget) => widget.name === "name");

/** The run a node shows: the one it last started, if it still goes by that name (or name-2, name-3, …), else by name. */
function runOf(node) {
  const wanted = String(nameWidget(node)?.value ?? "").trim();
  const started = String(node.properties?.loom_run ?? "");
  return belongs(started, wanted) ? started : wanted;
}

function belongs(run, wanted) {
  return run === wanted || (run.startsWith(`${wanted}-`) && /^\d+$/.test(run.slice(wanted.length + 1)));
}

function bind(node, run) {
  node.properties.loom_run = run; // saved with the workflow, so the panel finds its run after a reload
  panels.get(node)?.follow(runOf(node));
}

function addPanel(node) {
  const panel = new Panel();
  const widget = node.addDOMWidget("loom_panel", "loom_panel", panel.root, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => HEIGHT,
    getMaxHeight: () => 2 * HEIGHT,
  });
  widget.serialize = false;
  node.setSize([Math.max(node.size[0], 420), Math.max(node.size[1], node.computeSize()[1])]);
  panels.set(node, panel);
  const name = nameWidget(node);
  if (name) {
    const before = name.callback;
    name.callback = function (...values) {
      const answer = before?.apply(this, values);
      panel.follow(runOf(node));
      return answer;
    };
  }
}

/** A run's events go to the panels that show it; a run just started by a node is bound to that node first. */
function heard(kind, detail) {
  for (const [node, panel] of panels) {
    if (kind === "reconnected") panel.refresh();
    else if (kind === "run" && detail.state === "queued" && detail.node === String(node.id) && belongs(detail.name, runBase(node))) bind(node, detail.name);
    else if (panel.name === detail.name) panel.heard(kind, detail);
  }
}

const runBase = (node) => String(nameWidget(node)?.value ?? "").trim();

app.registerExtension({
  name: "lora_loom.panel",
  setup() {
    addStyle();
    listen(heard);
  },
  nodeCreated(node) {
    listenToReports(node);
    if (node.comfyClass !== NODE) return;
    addPanel(node);
    const { onExecuted, onConfigure, onRemoved } = node;
    node.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      if (output?.loom_run?.length) bind(node, output.loom_run[0]);
    };
    node.onConfigure = function () {
      onConfigure?.apply(this, arguments);
      panels.get(node)?.follow(runOf(node)); // its name and properties are known only now
    };
    node.onRemoved = function () {
      onRemoved?.apply(this, arguments);
      panels.delete(node);
    };
    queueMicrotask(() => panels.get(node)?.follow(runOf(node)));
  },
});
