// One product on a shelf. Titles and other catalogue data are set as text, never parsed as markup.

import { picture } from "./picture.js";

/** Create an element with a class, a text and children. */
export function make(tag, name, text, ...children) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined && text !== null) element.textContent = text;
  element.append(...children);
  return element;
}

const money = new Intl.NumberFormat(undefined, { minimumFractionDigits: 2, maximumFractionDigits: 2 });

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

export class Card {
  /** act: called with (event, card) when a button is pressed. plain: without buttons and explanation. */
  constructor(product, act, plain = false) {
    this.product = product;
    this.element = make("li", plain ? "card plain" : "card");
    this.element.dataset.item = product.item_id;
    this.place = make("span", "place");
    this.moved = make("span", "moved");
    const about = [product.brand, product.category].filter(Boolean).join(" · ");
    const head = make("div", "head", null, this.place, this.moved);
    const title = make("h3", "title", product.title || product.item_id);
    title.title = product.title;
    const line = make("p", "about", null, make("span", "", about));
    if (product.price !== null) line.append(make("b", "price", money.format(product.price)));
    this.element.append(make("div", "picture", null, picture(product)), head, title, line);
    if (plain) return;
    this.why = make("p", "why");
    this.more = make("ul", "reasons");
    this.details = make("details", "", null, make("summary", "", "Why here?"), this.more);
    this.pin = this.button("Pin", "pin", act);
    this.element.append(this.why, this.details, make("div", "acts", null,
      this.button("View", "click", act), this.button("Add to cart", "cart", act), this.button("Buy", "purchase", act), this.pin));
  }

  button(label, event, act) {
    const element = make("button", event, label);
    element.type = "button";
    element.setAttribute("aria-label", `${label}: ${this.product.title || this.product.item_id}`);
    element.addEventListener("click", () => act(event, this));
    return element;
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
    this.why.textContent = [...rules, ...similar, ...raised].join("; ") || "a better match than the rest of this list";
    const most = Math.max(...reasons.map((r) => Math.abs(r.contribution)), 1e-9);
    this.more.replaceChildren(...reasons.map(({ text, contribution: sum }) => {
      const bar = make("i", sum > 0 ? "bar for" : "bar against");
      bar.style.width = `${Math.round((40 * Math.abs(sum)) / most)}%`;
      return make("li", "", null, bar, make("span", "", `${sum > 0 ? "+" : "−"} ${text}`));
    }), ...similar.map((text) => make("li", "", text)));
    this.pin.setAttribute("aria-pressed", String(pinned));
    this.pin.firstChild.data = pinned ? "Unpin" : "Pin";
    this.pin.setAttribute("aria-label", `${pinned ? "Unpin" : "Pin"}: ${this.product.title || this.product.item_id}`);
  }
}
