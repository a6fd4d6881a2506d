// @ts-check
// What the Data tab asks of the server.

import { api } from "../../../scripts/api.js";
import { post, read } from "../client.js";

/**
 * @typedef {{name: string, caption: string, width: number, height: number, bucket: [number, number], crop: [number, number, number, number], warnings: string[]}} Image
 * @typedef {{folder: string, images: Image[], buckets: {width: number, height: number, images: number}[], warnings: string[], can_edit: boolean}} Folder
 */

/** @returns {Promise<string[]>} */
export const fetchFolders = async () => (await read("/lora_loom/data/folders"))?.folders ?? [];

/**
 * @param {string} folder
 * @param {number} resolution
 * @returns {Promise<Folder>}
 */
export const fetchFolder = (folder, resolution) => read(`/lora_loom/data?${new URLSearchParams({ folder, resolution: String(resolution) })}`);

/**
 * @param {string} folder
 * @param {string} name
 */
export const thumbnailUrl = (folder, name) => api.apiURL(`/lora_loom/data/image?${new URLSearchParams({ folder, name })}`);

/**
 * @param {string} folder
 * @param {string} name
 * @param {string} caption
 */
export const saveCaption = (folder, name, caption) => post("/lora_loom/data/caption", { folder, name, caption });
