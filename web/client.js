// What the server knows of a run: by request after a (re)load, then by events. No logic of training lives here.

import { api } from "../../scripts/api.js";

const ROOT = "/lora_loom/runs";
export const ACTIVE = new Set(["queued", "caching", "running", "yielding", "paused", "stopping"]);

const path = (name) => `${ROOT}/${encodeURIComponent(name)}`;

async function read(address) {
  const answer = await api.fetchApi(address, { cache: "no-store" });
  if (answer.status === 404) return null;
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error ?? answer.statusText);
  return body;
}

/** State, step, files; null if there is no such run. */
export const fetchRun = (name) => read(path(name));

/** Lines of metrics.jsonl after step `since`. */
export const fetchMetrics = async (name, since) => (await read(`${path(name)}/metrics?since=${since}`))?.metrics ?? [];

/** Address of a file of the run. */
export const fileUrl = (name, file) => api.apiURL(`${path(name)}/files/${file.split("/").map(encodeURIComponent).join("/")}`);

/** pause, resume, stop, save or sample. Throws with the server's own words. */
export async function act(name, action) {
  const answer = await api.fetchApi(`${path(name)}/${action}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: "{}",
  });
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error ?? answer.statusText);
  return body;
}

/** Call `heard(kind, detail)` for run, step, sample and log events, and for "reconnected". */
export function listen(heard) {
  for (const kind of ["run", "step", "sample", "log"]) {
    api.addEventListener(`lora_loom.${kind}`, (event) => heard(kind, event.detail));
  }
  api.addEventListener("reconnected", () => heard("reconnected", {}));
}
