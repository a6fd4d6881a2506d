// @ts-check
// What a person wishes of a new run, before it is a graph. Pure functions.

import { t } from "../texts.js";

/** @typedef {{model: string, goal: string, name: string, trigger: string, folder: string, references: string, parts: string[], preview: string}} Wish */

/** The base model that comes with its own images. */
export const DEMO = "demo";

/** [value, label] of what can be learned. */
export const GOALS = /** @type {const} */ ([
  ["character", t("A character or a person")],
  ["style", t("A style")],
  ["object", t("An object")],
  ["edit", t("An edit: images before and after")],
]);

const GROUPS = [
  { folder: "checkpoints", label: t("Checkpoints") },
  { folder: "diffusion_models", label: t("Diffusion models") },
];

/**
 * Base models under headings, without the name of their folder; the demo's last.
 * @param {string[]} models folder, /, name
 * @returns {{label: string, models: {value: string, text: string}[]}[]}
 */
export function groupsOf(models) {
  const groups = GROUPS.map(({ folder, label }) => ({
    label,
    models: models.filter((name) => name.startsWith(`${folder}/`)).map((value) => ({ value, text: nameOf(value) })),
  }));
  const demo = { label: t("Without a model file"), models: models.includes(DEMO) ? [{ value: DEMO, text: t("Demo: a tiny model for a first try") }] : [] };
  return [...groups, demo].filter((group) => group.models.length);
}

/** A base model without the name of the folder that lists it. @param {string} model */
export const nameOf = (model) => model.slice(model.indexOf("/") + 1);

/** The model that is chosen at first: the first real one. @param {string[]} models */
export const usualModel = (models) => models.find((name) => name !== DEMO) ?? models[0] ?? "";

/**
 * A name for the run after its trigger; without one, a name that is free.
 * @param {string} trigger
 * @param {string} free
 */
export function nameFor(trigger, free) {
  const plain = trigger.normalize("NFC").replace(/[^\p{L}\p{N}_-]+/gu, "-").replace(/^-+|-+$/g, "").slice(0, 60);
  return plain || free;
}

/** Whether there is everything that a graph needs. @param {Wish} wish */
export function isComplete(wish) {
  const hasImages = wish.folder !== "" || (wish.model === DEMO && wish.goal !== "edit");
  return Boolean(wish.model && wish.name) && hasImages && wish.parts.every(Boolean) && (wish.goal !== "edit" || wish.references !== "");
}
