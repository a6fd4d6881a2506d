// @ts-check
// What is said when a run ends, wherever its node is: a toast in the page, and a notification of the browser if that was wanted.

import { app } from "../../../scripts/app.js";
import { fetchMetrics, fetchRun } from "../client.js";
import { endNotice, RunView } from "../runs.js";
import { NOTIFY, setting, TOASTS } from "./settings.js";

/** @typedef {import("../runs.js").Detail} Detail */

/**
 * @param {Detail} detail of a "run" event
 */
export async function announce(detail) {
  if (!endNotice(detail)) return;
  const notice = endNotice(detail, await known(detail));
  if (!notice) return;
  if (setting(TOASTS, true)) app.extensionManager?.toast?.add?.(notice); // older frontends have none
  if (setting(NOTIFY, false) && window.Notification?.permission === "granted") {
    new Notification(notice.summary, { body: notice.detail, tag: `lora-loom ${detail.name}` });
  }
}

/**
 * What the server says about a run that has just finished; nothing if it cannot be asked.
 * @param {Detail} detail
 */
async function known({ name = "", state }) {
  if (state !== "finished") return {};
  try {
    const [run, lines] = await Promise.all([fetchRun(name), fetchMetrics(name, -1)]);
    const view = new RunView(name);
    view.load(run, lines);
    return { best: run?.best, doubt: view.doubt };
  } catch {
    return {}; // that it has finished is worth saying all the same
  }
}
