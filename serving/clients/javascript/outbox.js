/**
 * The queue of tracked events. Each event is stored under its own key in a storage that outlives the page, and is sent
 * in batches, with retries under the same id, until the service has it. Events left by a closed tab are sent by the
 * next page.
 */

import { ShelfwiseError } from "./errors.js";
import { pauseMs } from "./exchange.js";

/** @typedef {import("./types.js").KeyValue} KeyValue */
/** @typedef {import("./types.js").EventIn} EventIn */
/** @typedef {import("./types.js").EventsAnswer} EventsAnswer */
/** @typedef {import("./types.js").Rejected} Rejected */
/** @typedef {import("./exchange.js").Exchange} Exchange */
/**
 * at: time of the event by this browser's clock, in milliseconds. tried: time of the first attempt that may have
 * reached the service, 0 for none. clockMs: correction of its time when it was last sent.
 * @typedef {{event: EventIn, at: number, tab: string, tried: number, clockMs?: number}} Waiting
 */

const ROUTE = "/v1/events";
/** Browsers allow 64 KiB in flight when a page is closed, in all requests together. */
const MOST_BYTES = 60_000;
/** The service recognises a repeated event id for two days. */
const REMEMBERED_MS = 47 * 3600_000;
/** Age from which an event of another tab is taken over, as that tab is not just about to send it. */
const LEFT_BEHIND_MS = 30_000;
const ATTEMPT_MS = 10_000;
const FIRST_PAUSE_MS = 500;
const MOST_PAUSE_MS = 60_000;
const bytes = new TextEncoder();

export class Outbox {
  /** @type {Map<string, Waiting>} */
  #waiting = new Map();
  #exchange;
  #storage;
  #prefix;
  #tab;
  #options;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  /** @type {Promise<boolean> | null} */
  #sending = null;
  /** Number of events, counted from the oldest, that are in flight. */
  #inFlight = 0;
  /**
   * Ids already handed to the browser since the page was hidden: a page is hidden first and closed later.
   * @type {Set<string>}
   */
  #handedOver = new Set();
  #failures = 0;
  #notBefore = 0;
  #batch;
  #counts = { accepted: 0, duplicates: 0, rejected: 0, expired: 0, turnedAway: 0 };

  /**
   * @param {Exchange} exchange
   * @param {KeyValue | null} storage
   * @param {string} tab
   * @param {{everyMs: number, batch: number, queue: number,
   *          onRefused: (event: EventIn, field: string | null, why: string) => void}} options
   */
  constructor(exchange, storage, tab, options) {
    this.#exchange = exchange;
    this.#storage = storage;
    this.#prefix = `shelfwise ${exchange.url} `;
    this.#tab = tab;
    this.#options = options;
    this.#batch = options.batch;
  }

