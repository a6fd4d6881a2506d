// @ts-check
// The page's own texts in the language that ComfyUI is set to. English is in the code; the other languages are in texts/*.json,
// which scripts/write_locales.py makes of one table.

const LANGUAGES = ["zh", "ja", "ko", "ru"];

/** The language of ComfyUI's page, as "zh". */
async function language() {
  const { app } = await import("../../scripts/app.js");
  const set = app.extensionManager?.setting?.get?.("Comfy.Locale") ?? app.ui?.settings?.getSettingValue?.("Comfy.Locale") ?? "";
  return String(set).split("-")[0];
}

/**
 * {English: translation}; empty for English, for a language that there is no table of, and where the table cannot be had.
 * @returns {Promise<Record<string, string>>}
 */
async function table() {
  if (typeof document === "undefined") return {}; // a test without a page
  try {
    const code = await language();
    if (!LANGUAGES.includes(code)) return {};
    const answer = await fetch(new URL(`./texts/${code}.json`, import.meta.url));
    return answer.ok ? await answer.json() : {};
  } catch {
    return {};
  }
}

const TEXTS = await table();

/**
 * A text in the page's language, with values in the place of {names}.
 * @param {string} text in English
 * @param {Record<string, string | number>} [values]
 */
export const t = (text, values = {}) => filled(Object.hasOwn(TEXTS, text) ? TEXTS[text] : text, values);

/**
 * @param {string} text
 * @param {Record<string, string | number>} values
 */
export const filled = (text, values) => text.replace(/\{(\w+)\}/g, (whole, name) => (Object.hasOwn(values, name) ? String(values[name]) : whole));
