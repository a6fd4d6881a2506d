// @ts-check
// The runs that were deleted: each can be brought back, all can be deleted for good.

import { make, makeButton } from "../elements.js";
import { t } from "../texts.js";
import { askChoice, openDialog } from "./dialogs.js";
import { sizeText } from "./memory_plan.js";
import { emptyTrash, fetchTrash, restore } from "./requests.js";

/** @typedef {import("./workbench.js").Workbench} Workbench */

/** @param {Workbench} bench */
export async function openTrash(bench) {
  const dialog = openDialog("loom-trash", t("Trash"));
  make("h3", "", dialog, t("Trash"));
  const error = make("p", "loom-error", dialog);
  error.setAttribute("role", "alert");
  const rows = make("ul", "loom-rows", dialog);
  const buttons = make("div", "loom-buttons", dialog);
  /** @param {() => Promise<unknown>} work */
  const doing = async (work) => {
    try {
      await work();
      error.textContent = "";
    } catch (problem) {
      error.textContent = problem instanceof Error ? problem.message : String(problem);
    }
    await bench.refresh();
    await show();
  };
  const show = async () => {
    const found = await fetchTrash();
    rows.replaceChildren();
    for (const one of found) {
      const row = make("li", "loom-result", rows);
      make("span", "loom-card-name", row, `${one.name}, ${one.deleted}, ${sizeText(one.bytes)}`);
      makeButton(row, t("Restore"), t("Bring {name} back to the list of runs", { name: one.name }), () => doing(() => restore(one.entry)));
    }
    empty.disabled = !found.length;
    if (!found.length) make("li", "loom-note", rows, t("Nothing is in the trash."));
  };
  const empty = makeButton(buttons, t("Empty the trash"), t("Delete these runs for good"), async () => {
    const choice = await askChoice(t("Delete these runs for good? Their files cannot be brought back."), [{ label: t("Delete for good"), choice: "all" }]);
    if (choice) await doing(emptyTrash);
  });
  const close = makeButton(buttons, t("Close"), t("Close"), () => dialog.close());
  dialog.showModal();
  close.focus(); // Enter deletes nothing
  await doing(async () => {});
}
