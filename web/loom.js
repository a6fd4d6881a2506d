// @ts-check
// The entry: puts a panel under every LoomTrain node and brings it the events of its run; nodes that report get a box.

import { app } from "../../scripts/app.js";
import { keepMeaning, meanings } from "./before.js";
import { listen, listenToFailures } from "./client.js";
import { takeDrops } from "./drop.js";
import { foldAdvanced } from "./fold.js";
import { keepOutputs } from "./outputs.js";
import { Panel } from "./panel.js";
import { listenToReports } from "./report.js";
import { belongs } from "./runs.js";
import { listenToStrips } from "./strip.js";
import { greyUnread } from "./unread.js";
import { showTemplate } from "./view.js";
import { keepWiresPainted, paintWires } from "./wires.js";

const NODE = "LoomTrain";
const HEIGHT = 260;
/** @type {Map<ComfyNode, Panel>} */
const panels = new Map();
/** @type {Map<string, Map<string, unknown>>} by node class */
const meant = new Map();

function addStyle() {
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = new URL("./panel.css", import.meta.url).href;
  document.head.append(link);
}

/** @param {ComfyNode} node */
const nameWidget = (node) => node.widgets?.find((widget) => widget.name === "name");

/** @param {ComfyNode} node */
const wantedName = (node) => String(nameWidget(node)?.value ?? "").trim();

/**
 * The run a node shows: the one it last started, if it still goes by that name (or name-2, name-3, …), else by name.
 * @param {ComfyNode} node
 */
function runOf(node) {
  const wanted = wantedName(node);
  const started = String(node.properties?.loom_run ?? "");
  return belongs(started, wanted) ? started : wanted;
}

/**
 * @param {ComfyNode} node
 * @param {string} run
 */
function bind(node, run) {
  node.properties.loom_run = run; // saved with the workflow, so the panel finds its run after a reload
  panels.get(node)?.follow(runOf(node));
}

/** @param {ComfyNode} node */
function addPanel(node) {
  const panel = new Panel(() => startAnother(node));
  const widget = node.addDOMWidget("loom_panel", "loom_panel", panel.root, {
    serialize: false,
    hideOnZoom: false,
    hideInPanel: true, // ComfyUI's own side panel would show an empty row, and take our width for its own
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

/**
 * Whether an event says that this node has just started a run.
 * @param {ComfyNode} node
 * @param {string} kind
 * @param {import("./runs.js").Detail} detail
 */
const startedBy = (node, kind, detail) =>
  kind === "run" && detail.state === "queued" && detail.node === String(node.id) && belongs(detail.name ?? "", wantedName(node));

/**
 * A run's events go to the panels that show it; a run just started by a node is bound to that node first.
 * @param {string} kind
 * @param {import("./runs.js").Detail} detail
 */
function heard(kind, detail) {
  for (const [node, panel] of panels) {
    if (kind === "reconnected") panel.refresh();
    else if (kind === "reconnecting") panel.lose();
    else if (startedBy(node, kind, detail)) bind(node, detail.name ?? "");
    else if (panel.view.name === detail.name) panel.heard(kind, detail);
  }
}

/**
 * Queue the graph with a name of its own for the run, where one with other settings has the name.
 * @param {ComfyNode} node
 */
function startAnother(node) {
  const existing = node.widgets?.find((widget) => widget.name === "existing_run");
  if (!existing) return;
  existing.value = "new";
  existing.callback?.("new");
  app.queuePrompt?.(0);
}

/**
 * @param {string} id of the node that has failed; in a subgraph its last part
 * @param {string} kind
 * @param {string} message
 */
function failed(id, kind, message) {
  for (const [node, panel] of panels) if (String(node.id) === id.split(":").pop()) panel.refuse(kind, message);
}

app.registerExtension({
  name: "lora_loom.panel",
  setup() {
    addStyle();
    keepWiresPainted();
    listen(heard);
    listenToFailures(failed);
  },
  afterConfigureGraph() {
    paintWires();
    showTemplate();
  },
  beforeRegisterNodeDef(_type, definition) {
    if (definition.name.startsWith("Loom")) meant.set(definition.name, meanings(definition));
  },
  nodeCreated(node) {
    keepMeaning(node, meant.get(node.comfyClass));
    greyUnread(node);
    if (node.comfyClass.startsWith("Loom")) foldAdvanced(node);
    takeDrops(node);
    listenToReports(node);
    listenToStrips(node);
    keepOutputs(node);
    if (node.comfyClass !== NODE) return;
    addPanel(node);
    const { onExecuted, onConfigure, onRemoved } = node;
    node.onExecuted = function (output, ...rest) {
      onExecuted?.call(this, output, ...rest);
      if (output?.loom_run?.length) bind(node, output.loom_run[0]);
    };
    node.onConfigure = function (...values) {
      onConfigure?.apply(this, values);
      panels.get(node)?.follow(runOf(node)); // its name and properties are known only now
    };
    node.onRemoved = function (...values) {
      onRemoved?.apply(this, values);
      panels.delete(node);
    };
    queueMicrotask(() => panels.get(node)?.follow(runOf(node)));
  },
});
