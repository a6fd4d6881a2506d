// @ts-check
// Questions and large images over the page, in the browser's own dialog element: Escape closes, the focus returns.

import { make, makeButton } from "../elements.js";
import { t } from "../texts.js";

/**
 * @param {string} className
 * @param {string} label for a screen reader
 * @param {{isForm?: boolean}} [options] isForm: a click beside it does not throw away what was filled in
 */
export function openDialog(className, label, { isForm = false } = {}) {
  const dialog = make("dialog", `loom-dialog ${className}`, document.body);
  dialog.setAttribute("aria-label", label);
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("keydown", (event) => event.stopPropagation()); // ComfyUI's own keys are for its canvas
  dialog.addEventListener("click", (event) => !isForm && event.target === dialog && dialog.close());
  return dialog;
}

/**
 * @param {string} question
 * @param {string} value to begin with
 * @param {string} label of the button
 * @returns {Promise<string | null>} null: nothing is to be done
 */
export function askText(question, value, label) {
  return new Promise((answer) => {
    const dialog = openDialog("loom-question", question);
    const form = make("form", "", dialog);
    const name = make("label", "", form, question);
    const field = make("input", "loom-field", name);
    field.value = value;
    const row = make("div", "loom-buttons", form);
    makeButton(row, t("Cancel"), t("Change nothing"), () => dialog.close());
    make("button", "loom-button loom-first", row, label).type = "submit";
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      answer(field.value.trim());
      dialog.close();
    });
    dialog.addEventListener("close", () => answer(null));
    dialog.showModal();
    field.select();
  });
}

/**
 * @template {string} Choice
 * @param {string} question
 * @param {{label: string, choice: Choice}[]} choices
 * @returns {Promise<Choice | null>}
 */
export function askChoice(question, choices) {
  return new Promise((answer) => {
    const dialog = openDialog("loom-question", question);
    make("p", "", dialog, question);
    const row = make("div", "loom-buttons loom-column", dialog);
    for (const { label, choice } of choices) {
      makeButton(row, label, label, () => {
        answer(choice);
        dialog.close();
      });
    }
    makeButton(row, t("Cancel"), t("Change nothing"), () => dialog.close());
    dialog.addEventListener("close", () => answer(null));
    dialog.showModal();
  });
}

/**
 * An image in full size; the arrow keys go to the others.
 * @param {{address: string, text: string}[]} images
 * @param {number} first
 */
export function showImages(images, first) {
  const dialog = openDialog("loom-lightbox", t("Sample in full size"));
  const image = make("img", "", dialog);
  const text = make("p", "", dialog);
  let at = first;
  const render = () => {
    image.src = images[at].address;
    image.alt = text.textContent = images[at].text;
  };
  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    at = (at + step + images.length) % images.length;
    render();
  });
  image.addEventListener("click", () => dialog.close());
  render();
  dialog.showModal();
}
