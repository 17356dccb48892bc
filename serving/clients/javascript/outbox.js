/**
 * Events from `track` until the service has them: each under its own key in a storage that outlives the page, sent in
 * batches, again and again with the same id. What a closed tab left is sent by the next page.
 */

import { ShelfwiseError } from "./errors.js";
import { pauseMs } from "./exchange.js";

/** @typedef {import("./types.js").KeyValue} KeyValue */
/** @typedef {import("./types.js").EventIn} EventIn */
/** @typedef {import("./types.js").EventsAnswer} EventsAnswer */
/** @typedef {import("./types.js").Rejected} Rejected */
/** @typedef {import("./exchange.js").Exchange} Exchange */
/**
 * at: when it happened, by this browser's clock in milliseconds. tried: when it was first sent and may have arrived,
 * 0 for never. clockMs: by how much its time was corrected when it was last sent.
 * @typedef {{event: EventIn, at: number, tab: string, tried: number, clockMs?: number}} Waiting
 */

const ROUTE = "/v1/events";
/** A browser lets 64 KiB be on their way when a page ends, all requests together. */
const MOST_BYTES = 60_000;
/** The service surely knows an id again for two days. */
const REMEMBERED_MS = 47 * 3600_000;
/** How old an event of another tab is when that tab is surely not just about to send it. */
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
  #how;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  /** @type {Promise<boolean> | null} */
  #sending = null;
  /** How many events, the oldest, are on their way. */
  #flying = 0;
  /**
   * What was handed to the browser while the page is hidden: being hidden and being left come one after the other.
   * @type {Set<string>}
   */
  #handed = new Set();
  #failed = 0;
  #notBefore = 0;
  #batch;
  #counts = { accepted: 0, duplicates: 0, rejected: 0, expired: 0, turnedAway: 0 };

  /**
   * @param {Exchange} exchange
   * @param {KeyValue | null} storage
   * @param {string} tab
   * @param {{everyMs: number, batch: number, queue: number,
   *          onRefused: (event: EventIn, field: string | null, why: string) => void}} how
   */
  constructor(exchange, storage, tab, how) {
    this.#exchange = exchange;
    this.#storage = storage;
    this.#prefix = `shelfwise ${exchange.url} `;
    this.#tab = tab;
    this.#how = how;
    this.#batch = how.batch;
  }

  get counts() {
    return { waiting: this.#waiting.size, ...this.#counts };
  }

  /**
   * Queue an event; false where there is no room for it.
   * @param {EventIn & {event_id: string}} event
   * @param {number} now
   */
  put(event, now) {
    if (this.#waiting.size >= this.#how.queue) {
      this.#counts.turnedAway++;
      this.#tell(event, null, `${this.#waiting.size} events wait already: is the service away?`);
      return false;
    }
    this.#keep(event.event_id, { event, at: now, tab: this.#tab, tried: 0 });
    this.#plan(this.#waiting.size >= this.#batch ? 0 : this.#how.everyMs);
    return true;
  }

  /**
   * Take over what earlier pages left: those of this tab at once, those of others when they are old.
   * @param {number} now
   */
  adopt(now) {
    this.#handed.clear();
    for (const key of this.#keys()) {
      const id = key.slice(this.#prefix.length);
      const left = this.#waiting.has(id) ? null : parsed(this.#storage?.getItem(key));
      if (left && (left.tab === this.#tab || now - left.at > LEFT_BEHIND_MS)) this.#waiting.set(id, left);
    }
    if (this.#waiting.size) this.#plan(0);
  }

  /** Send what waits now; whether all that waited is delivered. */
  async flush() {
    this.#notBefore = 0;
    while (this.#waiting.size) {
      if (!(await this.#send())) return false;
    }
    return true;
  }

  /**
   * The page is going: hand to the browser all that waits and is not on its way. It delivers that though nobody may be
   * left to hear the answer; so what is not known to be delivered stays in the storage, and the next page sends it again.
   */
  leave() {
    const now = Date.now();
    for (let batch; (batch = this.#take(now, this.#flying, this.#handed)).length; ) {
      this.#mark(batch, now);
      batch.forEach((id) => this.#handed.add(id));
      const body = this.#body(batch);
      if (this.#exchange.key === null && beacon(this.#exchange.url + ROUTE, body)) continue;
      // A beacon carries no key. Where too much is on its way already, the browser refuses: the next page sends it.
      this.#exchange.once("POST", ROUTE, body, ATTEMPT_MS, true).then(
        (answer) => this.#taken(batch, answer),
        () => undefined,
      );
    }
  }

  stop() {
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  /** @param {number} ms */
  #plan(ms) {
    const wait = Math.max(ms, this.#notBefore - Date.now());
    if (this.#timer !== undefined && ms > 0) return;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      void this.#send();
    }, wait);
  }

  /** One batch, one at a time; whether it came to something. */
  #send() {
    this.#sending ??= this.#attempt().finally(() => {
      this.#sending = null;
      if (this.#waiting.size) this.#plan(this.#waiting.size >= this.#batch ? 0 : this.#how.everyMs);
    });
    return this.#sending;
  }

  async #attempt() {
    const now = Date.now();
    const batch = this.#take(now);
    if (!batch.length) return true;
    const fresh = this.#mark(batch, now);
    this.#flying = batch.length;
    try {
      // It goes on though the page ends; what is longer than a browser takes then was cut off by `#take`.
      this.#taken(batch, await this.#exchange.once("POST", ROUTE, this.#body(batch), ATTEMPT_MS, true));
      return true;
    } catch (error) {
      if (!(error instanceof ShelfwiseError)) throw error;
      return this.#missed(batch, fresh, error);
    } finally {
      this.#flying = 0;
    }
  }

  /**
   * The oldest events, as many as one request holds, but for the `first` so many and those `without`.
   * @param {number} now
   * @param {number} [first]
   * @param {Set<string>} [without]
   */
  #take(now, first = 0, without = new Set()) {
    const out = [];
    let size = 2;
    for (const [id, waiting] of [...this.#waiting].slice(first)) {
      if (without.has(id)) continue;
      if (waiting.tried && now - waiting.tried > REMEMBERED_MS) {
        this.#forget(id);
        this.#counts.expired++;
        this.#tell(waiting.event, null, "not known for 47 hours whether it counted: not sent again, lest it count twice");
        continue;
      }
      size += bytes.encode(JSON.stringify(waiting.event)).length + 40;
      if (out.length === this.#batch || (out.length && size > MOST_BYTES)) break;
      out.push(id);
    }
    return out;
  }

  /**
   * Note that events are being sent; those that were not before.
   * @param {string[]} batch
   * @param {number} now
   */
  #mark(batch, now) {
    const fresh = [];
    for (const id of batch) {
      const waiting = this.#waiting.get(id);
      if (waiting && !waiting.tried) {
        this.#keep(id, { ...waiting, tried: now });
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
  #taken(batch, answer) {
    this.#failed = this.#notBefore = 0;
    if (batch.length === this.#batch) this.#batch = Math.min(this.#how.batch, this.#batch * 2);
    this.#counts.accepted += answer.accepted;
    this.#counts.duplicates += answer.duplicates;
    const rejected = new Map(answer.rejected.map((r) => [r.index, r]));
    batch.forEach((id, index) => {
      const waiting = this.#waiting.get(id);
      const why = rejected.get(index);
      if (waiting && why && this.#wasTheClock(waiting, why)) return; // goes again, with the right time
      this.#forget(id);
      if (waiting && why) {
        this.#counts.rejected++;
        this.#tell(waiting.event, why.field, why.message);
      }
    });
  }

  /**
   * Whether an event was refused for its time, and the service's clock has been learnt since it was stamped.
   * @param {Waiting} waiting
   * @param {Rejected} why
   */
  #wasTheClock(waiting, why) {
    const off = Math.abs((this.#exchange.clockMs ?? 0) - (waiting.clockMs ?? 0));
    return why.field === "timestamp" && waiting.event.timestamp == null && off > 1000;
  }

  /**
   * A batch was not taken; whether something came of it all the same.
   * @param {string[]} batch
   * @param {string[]} fresh
   * @param {ShelfwiseError} error
   */
  #missed(batch, fresh, error) {
    if (error.rejected.length) {
      this.#taken(batch, { accepted: 0, duplicates: 0, rejected: error.rejected, derived: [] });
      return true;
    }
    if ([400, 413, 422].includes(error.status)) {
      // Refused for what it holds: in halves, until the one at fault stands alone.
      if (batch.length > 1) this.#batch = Math.ceil(batch.length / 2);
      else this.#taken(batch, { accepted: 0, duplicates: 0, derived: [], rejected: [{ index: 0, field: error.field, message: error.message }] });
      return true;
    }
    if (error.surelyNotDone) for (const id of fresh) this.#unmark(id);
    this.#failed++;
    if (!error.mayPass && this.#failed === 1) console.error(`shelfwise: events wait: ${error.message}`);
    const pause = error.mayPass ? pauseMs(this.#failed, error.retryAfterMs, FIRST_PAUSE_MS, MOST_PAUSE_MS) : MOST_PAUSE_MS;
    this.#notBefore = Date.now() + pause;
    return false;
  }

  /** @param {string} id */
  #unmark(id) {
    const waiting = this.#waiting.get(id);
    if (waiting) this.#keep(id, { ...waiting, tried: 0 });
  }

  /**
   * @param {string} id
   * @param {Waiting} waiting
   */
  #keep(id, waiting) {
    this.#waiting.set(id, waiting);
    try {
      this.#storage?.setItem(this.#prefix + id, JSON.stringify(waiting));
    } catch {
      // Full: it waits in this page alone.
    }
  }

  /** @param {string} id */
  #forget(id) {
    this.#waiting.delete(id);
    this.#handed.delete(id);
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
  #tell(event, field, why) {
    try {
      this.#how.onRefused(event, field, why);
    } catch (error) {
      console.error("shelfwise: onRefused failed", error);
    }
  }
}

/**
 * Something that a page left, or null where it is none of ours.
 * @param {string | null | undefined} text
 * @returns {Waiting | null}
 */
function parsed(text) {
  try {
    const left = JSON.parse(text ?? "null");
    return typeof left?.event?.event_id === "string" && Number.isFinite(left.at) ? left : null;
  } catch {
    return null;
  }
}

/**
 * Whether the browser took a body to deliver. As text, it needs no leave from the service first.
 * @param {string} url
 * @param {string} body
 */
function beacon(url, body) {
  if (typeof navigator === "undefined" || typeof navigator.sendBeacon !== "function") return false;
  return navigator.sendBeacon(url, new Blob([body], { type: "text/plain" }));
}
