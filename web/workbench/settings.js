// @ts-check
// The entries of LoRA Loom in ComfyUI's settings.

import { app } from "../../../scripts/app.js";

export const TOASTS = "lora_loom.toasts";
export const NOTIFY = "lora_loom.notify";
export const TICKER = "lora_loom.ticker";

/**
 * @template Value
 * @param {string} id
 * @param {Value} usual where this frontend has no such setting
 * @returns {Value}
 */
export const setting = (id, usual) => /** @type {Value | undefined} */ (app.extensionManager?.setting?.get?.(id)) ?? usual;

/** @param {() => void} tickerChanged */
export const makeSettings = (tickerChanged) => [
  { id: TOASTS, name: "Say when a run ends", category: ["LoRA Loom", "When a run ends", "Message in the page"], type: "boolean", defaultValue: true },
  {
    id: NOTIFY,
    name: "Notification of the browser when a run ends",
    category: ["LoRA Loom", "When a run ends", "Notification"],
    tooltip: "The browser asks once whether ComfyUI may show notifications.",
    type: "boolean",
    defaultValue: false,
    onChange: (/** @type {boolean} */ isOn) => {
      if (isOn && window.Notification?.permission === "default") Notification.requestPermission();
    },
  },
  { id: TICKER, name: "The run that trains now in the top bar", category: ["LoRA Loom", "Top bar", "Ticker"], type: "boolean", defaultValue: true, onChange: tickerChanged },
];
