// @ts-check
// What the workbench asks of the server, besides what the panel does.

import { body, post, read } from "../client.js";
import { runPath } from "../runs.js";

/**
 * @typedef {import("../runs.js").Run} Run
 * @typedef {{name: string, value: unknown, default: unknown}} Changed
 * @typedef {{changed: Changed[], all: Record<string, unknown>, toml: string}} Settings
 * @typedef {Record<string, {class_type: string, inputs: Record<string, unknown>}>} Graph
 * @typedef {[number, number, number, number]} Place x, y, width, height
 * @typedef {{title: string, resolution: number, rank: number | null, warning: string, trap: string, adapter: string, previews: string[], parts: {label: string, files: string[], value: string}[]}} ModelFacts
 * @typedef {{graph: Graph, places: Record<string, Place>, groups: Record<string, Place>, name: string}} NewGraph
 */

/** @returns {Promise<{runs: Run[], queue?: string[], trash?: number}>} trash: how many runs lie there */
export const fetchRuns = async () => (await read("/lora_loom/runs")) ?? { runs: [] };

/**
 * A run's record with about as many steps as asked for.
 * @param {string} name
 * @param {number} most
 */
export const fetchThinned = async (name, most) => (await read(`${runPath(name)}/metrics?since=-1&most=${most}`))?.metrics ?? [];

/**
 * @param {string} name
 * @returns {Promise<Settings | null>}
 */
export const fetchSettings = (name) => read(`${runPath(name)}/settings`);

/**
 * @param {string} name
 * @returns {Promise<{prompt: Graph, node: string} | null>}
 */
export const fetchGraph = (name) => read(`${runPath(name)}/graph`);

/**
 * @param {string} name
 * @param {string} to
 * @returns {Promise<Run>}
 */
export const rename = (name, to) => post(`${runPath(name)}/rename`, { to });

/**
 * Away to the trash folder; with `loras` also the files that ComfyUI lists.
 * @param {string} name
 * @param {boolean} loras
 * @returns {Promise<{trash: string}>}
 */
export const remove = (name, loras) => post(`${runPath(name)}/delete`, { loras });

/** What lies in the trash, the newest first. @returns {Promise<{entry: string, name: string, deleted: string, bytes: number}[]>} */
export const fetchTrash = async () => (await read("/lora_loom/trash"))?.trash ?? [];

/** Back from the trash. @param {string} entry @returns {Promise<Run>} */
export const restore = (entry) => post("/lora_loom/trash/restore", { entry });

/** For good. @returns {Promise<{deleted: number}>} */
export const emptyTrash = () => post("/lora_loom/trash/empty", {});

/**
 * @param {string} name of a run that waits
 * @param {number} place from 0
 * @returns {Promise<{queue: string[]}>}
 */
export const move = (name, place) => post(`${runPath(name)}/move`, { place });

/**
 * @param {string} name
 * @param {string} note
 * @param {boolean} starred
 * @returns {Promise<{note: string, starred: boolean}>}
 */
export const saveNote = (name, note, starred) => post(`${runPath(name)}/note`, { note, starred });

/** What the wizard offers. @returns {Promise<{models: string[], name: string}>} */
export const fetchChoices = async () => (await read("/lora_loom/new")) ?? { models: [], name: "my-lora" };

/** What a base model is and needs. @param {string} name @returns {Promise<ModelFacts>} */
export const fetchModel = (name) => read(`/lora_loom/new/model?${new URLSearchParams({ name })}`);

/** The graph of a new run. @param {import("./wishes.js").Wish} wish @returns {Promise<NewGraph>} */
export const makeGraph = (wish) => post("/lora_loom/new", wish);

/** The text of a run's log. @param {string} address */
export async function fetchText(address) {
  const answer = await fetch(address, { cache: "no-store" });
  return answer.ok ? answer.text() : body(answer);
}
