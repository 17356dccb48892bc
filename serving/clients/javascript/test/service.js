/** A fake service for tests, which accepts events like the real one or fails on demand, and a storage in memory. */

import { createServer } from "node:http";

/**
 * @param {(events: any[], turn: number) => [number, any, Record<string, string>?] | "cut" | undefined} respond the
 *   response to a request: [status, body, headers], "cut" to accept the events but drop the connection, undefined to
 *   accept them
 */
export async function fakeService(respond) {
  const accepted = new Map();
  const requests = [];
  let turn = 0;
  const server = createServer((request, response) => {
    const parts = [];
    request.on("data", (part) => parts.push(part));
    request.on("end", () => {
      const events = JSON.parse(Buffer.concat(parts).toString());
      requests.push({ events, path: request.url, headers: request.headers, at: Date.now() });
      const answer = respond(events, turn++);
      if (Array.isArray(answer)) {
        response.writeHead(answer[0], answer[2] ?? {}).end(JSON.stringify(answer[1]));
        return;
      }
      const fresh = events.filter((event) => !accepted.has(event.event_id));
      fresh.forEach((event) => accepted.set(event.event_id, event));
      if (answer === "cut") response.destroy();
      else response.writeHead(202).end(JSON.stringify({ accepted: fresh.length, duplicates: events.length - fresh.length, rejected: [], derived: [] }));
    });
  });
  await new Promise((ready) => server.listen(0, "127.0.0.1", () => ready(undefined)));
  const address = /** @type {import("node:net").AddressInfo} */ (server.address());
  return { url: `http://127.0.0.1:${address.port}`, accepted, requests, close: () => server.closeAllConnections() || server.close() };
}

export class Memory {
  #values = new Map();
  get length() {
    return this.#values.size;
  }
  key(n) {
    return [...this.#values.keys()][n] ?? null;
  }
  getItem(key) {
    return this.#values.get(key) ?? null;
  }
  setItem(key, value) {
    this.#values.set(key, String(value));
  }
  removeItem(key) {
    this.#values.delete(key);
  }
  get events() {
    return [...this.#values.values()].filter((value) => value.startsWith('{"event"')).map((value) => JSON.parse(value));
  }
}

/** Wait until a condition holds. */
export async function until(condition, ms = 10_000) {
  for (const end = Date.now() + ms; !condition(); await new Promise((done) => setTimeout(done, 5))) {
    if (Date.now() > end) throw new Error("the condition did not hold in time");
  }
}
