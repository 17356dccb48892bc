// One product on a shelf. Titles and all else that a catalogue holds are set as text, never read as markup.

import { picture } from "./picture.js";

/** An element with a class, a text, and children. */
export function make(tag, name, text, ...children) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined && text !== null) made.textContent = text;
  made.append(...children);
  return made;
}

const money = new Intl.NumberFormat(undefined, { minimumFractionDigits: 2, maximumFractionDigits: 2 });

/** What a shopper did with an item, by the name of the event. */
const DID = { view: "viewed", click: "clicked", cart: "put in your cart", purchase: "bought", rating: "rated" };

/** What rules did to an item, in words. Places are counted from 1, as on the shelf. */
function ruled(rules = []) {
  return rules.map(({ rule, added, moved_from: from }) => {
    const what = rule.replace(/^serving\.rules\.|^rules\.|\[\d+\]/g, "");
    if (what === "pin") return "pinned here";
    if (added) return `${added > 0 ? "lifted" : "lowered"} by the shop`;
    return from === undefined ? what : `moved for variety, from place ${from + 1}`;
  });
}

export class Card {
  /** act(event, card): what a button was pressed for. */
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

  button(words, event, act) {
    const made = make("button", event, words);
    made.type = "button";
    made.setAttribute("aria-label", `${words}: ${this.product.title || this.product.item_id}`);
    made.addEventListener("click", () => act(event, this));
    return made;
  }

  /** Stand at a place from 1; was: the place before, 0 for none, undefined where nothing moved. */
  stand(place, was) {
    this.place.textContent = place;
    const by = was ? was - place : 0;
    this.moved.className = by > 0 ? "moved up" : by < 0 ? "moved down" : was === 0 ? "moved come" : "moved";
    const places = `${Math.abs(by)} place${Math.abs(by) === 1 ? "" : "s"}`;
    this.moved.replaceChildren(...(by
      ? [make("span", "", `${by > 0 ? "▲" : "▼"} ${Math.abs(by)}`), make("span", "hidden", `, ${by > 0 ? "up" : "down"} ${places}`)]
      : was === 0 ? [make("span", "", "new here")] : []));
    this.moved.firstChild?.setAttribute("aria-hidden", String(by !== 0));
  }

  explain(item, pinned) {
    const { because, reasons = [] } = item, rules = ruled(item.rules);
    const similar = because ? [`because you ${DID[because.event] ?? "looked at"} ${because.title || because.item_id}`] : [];
    const raised = reasons.filter((r) => r.contribution > 0).slice(0, similar.length ? 1 : 2).map((r) => r.text);
    this.why.textContent = [...rules, ...similar, ...raised].join("; ") || "a better match than the rest";
    const most = Math.max(...reasons.map((r) => Math.abs(r.contribution)), 1e-9);
    this.more.replaceChildren(...reasons.map(({ text, contribution: sum }) => {
      const bar = make("i", sum > 0 ? "bar for" : "bar against");
      bar.style.width = `${Math.round((40 * Math.abs(sum)) / most)}%`;
      return make("li", "", null, bar, make("span", "", `${sum > 0 ? "+" : "−"} ${text}`));
    }), ...similar.map((words) => make("li", "", words)));
    this.pin.setAttribute("aria-pressed", String(pinned));
    this.pin.firstChild.data = pinned ? "Unpin" : "Pin";
    this.pin.setAttribute("aria-label", `${pinned ? "Unpin" : "Pin"}: ${this.product.title || this.product.item_id}`);
  }
}
