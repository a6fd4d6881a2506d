// Stands in for ComfyUI's scripts/api.js and app.js: import this file before the module that is tested.

import { register } from "node:module";

/** What the next request is answered with, and the requests that were made. */
export const server = { answer: null, requests: [], listeners: new Map() };

globalThis.loomTestApi = {
  fetchApi: async (route, options) => {
    server.requests.push([route, options]);
    return server.answer;
  },
  apiURL: (route) => `/api${route}`,
  addEventListener: (kind, listener) => server.listeners.set(kind, listener),
};

const source = `
export async function resolve(specifier, context, next) {
  if (specifier.endsWith("/scripts/app.js")) return { url: "data:text/javascript,export const app = {};", shortCircuit: true };
  if (!specifier.endsWith("/scripts/api.js")) return next(specifier, context);
  return { url: "data:text/javascript,export const api = globalThis.loomTestApi;", shortCircuit: true };
}`;
register(`data:text/javascript,${encodeURIComponent(source)}`);
