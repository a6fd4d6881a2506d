// @ts-check
// How the nodes' parts open the workbench, which is an entry of its own.

/** @type {{openData: (folder: string) => void}} */
export const door = { openData: () => {} };
