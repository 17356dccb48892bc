/** Requests to the service: deadlines, retries, and the service's clock. */

import { ShelfwiseError, errorOf } from "./errors.js";

const FIRST_PAUSE_MS = 100;
const MOST_PAUSE_MS = 2000;
const CLOCK_OFF_MS = 5000;

export class Exchange {
  /**
   * @param {string} url
   * @param {string | null} key
   * @param {number} deadlineMs
   * @param {number} attempts
   * @param {import("./types.js").ShopperToken | null} [token]
   */
  constructor(url, key, deadlineMs, attempts, token = null) {
    const address = new URL(url); // throws a TypeError if it is not a URL
    if (!/^https?:$/.test(address.protocol)) throw new TypeError(`url ${url} is not valid: use an http or https address`);
    this.url = url.replace(/\/+$/, "");
    this.key = key;
    this.token = token;
    this.deadlineMs = deadlineMs;
    this.attempts = attempts;
    /** Offset of the service's clock from this one's, in milliseconds; null before the first response. */
    this.clockMs = /** @type {number | null} */ (null);
  }

  /**
   * Call an idempotent route, with retries, within a deadline. Rejects with ShelfwiseError.
   * @param {string} method
   * @param {string} path
   * @param {unknown} [body]
   * @param {number} [deadlineMs]
   */
  async ask(method, path, body, deadlineMs = this.deadlineMs) {
    const due = performance.now() + deadlineMs;
    const text = body === undefined ? undefined : JSON.stringify(body);
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.once(method, path, text, due - performance.now());
      } catch (error) {
        if (!(error instanceof ShelfwiseError) || !error.mayPass || attempt >= this.attempts) throw error;
        const pause = pauseMs(attempt, error.retryAfterMs, FIRST_PAUSE_MS, MOST_PAUSE_MS);
        if (performance.now() + pause >= due) throw error;
        await new Promise((done) => setTimeout(done, pause));
      }
    }
  }

  /**
   * A single attempt. Rejects with ShelfwiseError.
   * @param {string} method
   * @param {string} path
   * @param {string | undefined} body
   * @param {number} limitMs
   * @param {boolean} [keepalive] whether the request continues after the page is closed
   * @returns {Promise<any>}
   */
  async once(method, path, body, limitMs, keepalive = false) {
    const stop = new AbortController();
    const timer = setTimeout(() => stop.abort(), Math.max(0, limitMs));
    try {
      const response = await fetch(this.url + path, {
        method, body, keepalive, headers: this.headers(body !== undefined), signal: stop.signal,
        credentials: "omit", cache: "no-store", redirect: "error",
      });
      this.#readClock(response);
      if (!response.ok) throw await errorOf(response);
      return await response.json();
    } catch (error) {
      if (error instanceof ShelfwiseError) throw error;
      const code = stop.signal.aborted ? "deadline" : "unreachable";
      throw new ShelfwiseError(0, code, `${method} ${path}: ${code}: ${error}`);
    } finally {
      clearTimeout(timer);
    }
  }

  /**
   * Headers of a request. Without a key, a body is sent as text, so that no CORS preflight is needed and beacons work.
   * @param {boolean} body
   */
  headers(body) {
    /** @type {Record<string, string>} */
    const headers = {};
    if (body) headers["Content-Type"] = this.key === null ? "text/plain" : "application/json";
    if (this.key !== null) headers["Authorization"] = `Bearer ${this.key}`;
    const token = typeof this.token === "function" ? this.token() : this.token;
    if (token) headers["X-Shopper-Token"] = token;
    return headers;
  }

  /**
   * Read the service's clock, to the second. Shoppers' clocks are often wrong, and events in the future are rejected.
   * @param {Response} response
   */
  #readClock(response) {
    const at = Date.parse(response.headers.get("date") ?? "");
    if (Number.isNaN(at)) return;
    const ahead = at + 500 - Date.now();
    this.clockMs = Math.abs(ahead) > CLOCK_OFF_MS ? ahead : 0;
  }
}

/**
 * Milliseconds before the next attempt: Retry-After, plus a random pause up to a bound that doubles with each attempt.
 * @param {number} attempt number of attempts so far
 * @param {number} retryAfterMs
 * @param {number} firstMs
 * @param {number} mostMs
 */
export function pauseMs(attempt, retryAfterMs, firstMs, mostMs) {
  return retryAfterMs + Math.random() * Math.min(mostMs, firstMs * 2 ** Math.min(attempt - 1, 30));
}
