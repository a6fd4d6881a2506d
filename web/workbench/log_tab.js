// @ts-check
// The log of a run: filtered by a word, copied, downloaded.

import { fileUrl } from "../client.js";
import { copied } from "../clipboard.js";
import { make, makeButton, makeLink } from "../elements.js";
import { fetchText } from "./requests.js";
import { t } from "../texts.js";

/** @typedef {import("./detail_view.js").Shown} Shown */

const MOST_LINES = 2000;

/**
 * The last lines that have a word.
 * @param {string} text
 * @param {string} word
 */
export function filtered(text, word) {
  const wanted = word.toLowerCase();
  const lines = text.split("\n").filter((line) => line.toLowerCase().includes(wanted));
  return lines.slice(-MOST_LINES).join("\n");
}

export class LogTab {
  constructor() {
    this.text = "";
    this.root = make("div", "loom-log");
    const head = make("div", "loom-menu", this.root);
    this.word = make("input", "loom-field", head);
    Object.assign(this.word, { type: "search", placeholder: t("Filter") });
    this.word.setAttribute("aria-label", t("Only lines with this word"));
    this.word.addEventListener("input", () => this.render());
    this.word.addEventListener("keydown", (event) => event.stopPropagation());
    const copy = makeButton(head, t("Copy"), t("Copy the lines below"), async () => {
      copy.textContent = (await copied(this.lines.textContent ?? "")) ? t("Copied") : t("Not copied: no permission");
    });
    this.link = makeLink(head, t("Open file"), "");
    this.lines = make("pre", "loom-log-lines", this.root);
    this.lines.tabIndex = 0;
    this.lines.setAttribute("aria-label", t("Log"));
  }

  /** @param {Shown} shown */
  async show({ run }) {
    const address = fileUrl(run.name ?? "", "log.txt");
    this.link.href = address;
    try {
      this.text = await fetchText(address);
    } catch (error) {
      this.text = error instanceof Error ? error.message : String(error);
    }
    if (this.link.href.endsWith(address)) this.render();
  }

  render() {
    const isAtEnd = this.lines.scrollTop + this.lines.clientHeight >= this.lines.scrollHeight - 20;
    this.lines.textContent = filtered(this.text, this.word.value);
    if (isAtEnd) this.lines.scrollTop = this.lines.scrollHeight;
  }
}
