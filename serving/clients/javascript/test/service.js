/** A small service for tests: takes events as the real one does, and misbehaves as told; and a storage in memory. */

import { createServer } from "node:http";

/**
 * @param {(events: any[], turn: number) => [number, any, Record<string, string>?] | "cut" | undefined} fate of a request
 */
export async function serviceThat(fate) {
  const taken = new Map();
  const asked = [];
  let turn = 0;
  const server = createServer((request, response) => {
    const parts = [];
    request.on("data", (part) => parts.push(part));
    request.on("end", () => {
      const events = JSON.parse(Buffer.concat(parts).toString());
      asked.push({ events, headers: request.headers, at: Date.now() });
      const said = fate(events, turn++);
      if (Array.isArray(said)) {
        response.writeHead(said[0], said[2] ?? {}).end(JSON.stringify(said[1]));
        return;
      }
      const fresh = events.filter((event) => !taken.has(event.event_id));
      fresh.forEach((event) => taken.set(event.event_id, event));
      if (said === "cut") response.destroy();
      else response.writeHead(202).end(JSON.stringify({ accepted: fresh.length, duplicates: events.length - fresh.length, rejected: [], derived: [] }));
    });
  });
  await new Promise((ready) => server.listen(0, "127.0.0.1", () => ready(undefined)));
  const address = /** @type {import("node:net").AddressInfo} */ (server.address());
  return { url: `http://127.0.0.1:${address.port}`, taken, asked, close: () => server.closeAllConnections() || server.close() };
}

export class Memory {
  #held = new Map();
  get length() {
    return this.#held.size;
  }
  key(n) {
    return [...this.#held.keys()][n] ?? null;
  }
  getItem(key) {
    return this.#held.get(key) ?? null;
  }
  setItem(key, value) {
    this.#held.set(key, String(value));
  }
  removeItem(key) {
    this.#held.delete(key);
  }
  get events() {
    return [...this.#held.values()].filter((value) => value.startsWith('{"event"')).map((value) => JSON.parse(value));
  }
}

/** Wait until something is so. */
export async function until(so, ms = 10_000) {
  for (const end = Date.now() + ms; !so(); await new Promise((done) => setTimeout(done, 5))) {
    if (Date.now() > end) throw new Error("it did not come true in time");
  }
}
