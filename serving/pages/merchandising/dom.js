// Elements, times and prices. Catalogue data and notes are set as text, never parsed as markup.

import { make } from "./make.js";

export const $ = (id) => document.getElementById(id);

/** A button that calls `act`. label: for screen readers, where the text alone does not say what it is about. */
export function button(text, label, act) {
  const element = make("button", "", text);
  element.type = "button";
  if (label) element.setAttribute("aria-label", label);
  element.addEventListener("click", act);
  return element;
}

export const money = new Intl.NumberFormat(undefined, { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const time = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
export const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
export const when = (seconds) => time.format(new Date(seconds * 1000));

/** Unix seconds as the value of a datetime-local input, and back; null if empty. */
export function toLocal(seconds) {
  if (seconds === null || seconds === undefined) return "";
  const at = new Date(seconds * 1000);
  return new Date(at.getTime() - at.getTimezoneOffset() * 60000).toISOString().slice(0, 16);
}
export const fromLocal = (text) => (text ? new Date(text).getTime() / 1000 : null);

/** Replace the options of a select, keeping its value if it is still there. options: [value, text]. */
export function choices(select, options) {
  const value = select.value;
  select.replaceChildren(...options.map(([v, text]) => {
    const option = make("option", "", text);
    option.value = v;
    return option;
  }));
  if (options.some(([v]) => v === value)) select.value = value;
}
