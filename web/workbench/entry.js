// @ts-check
// The entry of the workbench: sidebar tab, ticker, notices, commands, settings. What a frontend does not know of it, it ignores.

import { app } from "../../../scripts/app.js";
import { listen } from "../client.js";
import { makeCommands, KEYS } from "./commands.js";
import { door } from "./door.js";
import { announce } from "./notices.js";
import { makeSettings, setting, TICKER } from "./settings.js";
import { addTicker } from "./ticker.js";
import { Workbench } from "./workbench.js";
import { t } from "../texts.js";

const TAB = "lora-loom";
const bench = new Workbench(() => app.extensionManager?.command?.execute?.("Comfy.BrowseTemplates"));

/** @param {string} [name] of a run */
export function openWorkbench(name) {
  const tabs = app.extensionManager?.sidebarTab;
  if (tabs?.activeSidebarTabId !== TAB) tabs?.toggleSidebarTab?.(TAB);
  if (name) bench.open(name);
}

door.openData = (folder) => {
  openWorkbench();
  bench.openData(folder);
};

/** ComfyUI asks for a tab's badge once, so the badge is put on its button here. */
function renderBadge() {
  const button = document.querySelector(`.${TAB}-tab-button, button[aria-label="LoRA Loom"], button[aria-label^="LoRA Loom:"]`);
  const { badge } = bench.list;
  if (!(button instanceof HTMLElement)) return;
  button.classList.toggle("loom-badge", badge !== null);
  button.dataset.loomBadge = badge ?? "";
}

let renderTicker = () => {};
const commands = makeCommands(bench, () => {
  openWorkbench();
  bench.focus();
});

app.registerExtension({
  name: "lora_loom.workbench",
  commands,
  keybindings: KEYS,
  menuCommands: [{ path: ["Extensions", "LoRA Loom"], commands: commands.map((command) => command.id) }],
  settings: makeSettings(() => renderTicker()),
  getNodeMenuItems(node) {
    const run = String(node.properties?.loom_run ?? "");
    return node.comfyClass === "LoomTrain" && run ? [null, { content: t("Open run {name}", { name: run }), callback: () => openWorkbench(run) }] : [];
  },
  setup() {
    const style = document.createElement("link");
    style.rel = "stylesheet";
    style.href = new URL("./workbench.css", import.meta.url).href;
    document.head.append(style);
    app.extensionManager?.registerSidebarTab?.({
      id: TAB,
      icon: "pi pi-chart-line",
      title: "LoRA Loom",
      tooltip: t("LoRA Loom: your runs"),
      type: "custom",
      render: (/** @type {HTMLElement} */ element) => bench.mount(element),
      destroy: () => bench.root.remove(),
    });
    const ticker = addTicker(bench, openWorkbench);
    renderTicker = () => ticker(setting(TICKER, true));
    bench.followers.push(renderTicker, renderBadge);
    listen((kind, detail) => {
      bench.heard(kind, detail);
      if (kind === "run") announce(detail);
    });
    bench.refresh();
  },
});
