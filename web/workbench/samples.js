// @ts-check
// What a run has left: its samples as a table, steps by prompts, and its LoRA files. Pure functions.

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

/**
 * @typedef {import("./timeline.js").Line} Line
 * @typedef {{file: string, name: string, step: number, loss: number | null, isBest: boolean}} LoraFile
 */

/**
 * The LoRA files of a run by step, each with the validation loss that was measured there.
 * @param {import("../runs.js").Run} run
 * @param {Line[]} lines
 * @returns {LoraFile[]}
 */
export function loraFiles({ loras = [], lora_folder: folder = "", lora = "", best = "", step = 0 }, lines) {
  const losses = new Map(lines.flatMap((line) => ("held_out" in line ? [[line.step, Number(line.held_out)]] : [])));
  const found = loras.map((file) => {
    const name = file.split("/").at(-1) ?? "";
    const at = name === lora ? step : Number(/-(\d{6,})\.safetensors$/.exec(name)?.[1] ?? Number.NaN);
    return { file, name: `${folder}${name}`, step: at, loss: losses.get(at) ?? null, isBest: name === best || (name === lora && isOf(best, step)) };
  });
  // The last checkpoint is the run's own file under another name.
  return found.filter((one) => Number.isFinite(one.step) && !(lora && isOf(one.file, step))).sort((a, b) => a.step - b.step);
}

/** @param {string} file @param {number} step */
const isOf = (file, step) => file.endsWith(`-${String(step).padStart(6, "0")}.safetensors`);
