// Shows what a node has to say (its "text" output) under the node. Texts go in as text.

const SPEAKERS = new Set(["LoomCache", "LoomScore", "LoomLoraInspect", "LoomLoraResize", "LoomLoraMerge"]);
const HEIGHT = 140;

function makeBox(node) {
  const box = document.createElement("pre");
  box.className = "loom-report";
  const widget = node.addDOMWidget("loom_report", "loom_report", box, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => HEIGHT,
    getMaxHeight: () => 3 * HEIGHT,
  });
  widget.serialize = false;
  node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
  return box;
}

/** Sentences are wrapped; the columns of a table, up to the first empty line, are not. */
function show(box, text, hasTable) {
  const end = hasTable ? Math.max(text.indexOf("\n\n"), 0) : 0;
  const table = document.createElement("span");
  table.className = "loom-table";
  table.textContent = text.slice(0, end);
  box.replaceChildren(table, text.slice(end));
}

/** Nodes that report get a box the first time they do; it holds what they said last. */
export function listenToReports(node) {
  if (!SPEAKERS.has(node.comfyClass)) return;
  const { onExecuted } = node;
  let box = null;
  node.onExecuted = function (output) {
    onExecuted?.apply(this, arguments);
    if (!output?.text?.length) return;
    box ??= makeBox(this);
    show(box, output.text.join("\n"), this.comfyClass === "LoomScore");
  };
}