  get counts() {
    return { waiting: this.#waiting.size, ...this.#counts };
  }

  /**
   * Queue an event. Returns false if the queue is full.
   * @param {EventIn & {event_id: string}} event
   * @param {number} now
   */
  put(event, now) {
    if (this.#waiting.size >= this.#options.queue) {
      this.#counts.turnedAway++;
      this.#refuse(event, null, `the event queue is full (${this.#waiting.size} events): check that the service is reachable`);
      return false;
    }
    this.#store(event.event_id, { event, at: now, tab: this.#tab, tried: 0 });
    this.#schedule(this.#waiting.size >= this.#batch ? 0 : this.#options.everyMs);
    return true;
  }

  /**
   * Take over events left by earlier pages: those of this tab at once, those of other tabs when they are old enough.
   * @param {number} now
   */
  adopt(now) {
    this.#handedOver.clear();
    for (const key of this.#keys()) {
      const id = key.slice(this.#prefix.length);
      const left = this.#waiting.has(id) ? null : parseEntry(this.#storage?.getItem(key));
      if (left && (left.tab === this.#tab || now - left.at > LEFT_BEHIND_MS)) this.#waiting.set(id, left);
    }
    if (this.#waiting.size) this.#schedule(0);
  }

  /** Send all queued events now. Resolves to true if all are delivered. */
  async flush() {
    this.#notBefore = 0;
    while (this.#waiting.size) {
      if (!(await this.#send())) return false;
    }
    return true;
  }

  /**
   * Hand all events that are not in flight to the browser, because the page is about to close. The browser delivers
   * them, but there may be no page left to read the response. So they stay in the storage, and the next page sends them
   * again.
   */
  leave() {
    const now = Date.now();
    for (let batch; (batch = this.#nextBatch(now, this.#inFlight, this.#handedOver)).length; ) {
      this.#markTried(batch, now);
      batch.forEach((id) => this.#handedOver.add(id));
      const body = this.#body(batch);
      if (this.#exchange.key === null && beacon(this.#exchange.url + ROUTE, body)) continue;
      // A beacon cannot carry a key. If too much is in flight, the browser refuses, and the next page sends the events.
      this.#exchange.once("POST", ROUTE, body, ATTEMPT_MS, true).then(
        (answer) => this.#settle(batch, answer),
        () => undefined,
      );
    }
  }

  stop() {
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  /** @param {number} ms */
  #schedule(ms) {
    const wait = Math.max(ms, this.#notBefore - Date.now());
    if (this.#timer !== undefined && ms > 0) return;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      void this.#send();
    }, wait);
  }

  /** Send one batch, unless one is being sent. Resolves to false if the attempt failed. */
  #send() {
    this.#sending ??= this.#attempt().finally(() => {
      this.#sending = null;
      if (this.#waiting.size) this.#schedule(this.#waiting.size >= this.#batch ? 0 : this.#options.everyMs);
    });
    return this.#sending;
  }

  async #attempt() {
    const now = Date.now();
    const batch = this.#nextBatch(now);
    if (!batch.length) return true;
    const fresh = this.#markTried(batch, now);
    this.#inFlight = batch.length;
    try {
      // keepalive: the request continues after the page is closed. `#nextBatch` keeps it within the browser's limit.
      this.#settle(batch, await this.#exchange.once("POST", ROUTE, this.#body(batch), ATTEMPT_MS, true));
      return true;
    } catch (error) {
      if (!(error instanceof ShelfwiseError)) throw error;
      return this.#handleError(batch, fresh, error);
    } finally {
      this.#inFlight = 0;
    }
  }

  /**
   * Ids of the oldest events, as many as fit in one request, skipping the `first` ones and those in `without`.
   * @param {number} now
   * @param {number} [first]
   * @param {Set<string>} [without]
   */
  #nextBatch(now, first = 0, without = new Set()) {
    const out = [];
    let size = 2;
    for (const [id, waiting] of [...this.#waiting].slice(first)) {
      if (without.has(id)) continue;
      if (waiting.tried && now - waiting.tried > REMEMBERED_MS) {
        this.#remove(id);
        this.#counts.expired++;
        this.#refuse(waiting.event, null, "expired: first sent over 47 hours ago without a response, and not resent as it could be counted twice");
        continue;
      }
      size += bytes.encode(JSON.stringify(waiting.event)).length + 40;
      if (out.length === this.#batch || (out.length && size > MOST_BYTES)) break;
      out.push(id);
    }
    return out;
  }

  /**
   * Record that events are being sent. Returns the ids of those that had not been sent before.
   * @param {string[]} batch
   * @param {number} now
   */
  #markTried(batch, now) {
    const fresh = [];
    for (const id of batch) {
      const waiting = this.#waiting.get(id);
      if (waiting && !waiting.tried) {
        this.#store(id, { ...waiting, tried: now });
        fresh.push(id);
      }
    }
    return fresh;
  }

  /** @param {string[]} batch */
  #body(batch) {
    const clockMs = this.#exchange.clockMs;
    const events = [];
    for (const id of batch) {
      const waiting = this.#waiting.get(id);
      if (!waiting) continue;
      waiting.clockMs = clockMs ?? 0;
      events.push({ ...waiting.event, timestamp: waiting.event.timestamp ?? (waiting.at + waiting.clockMs) / 1000 });
    }
    return JSON.stringify(events);
  }

  /**
   * @param {string[]} batch
   * @param {EventsAnswer} answer
   */
  #settle(batch, answer) {
    this.#failures = this.#notBefore = 0;
    if (batch.length === this.#batch) this.#batch = Math.min(this.#options.batch, this.#batch * 2);
    this.#counts.accepted += answer.accepted;
    this.#counts.duplicates += answer.duplicates;
    const rejected = new Map(answer.rejected.map((r) => [r.index, r]));
    batch.forEach((id, index) => {
      const waiting = this.#waiting.get(id);
      const why = rejected.get(index);
      if (waiting && why && this.#isClockError(waiting, why)) return; // it will be sent again with the corrected time
      this.#remove(id);
      if (waiting && why) {
        this.#counts.rejected++;
        this.#refuse(waiting.event, why.field, why.message);
      }
    });
  }

  /**
   * Whether an event was rejected for its timestamp, and the service's clock has become known since it was sent.
   * @param {Waiting} waiting
   * @param {Rejected} why
   */
  #isClockError(waiting, why) {
    const off = Math.abs((this.#exchange.clockMs ?? 0) - (waiting.clockMs ?? 0));
    return why.field === "timestamp" && waiting.event.timestamp == null && off > 1000;
  }

  /**
   * Handle a failed batch. Returns true if it still made progress.
   * @param {string[]} batch
   * @param {string[]} fresh
   * @param {ShelfwiseError} error
   */
  #handleError(batch, fresh, error) {
    if (error.rejected.length) {
      this.#settle(batch, { accepted: 0, duplicates: 0, rejected: error.rejected, derived: [] });
      return true;
    }
    if ([400, 413, 422].includes(error.status)) {
      // Refused for its content: halve batches until the event at fault is alone, and reject it.
      if (batch.length > 1) this.#batch = Math.ceil(batch.length / 2);
      else this.#settle(batch, { accepted: 0, duplicates: 0, derived: [], rejected: [{ index: 0, field: error.field, message: error.message }] });
      return true;
    }
    if (error.surelyNotDone) for (const id of fresh) this.#unmarkTried(id);
    this.#failures++;
    if (!error.mayPass && this.#failures === 1) console.error(`shelfwise: events cannot be delivered: ${error.message}`);
    const pause = error.mayPass ? pauseMs(this.#failures, error.retryAfterMs, FIRST_PAUSE_MS, MOST_PAUSE_MS) : MOST_PAUSE_MS;
    this.#notBefore = Date.now() + pause;
    return false;
  }

  /** @param {string} id */
  #unmarkTried(id) {
    const waiting = this.#waiting.get(id);
    if (waiting) this.#store(id, { ...waiting, tried: 0 });
  }

  /**
   * @param {string} id
   * @param {Waiting} waiting
   */
  #store(id, waiting) {
    this.#waiting.set(id, waiting);
    try {
      this.#storage?.setItem(this.#prefix + id, JSON.stringify(waiting));
    } catch {
      // Storage is full: the event is queued only in this page.
    }
  }

  /** @param {string} id */
  #remove(id) {
    this.#waiting.delete(id);
    this.#handedOver.delete(id);
    this.#storage?.removeItem(this.#prefix + id);
  }

  #keys() {
    const keys = [];
    for (let n = 0; n < (this.#storage?.length ?? 0); n++) {
      const key = this.#storage?.key(n);
      if (key?.startsWith(this.#prefix)) keys.push(key);
    }
    return keys;
  }

  /**
   * @param {EventIn} event
   * @param {string | null} field
   * @param {string} why
   */
  #refuse(event, field, why) {
    try {
      this.#options.onRefused(event, field, why);
    } catch (error) {
      console.error("shelfwise: onRefused failed", error);
    }
  }
}

/**
 * Parse an entry that a page left in the storage; null if it is not valid.
 * @param {string | null | undefined} text
 * @returns {Waiting | null}
 */
function parseEntry(text) {
  try {
    const entry = JSON.parse(text ?? "null");
    return typeof entry?.event?.event_id === "string" && Number.isFinite(entry.at) ? entry : null;
  } catch {
    return null;
  }
}

/**
 * Pass a body to the browser to deliver. Returns false if it refuses. As text, it needs no CORS preflight.
 * @param {string} url
 * @param {string} body
 */
function beacon(url, body) {
  if (typeof navigator === "undefined" || typeof navigator.sendBeacon !== "function") return false;
  return navigator.sendBeacon(url, new Blob([body], { type: "text/plain" }));
}
