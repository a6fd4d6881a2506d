// @ts-check
// Elements with a class and a text. Texts go in as text.

/**
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {string} className
 * @param {HTMLElement | null} [parent]
 * @param {string} [text]
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function make(tag, className, parent, text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  parent?.append(element);
  return element;
}

/**
 * @param {HTMLElement} parent
 * @param {string} label
 * @param {string} hint
 * @param {() => void} pressed
 */
export function makeButton(parent, label, hint, pressed) {
  const element = make("button", "loom-button", parent, label);
  element.type = "button";
  element.title = hint;
  element.addEventListener("click", pressed);
  return element;
}

/**
 * A link that opens in another tab, which cannot reach this one.
 * @param {HTMLElement} parent
 * @param {string} label
 * @param {string} address
 */
export function makeLink(parent, label, address) {
  const element = make("a", "loom-button", parent, label);
  element.href = address;
  element.target = "_blank";
  element.rel = "noopener";
  return element;
}

/**
 * A button that is pressed by a key and then goes, or can no longer be pressed, leaves the focus to the first one that can.
 * @param {HTMLElement} row
 * @returns {() => void} to be called when the row has changed
 */
export function keepFocus(row) {
  let isKeyed = false;
  row.addEventListener("click", (event) => { isKeyed = event.detail === 0; });
  return () => {
    const holder = document.activeElement;
    if (!isKeyed || (holder && holder !== document.body)) return;
    const next = [...row.querySelectorAll("button")].find((button) => !button.disabled && !button.hidden);
    next?.focus();
    isKeyed = !next;
  };
}
