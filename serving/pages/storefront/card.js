// One product on a shelf. Titles and other catalogue data are set as text, never parsed as markup.

import { make } from "./make.js";
import { picture } from "./picture.js";

let number = new Intl.NumberFormat(undefined, { minimumFractionDigits: 2, maximumFractionDigits: 2 });

/** Show prices in a currency, such as EUR, from now on. */
export function useCurrency(currency) {
  number = new Intl.NumberFormat(undefined, { style: "currency", currency });
}

/** A price as text. */
export const money = (price) => number.format(price);

/** The address of the page of a product. */
export const pageOf = (id) => `#/product/${encodeURIComponent(id)}`;

/** Brand, category and price of a product. */
export function about(product) {
  const line = make("p", "about", null, make("span", "", [product.brand, product.category].filter(Boolean).join(" · ")));
  if (product.price !== null) line.append(make("b", "price", money(product.price)));
  return line;
}

/** Past tense by event name. */
const PAST_TENSE = { view: "viewed", click: "clicked", cart: "added to your cart", purchase: "bought", rating: "rated" };

/** Effects of rules on an item as text. Positions are counted from 1, as on the shelf. */
function ruleTexts(rules = []) {
  return rules.map(({ rule, added, moved_from: from }) => {
    const name = rule.replace(/^serving\.rules\.|^rules\.|\[\d+\]/g, "");
    if (name === "pin") return "pinned here";
    if (added) return `${added > 0 ? "boosted" : "demoted"} by the shop`;
    return from === undefined ? name : `moved from position ${from + 1} for variety`;
  });
}

/** A button for an action with a product. press: called with the action. */
export function button(label, action, product, press) {
  const element = make("button", action, label);
  element.type = "button";
  element.setAttribute("aria-label", `${label}: ${product.title || product.item_id}`);
  element.addEventListener("click", () => press(action));
  return element;
}

export class Card {
  /** act: called with (action, card) when a button is pressed, and "open" when the title is. plain: without buttons and explanation. */
  constructor(product, act, plain = false) {
    this.product = product;
    this.element = make("li", plain ? "card plain" : "card");
    this.element.dataset.item = product.item_id;
    this.place = make("span", "place");
    this.moved = make("span", "moved");
    const head = make("div", "head", null, this.place, this.moved);
    const link = make("a", "", product.title || product.item_id);
    link.href = pageOf(product.item_id);
    link.title = product.title;
    if (!plain) link.addEventListener("click", () => act("open", this));
    this.element.append(make("div", "picture", null, picture(product)), head, make("h3", "title", null, link), about(product));
    if (plain) return;
    this.why = make("p", "why");
    this.more = make("ul", "reasons");
    this.details = make("details", "", null, make("summary", "", "Why here?"), this.more);
    const acts = [["View", "click"], ["Add to cart", "cart"], ["Buy", "purchase"], ["Pin", "pin"]];
    const buttons = acts.map(([label, action]) => button(label, action, product, () => act(action, this)));
    this.pin = buttons.at(-1);
    this.element.append(this.why, this.details, make("div", "acts", null, ...buttons));
  }

  /** Show a position, from 1. was: the previous position, 0 if the card is new, undefined to mark no movement. */
  setPlace(place, was) {
    this.place.textContent = place;
    const by = was ? was - place : 0;
    this.moved.className = by > 0 ? "moved up" : by < 0 ? "moved down" : was === 0 ? "moved come" : "moved";
    const places = `${Math.abs(by)} position${Math.abs(by) === 1 ? "" : "s"}`;
    this.moved.replaceChildren(...(by
      ? [make("span", "", `${by > 0 ? "▲" : "▼"} ${Math.abs(by)}`), make("span", "hidden", `, ${by > 0 ? "up" : "down"} ${places}`)]
      : was === 0 ? [make("span", "", "new")] : []));
    this.moved.firstChild?.setAttribute("aria-hidden", String(by !== 0));
  }

  /** Show why an item is on the shelf, and whether it is pinned. */
  explain(item, pinned) {
    const { because, reasons = [] } = item, rules = ruleTexts(item.rules);
    const similar = because ? [`because you ${PAST_TENSE[because.event] ?? "saw"} ${because.title || because.item_id}`] : [];
    const raised = reasons.filter((r) => r.contribution > 0).slice(0, similar.length ? 1 : 2).map((r) => r.text);
    const said = [...new Set([...rules, ...similar, ...raised])];
    this.why.textContent = said.join("; ") || "no single reason stands out";
    const sums = new Map();  // of reasons with one text, which would otherwise be repeated
    for (const { text, contribution } of reasons) sums.set(text, (sums.get(text) ?? 0) + contribution);
    const most = Math.max(...[...sums.values()].map(Math.abs), 1e-9);
    this.more.replaceChildren(...[...sums].map(([text, sum]) => {
      const bar = make("i", sum > 0 ? "bar for" : "bar against");
      bar.style.width = `${Math.round((40 * Math.abs(sum)) / most)}%`;
      return make("li", "", null, bar, make("span", "", `${sum > 0 ? "+" : "−"} ${text}`));
    }), ...[...rules, ...similar].map((text) => make("li", "", text)));
    this.pin.setAttribute("aria-pressed", String(pinned));
    this.pin.firstChild.data = pinned ? "Unpin" : "Pin";
    this.pin.setAttribute("aria-label", `${pinned ? "Unpin" : "Pin"}: ${this.product.title || this.product.item_id}`);
  }
}
