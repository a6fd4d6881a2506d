// @ts-check
// The server's side of a run: requests, and events. No logic of training lives here.

import { api } from "../../scripts/api.js";
import { filePath, runPath } from "./runs.js";

/** @typedef {import("./runs.js").Run} Run */

/**
 * @param {Response} answer
 * @returns {Promise<any>} its JSON. Throws with the server's own words.
 */
export async function body(answer) {
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error ?? answer.statusText);
  return content;
}

/**
 * The JSON of an address; null if there is nothing.
 * @param {string} address
 */
export async function read(address) {
  const answer = await api.fetchApi(address, { cache: "no-store" });
  return answer.status === 404 ? null : body(answer);
}

/**
 * State, step, files; null if there is no such run.
 * @param {string} name
 * @returns {Promise<Run | null>}
 */
export const fetchRun = (name) => read(runPath(name));

/**
 * Lines of metrics.jsonl after step `since`.
 * @param {string} name
 * @param {number} since
 * @returns {Promise<import("./runs.js").MetricsLine[]>}
 */
export const fetchMetrics = async (name, since) => (await read(`${runPath(name)}/metrics?since=${since}`))?.metrics ?? [];

/**
 * Address of a file of the run.
 * @param {string} name
 * @param {string} file
 */
export const fileUrl = (name, file) => api.apiURL(filePath(name, file));

/**
 * pause, resume, stop, save or sample. Throws with the server's own words.
 * @param {string} name
 * @param {string} action
 * @returns {Promise<Run>}
 */
export const act = (name, action) => post(`${runPath(name)}/${action}`, {});

/**
 * Throws with the server's own words.
 * @param {string} address
 * @param {object} content
 * @returns {Promise<any>}
 */
export const post = async (address, content) =>
  body(
    await api.fetchApi(address, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(content),
    }),
  );

/**
 * Put a file into a folder of ComfyUI's input directory, through ComfyUI's own route. Throws with what the server said.
 * @param {Blob} file
 * @param {string} folder
 * @param {string} name replaces a file of that name in the folder
 */
export async function upload(file, folder, name) {
  const form = new FormData();
  form.append("image", file, name);
  for (const [key, value] of Object.entries({ type: "input", subfolder: folder, overwrite: "true" })) form.append(key, value);
  const answer = await api.fetchApi("/upload/image", { method: "POST", body: form });
  if (!answer.ok) throw new Error(`${name}: ${answer.status} ${answer.statusText}`);
}

/**
 * Address of an image in a folder of ComfyUI's input directory, made small.
 * @param {string} folder
 * @param {string} name
 */
export const imageUrl = (folder, name) =>
  api.apiURL(`/view?${new URLSearchParams({ filename: name, subfolder: folder, type: "input", preview: "webp;60" })}`);

/**
 * Call `heard(kind, detail)` for run, step, sample, forming, log and page events, and for "reconnecting" and "reconnected".
 * @param {(kind: string, detail: import("./runs.js").Detail) => void} heard
 */
export function listen(heard) {
  for (const kind of ["run", "step", "sample", "forming", "log", "page"]) {
    api.addEventListener(`lora_loom.${kind}`, (event) => heard(kind, event.detail));
  }
  for (const kind of ["reconnecting", "reconnected"]) api.addEventListener(kind, () => heard(kind, {}));
}

/**
 * Call `heard` when ComfyUI says that a node has failed: its id in the queued graph, the class of the error, its words.
 * @param {(node: string, kind: string, message: string) => void} heard
 */
export const listenToFailures = (heard) =>
  api.addEventListener("execution_error", ({ detail }) => heard(String(detail?.node_id ?? ""), String(detail?.exception_type ?? ""), String(detail?.exception_message ?? "")));
