/**
 * Client for the Shelfwise ranking service in web pages.
 *
 *     import { Shelfwise } from "./shelfwise.js";
 *     const shop = new Shelfwise({ url: "https://rank.shop.example", key: "swk_..." });
 *     const shelf = await shop.recommend({ limit: 12 });
 *     shop.observe(document.querySelector("#shelf"), shelf, { clicks: true });
 *
 * Arguments and results are documented in `types.d.ts`.
 */

import { bridge } from "./datalayer.js";
import { ShelfwiseError } from "./errors.js";
import { Exchange } from "./exchange.js";
import { Identity, storedOrNew, newId, storageOf } from "./identity.js";
import { Impressions, placed } from "./impressions.js";
import { Outbox } from "./outbox.js";

export { ShelfwiseError };

/** @typedef {import("./types.js").Tracked} Tracked */
/** @typedef {import("./types.js").EventIn} EventIn */
/** @typedef {import("./types.js").RankAnswer} RankAnswer */
/** @typedef {import("./types.js").SimilarAnswer} SimilarAnswer */
/** @typedef {import("./types.js").MergeAnswer} MergeAnswer */

const ADOPT_MS = 30_000;

export class Shelfwise {
  #exchange;
  #identity;
  #outbox;
  #impressions;
  #session;
  #onRefused;
  /** @type {(() => void)[]} */
  #ends = [];
  #closed = false;

  /** @param {import("./types.js").Options} options */
  constructor({
    url, key = null, user = null, token = null, device = null, deadlineMs = 3000, attempts = 3, everyMs = 2000, batch = 100,
    queue = 1000, onRefused, storage = storageOf("localStorage"),
  }) {
    this.#onRefused = onRefused ?? ((event, field, why) => console.warn("shelfwise: event refused", event, field, why));
    this.#session = storage === null ? null : storageOf("sessionStorage");
    this.#exchange = new Exchange(url, key, deadlineMs, attempts, token);
    this.#identity = new Identity(storage, user, device);
    this.#impressions = new Impressions((item) => this.track({ event: "impression", ...item }));
    const tab = storedOrNew(this.#session, "shelfwise tab", newId);
    this.#outbox = new Outbox(this.#exchange, storage, tab, { everyMs, batch, queue, onRefused: this.#onRefused });
    this.#listen();
    this.#outbox.adopt(Date.now());
  }

  get user() {
    return this.#identity.user;
  }

  get counts() {
    return this.#outbox.counts;
  }

  /**
   * @param {string} user
   * @param {import("./types.js").ShopperToken} [token]
   */
  identify(user, token) {
    this.#identity.user = user;
    if (token !== undefined) this.#exchange.token = token;
  }

  /**
   * @param {import("./types.js").RankRequest} request
   * @param {{deadlineMs?: number}} [how]
   * @returns {Promise<RankAnswer>}
   */
  rank(request, { deadlineMs } = {}) {
    return this.#exchange.ask("POST", "/v1/rank", this.#withIdentity(request), deadlineMs);
  }

  /**
   * @param {import("./types.js").RecommendRequest} [request]
   * @param {{deadlineMs?: number}} [how]
   * @returns {Promise<RankAnswer>}
   */
  recommend(request = {}, { deadlineMs } = {}) {
    return this.#exchange.ask("POST", "/v1/recommend", this.#withIdentity(request), deadlineMs);
  }

  /**
   * @param {import("./types.js").PageRequest} request
   * @param {{deadlineMs?: number}} [how]
   * @returns {Promise<import("./types.js").PageAnswer>}
   */
  page(request, { deadlineMs } = {}) {
    return this.#exchange.ask("POST", "/v1/page", this.#withIdentity(request), deadlineMs);
  }

  /**
   * @param {string} itemId
   * @param {{limit?: number, deadlineMs?: number}} [how]
   * @returns {Promise<SimilarAnswer>}
   */
  async similar(itemId, { limit = 10, deadlineMs } = {}) {
    if (["", ".", ".."].includes(itemId)) throw new TypeError(`item id "${itemId}" cannot be used in a path: pass an item's id`);
    return this.#exchange.ask("GET", `/v1/similar/${encodeURIComponent(itemId)}?limit=${limit}`, undefined, deadlineMs);
  }

  /**
   * @param {string} user
   * @param {{from?: string, deadlineMs?: number}} [how]
   * @returns {Promise<MergeAnswer>}
   */
  async merge(user, { from = this.user, deadlineMs } = {}) {
    if (["", ".", ".."].includes(user)) throw new TypeError(`user id "${user}" cannot be used in a path: pass a user's id`);
    return this.#exchange.ask("POST", `/v1/users/${encodeURIComponent(user)}/merge`, { from }, deadlineMs);
  }

  /**
   * @param {Tracked} given
   * @returns {string | null}
   */
  track(given) {
    if (this.#closed) throw new Error("the client is closed: track events before `close`");
    const now = Date.now();
    const event_id = given.event_id ?? newId();
    /** @type {EventIn & {event_id: string}} */
    const event = {
      user_id: this.#identity.user, session_id: this.#identity.session(now), device: this.#identity.device,
      ...given, event_id,
    };
    return this.#outbox.put(event, now) ? event_id : null;
  }

  /** @returns {Promise<boolean>} */
  flush() {
    return this.#outbox.flush();
  }

  /**
   * @param {Element} list
   * @param {{request_id: string}} answer
   * @param {import("./types.js").ObserveOptions} [how]
   */
  observe(list, { request_id }, { selector = "[data-item-id]", clicks = false } = {}) {
    const stop = this.#impressions.observe(list, request_id, selector);
    /** @param {Event} event */
    const clicked = (event) => {
      const element = event.target instanceof Element ? event.target.closest(selector) : null;
      const item = element && list.contains(element) ? placed(list, selector, element) : null;
      if (item) this.track({ event: "click", request_id, ...item });
    };
    if (clicks) list.addEventListener("click", clicked);
    return this.#onClose(() => {
      stop();
      list.removeEventListener("click", clicked);
    });
  }

