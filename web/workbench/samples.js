// @ts-check
// The samples of a run as a table: steps by prompts. Pure functions.

/**
 * @typedef {object} Samples
 * @property {number[]} steps rising; 0 is the base without a LoRA
 * @property {number[]} prompts their numbers
 * @property {(step: number, prompt: number) => string | undefined} file
 */

/**
 * @param {string[]} files of a run: samples/step-000120-0.png, …
 * @returns {Samples}
 */
export function sampleTable(files) {
  /** @type {Map<string, string>} */
  const found = new Map();
  /** @type {Set<number>} */
  const steps = new Set();
  /** @type {Set<number>} */
  const prompts = new Set();
  for (const file of files) {
    const match = /step-(\d+)-(\d+)\.[a-z]+$/.exec(file);
    if (!match) continue;
    const [step, prompt] = [Number(match[1]), Number(match[2])];
    found.set(`${step} ${prompt}`, file);
    steps.add(step);
    prompts.add(prompt);
  }
  /** @param {Set<number>} numbers */
  const rising = (numbers) => [...numbers].sort((a, b) => a - b);
  return { steps: rising(steps), prompts: rising(prompts), file: (step, prompt) => found.get(`${step} ${prompt}`) };
}
