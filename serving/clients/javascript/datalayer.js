/**
 * Conversion of Google Analytics 4 e-commerce events in a shop's `dataLayer` to Shelfwise events, one per item.
 * Supports both forms: `{event: "add_to_cart", ecommerce: {items}}`, and gtag's `("event", name, {items})`.
 */

import { newId } from "./identity.js";

/** @typedef {import("./types.js").Tracked} Tracked */
/** @typedef {import("./types.js").KeyValue} KeyValue */
/** @typedef {import("./types.js").SentEventName} SentEventName */

const NAMES = new Set(["view_item_list", "select_item", "view_item", "add_to_cart", "purchase"]);
const LISTED = "shelfwise listed";
const MOST_LISTED = 300;
const LONGEST_ID = 256;
const LONGEST_PLACEMENT = 64;
/** What tag managers write in place of a missing ID. */
const NO_ID = new Set(["(not set)", "undefined", "null"]);
const patched = new WeakSet();

/**
 * Track the events already in a dataLayer, and all events pushed from now on. Returns a function that stops tracking.
 * @param {unknown[]} layer
 * @param {(event: Tracked) => unknown} track
 * @param {KeyValue | null} storage remembers, for the pages of this tab, from which list an item was chosen
 */
export function bridge(layer, track, storage) {
  if (patched.has(layer)) return () => undefined;
  patched.add(layer);
  /** @param {unknown} pushed */
  const take = (pushed) => {
    try {
      for (const event of eventsOf(pushed, storage)) track(event);
    } catch (error) {
      console.error("shelfwise: dataLayer", error); // an error here must not break the shop's own analytics
    }
  };
  layer.forEach(take);
  const push = layer.push;
  /** @param {unknown[]} given */
  const both = (...given) => {
    given.forEach(take);
    return push.apply(layer, given);
  };
  layer.push = both;
  return () => {
    patched.delete(layer);
    if (layer.push === both) layer.push = push;
  };
}

/**
 * Convert an entry pushed into a dataLayer to Shelfwise events. Empty if it is not a supported event.
 * @param {any} pushed
 * @param {KeyValue | null} storage
 * @returns {Tracked[]}
 */
export function eventsOf(pushed, storage) {
  const gtag = pushed?.[0] === "event";
  const name = gtag ? pushed[1] : pushed?.event;
  const given = gtag ? pushed[2] : (pushed?.ecommerce ?? pushed);
  if (!NAMES.has(name) || !Array.isArray(given?.items)) return [];
  const lists = new ListMemory(storage);
  const shown = name === "view_item_list" ? text(given.request_id) ?? newId() : null;
  /** @type {Tracked[]} */
  const out = [];
  given.items.forEach((/** @type {any} */ item, /** @type {number} */ k) => {
    const id = text(item?.item_id);
    if (id === null) return;
    const list = text(item.item_list_id) ?? text(given.item_list_id) ?? text(item.item_list_name) ?? text(given.item_list_name) ?? "";
    /** @type {Tracked} */
    const event = { event: name, item_id: id };
    if (shown !== null) {
      event.request_id = shown;
      event.position = Number.isInteger(item.index) && item.index >= 0 ? item.index : k;
      lists.show(list, id, shown);
    } else {
      const request = text(given.request_id) ?? (name === "select_item" ? lists.choose(list, id) : lists.chosen(id));
      if (request !== null) event.request_id = request;
    }
    const place = placement(text(item.item_list_id) ?? text(given.item_list_id) ?? "");
    if (place !== null) event.placement = place;
    if (typeof item.quantity === "number" && Number.isFinite(item.quantity)) event.value = item.quantity;
    const order = name === "purchase" ? text(given.transaction_id) : null;
    // The order number as id: the order counts once, however often its page is opened.
    if (order !== null && order.length + id.length < LONGEST_ID) event.event_id = `${order}:${id}`;
    out.push(event);
  });
  lists.keep();
  return out;
}

/**
 * The placement that the ID of a list names; null if it is not a valid name, which costs the placement and not the event.
 * @param {string} list
 */
function placement(list) {
  const name = list.trim();
  const valid = name !== "" && [...name].length <= LONGEST_PLACEMENT && !/\p{Cc}/u.test(name) && !NO_ID.has(name);
  return valid ? name : null;
}

/** The request ids of the lists in which items were shown and chosen, so that a purchase on a later page finds its list. */
class ListMemory {
  #storage;
  /** @type {Map<string, string>} */
  #request;

  /** @param {KeyValue | null} storage */
  constructor(storage) {
    this.#storage = storage;
    this.#request = new Map();
    try {
      this.#request = new Map(JSON.parse(storage?.getItem(LISTED) ?? "[]"));
    } catch {
      // Not valid: start empty.
    }
  }

  /** @param {string} list @param {string} item @param {string} request */
  show(list, item, request) {
    this.#set(JSON.stringify([list, item]), request);
  }

  /** @param {string} list @param {string} item */
  choose(list, item) {
    const request = this.#request.get(JSON.stringify([list, item])) ?? null;
    if (request !== null) this.#set(JSON.stringify([item]), request);
    return request;
  }

  /** @param {string} item */
  chosen(item) {
    return this.#request.get(JSON.stringify([item])) ?? null;
  }

  /** @param {string} key @param {string} request */
  #set(key, request) {
    this.#request.delete(key);
    this.#request.set(key, request);
  }

  keep() {
    try {
      this.#storage?.setItem(LISTED, JSON.stringify([...this.#request].slice(-MOST_LISTED)));
    } catch {
      // Storage is full: later pages will not know the list.
    }
  }
}

/** @param {unknown} given */
function text(given) {
  return typeof given === "string" && given !== "" ? given : typeof given === "number" ? String(given) : null;
}