  /** @param {unknown[]} [layer] */
  dataLayer(layer) {
    const page = /** @type {any} */ (globalThis);
    page.dataLayer ??= [];
    return this.#onClose(bridge(layer ?? page.dataLayer, (event) => this.track(event), this.#session));
  }

  close() {
    if (this.#closed) return;
    this.#ends.splice(0).forEach((end) => end());
    this.#closed = true;
    this.#outbox.leave();
    this.#outbox.stop();
  }

  /** @param {object} request */
  #withIdentity(request) {
    const { user, device } = this.#identity;
    const session_id = this.#identity.session(Date.now());
    return { user_id: user, session_id, ...(device === null ? {} : { device }), ...request };
  }

  #listen() {
    const timer = setInterval(() => this.#outbox.adopt(Date.now()), ADOPT_MS);
    this.#onClose(() => clearInterval(timer));
    if (typeof document === "undefined") return;
    const leave = () => this.#outbox.leave();
    const resume = () => this.#outbox.adopt(Date.now());
    const visibilityChanged = () => (document.visibilityState === "hidden" ? leave() : resume());
    const online = () => void this.#outbox.flush();
    /** @type {[EventTarget, string, () => void][]} */
    const listeners = [[document, "visibilitychange", visibilityChanged], [window, "pagehide", leave], [window, "pageshow", resume], [window, "online", online]];
    for (const [target, name, then] of listeners) target.addEventListener(name, then);
    this.#onClose(() => listeners.forEach(([target, name, then]) => target.removeEventListener(name, then)));
  }

  /**
   * Run `end` once: when the returned function is called, or when the client is closed.
   * @param {() => void} end
   */
  #onClose(end) {
    this.#ends.push(end);
    return () => {
      const index = this.#ends.indexOf(end);
      if (index >= 0) this.#ends.splice(index, 1)[0]?.();
    };
  }
}
