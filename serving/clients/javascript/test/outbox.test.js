/** Delivery of tracked events, for each way in which it can fail. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { retryAfter } from "../errors.js";
import { pauseMs } from "../exchange.js";
import { Shelfwise } from "../shelfwise.js";
import { Memory, fakeService, until } from "./service.js";

const HOUR = 3600_000;

/** Run `then` with a client of a service that responds according to `respond`. */
async function withShop(respond, then, options = {}) {
  const service = await fakeService(respond);
  const refused = [];
  const storage = new Memory();
  const onRefused = (event, field, why) => refused.push([event.item_id, field, why]);
  const shop = new Shelfwise({ url: service.url, user: "u1", storage, onRefused, everyMs: 5, ...options });
  try {
    await then(shop, service, { refused, storage });
  } finally {
    shop.close();
    service.close();
  }
}

test("events are sent in batches, with shopper, session, time and id, and are removed from the storage once accepted", () =>
  withShop(() => undefined, async (shop, service, { storage }) => {
    const before = Date.now() / 1000;
    const ids = [1, 2, 3].map((n) => shop.track({ event: "click", item_id: `i${n}` }));
    assert.equal(storage.events.length, 3);
    assert.equal(await shop.flush(), true);
    assert.deepEqual([...service.accepted.keys()], ids);
    const [first] = service.accepted.values();
    assert.equal(first.user_id, "u1");
    assert.match(first.session_id, /^[0-9a-f]{32}$/);
    assert.ok(first.timestamp >= before && first.timestamp <= Date.now() / 1000);
    assert.equal(service.requests.length, 1);
    assert.equal(storage.events.length, 0);
    assert.deepEqual(shop.counts, { waiting: 0, accepted: 3, duplicates: 0, rejected: 0, expired: 0, turnedAway: 0 });
  }));

test("the shopper token is sent with every request, and a function is asked for the current one", () => {
  let current = "token 1";
  return withShop(() => undefined, async (shop, service) => {
    shop.track({ event: "click", item_id: "i1" });
    await shop.flush();
    current = "token 2";
    shop.track({ event: "click", item_id: "i2" });
    await shop.flush();
    shop.identify("u2", "token 3");
    shop.track({ event: "click", item_id: "i3" });
    await shop.flush();
    assert.deepEqual(service.requests.map(({ headers }) => headers["x-shopper-token"]), ["token 1", "token 2", "token 3"]);
  }, { token: () => current });
});

test("a merge names the anonymous shopper, is repeated after an error, and returns what the service answered", () =>
  withShop((_, turn) => (turn < 1 ? [503, {}] : [200, { at: 1.5, moved: 3 }]), async (shop, service) => {
    assert.deepEqual(await shop.merge("ann/1", { from: "anon-7" }), { at: 1.5, moved: 3 });
    assert.deepEqual(service.requests.map(({ events, path }) => [path, events]), [
      ["/v1/users/ann%2F1/merge", { from: "anon-7" }],
      ["/v1/users/ann%2F1/merge", { from: "anon-7" }],
    ]);
    await shop.merge("ann");
    assert.deepEqual(service.requests[2].events, { from: "u1" }, "by default, the shopper of the client");
    await assert.rejects(() => shop.merge(".."), TypeError);
  }));

test("after a lost response, events are sent again and counted once", () =>
  withShop((_, turn) => (turn < 2 ? "cut" : undefined), async (shop, service) => {
    shop.track({ event: "click", item_id: "i" });
    await until(() => shop.counts.waiting === 0);
    assert.equal(service.accepted.size, 1);
    assert.ok(service.requests.length >= 3);
    assert.equal(shop.counts.duplicates, 1);
  }));

test("a rejected event is reported once with its reason, and the others of its batch are accepted", () =>
  withShop((events, turn) => (turn === 0 ? [202, { accepted: 1, duplicates: 0, rejected: [{ index: 1, field: "position", message: "no" }], derived: [] }] : undefined),
    async (shop, service, { refused }) => {
      shop.track({ event: "click", item_id: "good" });
      shop.track({ event: "click", item_id: "bad", position: -1 });
      await shop.flush();
      assert.deepEqual(refused, [["bad", "position", "no"]]);
      assert.deepEqual([shop.counts.accepted, shop.counts.rejected, shop.counts.waiting], [1, 1, 0]);
      assert.equal(service.requests.length, 1);
    }));

test("if no event of a batch is valid, the problem document gives the reason for each", () =>
  withShop(() => [422, { type: "urn:shelfwise:problem:no-event-taken", title: "", detail: "", remedy: "", rejected: [{ index: 0, field: "event", message: "no" }] }],
    async (shop, _, { refused }) => {
      shop.track({ event: "click", item_id: "bad" });
      await shop.flush();
      assert.deepEqual(refused, [["bad", "event", "no"]]);
    }));

test("a batch that is too large is halved until it is accepted, or is one event, which is reported", () =>
  withShop((events) => (events.length > 2 || events.some((e) => e.item_id === "i7") ? [413, {}] : undefined),
    async (shop, service, { refused }) => {
      for (let n = 0; n < 8; n++) shop.track({ event: "click", item_id: `i${n}` });
      await until(() => shop.counts.waiting === 0);
      assert.equal(service.accepted.size, 7);
      assert.deepEqual(refused.map(([item]) => item), ["i7"]);
    }));

test("no request is larger than a browser delivers after the page is closed", () =>
  withShop(() => undefined, async (shop, service) => {
    for (let n = 0; n < 60; n++) shop.track({ event: "click", item_id: `ö${n}`.padEnd(2000, "ö") });
    await shop.flush();
    assert.equal(service.accepted.size, 60);
    for (const { headers } of service.requests) assert.ok(Number(headers["content-length"]) <= 64 * 1024);
  }));

test("the client waits for Retry-After", () =>
  withShop((_, turn) => (turn === 0 ? [429, {}, { "retry-after": "1" }] : undefined), async (shop, service) => {
    shop.track({ event: "click", item_id: "i" });
    await until(() => shop.counts.waiting === 0);
    assert.ok(service.requests[1].at - service.requests[0].at >= 1000);
  }));

test("events left by one page are sent by the next, with the same id", async () => {
  const storage = new Memory();
  const closed = new Shelfwise({ url: "http://127.0.0.1:9", user: "u1", storage, everyMs: 1e6 });
  const id = closed.track({ event: "purchase", item_id: "i" });
  closed.close();
  const [left] = storage.events;
  const service = await fakeService(() => undefined);
  const older = { ...left, at: left.at - HOUR }; // from another tab, an hour ago
  storage.setItem(`shelfwise ${service.url} ${id}`, JSON.stringify(older));
  storage.setItem(`shelfwise ${service.url} broken`, "{");
  const shop = new Shelfwise({ url: service.url, user: "u2", storage, everyMs: 5 });
  await until(() => service.accepted.size === 1);
  assert.deepEqual([...service.accepted.keys()], [id]);
  assert.equal(service.accepted.get(id).user_id, "u1");
  assert.equal(service.accepted.get(id).timestamp, older.at / 1000);
  shop.close();
  service.close();
});

test("an event that may have been counted two days ago is reported and not resent; one never sent is sent", async () => {
  const service = await fakeService(() => undefined);
  const storage = new Memory();
  const event = { event: "click", user_id: "u1", item_id: "i" };
  const long = Date.now() - 60 * HOUR;
  for (const [id, tried] of /** @type {[string, number][]} */ ([["tried", long], ["never", 0]])) {
    storage.setItem(`shelfwise ${service.url} ${id}`, JSON.stringify({ event: { ...event, event_id: id }, at: long, tab: "", tried }));
  }
  const refused = [];
  const shop = new Shelfwise({ url: service.url, user: "u1", storage, everyMs: 5, onRefused: (e) => refused.push(e.event_id) });
  await until(() => shop.counts.waiting === 0);
  assert.deepEqual([[...service.accepted.keys()], refused, shop.counts.expired], [["never"], ["tried"], 1]);
  shop.close();
  service.close();
});

test("a clock that is an hour ahead is corrected by the service's clock", () => {
  const now = Date.now;
  Date.now = () => now() + HOUR;
  const late = (events) => (events[0].timestamp * 1000 > now() + 60_000
    ? [202, { accepted: 0, duplicates: 0, rejected: [{ index: 0, field: "timestamp", message: "ahead" }], derived: [] }, { date: new Date(now()).toUTCString() }]
    : undefined);
  return withShop(late, async (shop, service, { refused }) => {
    shop.track({ event: "click", item_id: "i" });
    await until(() => shop.counts.waiting === 0);
    const [event] = service.accepted.values();
    assert.ok(Math.abs(event.timestamp * 1000 - now()) < 5000);
    assert.deepEqual(refused, []);
  }).finally(() => (Date.now = now));
});

test("a full queue reports refused events and drops nothing silently", () =>
  withShop(() => [503, {}], async (shop, _, { refused }) => {
    assert.ok(shop.track({ event: "click", item_id: "1" }));
    assert.ok(shop.track({ event: "click", item_id: "2" }));
    assert.equal(shop.track({ event: "click", item_id: "3" }), null);
    assert.deepEqual(refused.map(([item]) => item), ["3"]);
    assert.deepEqual([shop.counts.waiting, shop.counts.turnedAway], [2, 1]);
  }, { queue: 2 }));

test("without usable storage, events are still delivered by this page", async () => {
  const service = await fakeService(() => undefined);
  const full = new Memory();
  full.setItem = () => {
    throw new Error("QuotaExceededError");
  };
  for (const storage of [full, null]) {
    const shop = new Shelfwise({ url: service.url, user: "u1", storage, everyMs: 5 });
    shop.track({ event: "click", item_id: "i" });
    assert.equal(await shop.flush(), true);
    shop.close();
  }
  assert.equal(service.accepted.size, 2);
  service.close();
});

test("a ranking request is retried within its deadline, and its error says what is wrong", async () => {
  let turn = 0;
  const answer = { request_id: "r", release: "x", degraded: false, items: [], took_ms: 1 };
  const service = await fakeService(() => [turn === 0 ? 503 : 200, turn++ === 0 ? {} : answer]);
  const shop = new Shelfwise({ url: service.url, key: "swk_a_b", user: "u1", storage: null, device: "mobile" });
  assert.deepEqual(await shop.rank({ candidates: ["a"] }), answer);
  assert.equal(service.requests[1].headers.authorization, "Bearer swk_a_b");
  const { session_id, ...sent } = service.requests[1].events;
  assert.deepEqual(sent, { user_id: "u1", device: "mobile", candidates: ["a"] });
  assert.match(session_id, /^[\w-]+$/, "for experiments that assign sessions to arms");
  service.close();
  await assert.rejects(shop.recommend({}, { deadlineMs: 200 }), { name: "ShelfwiseError", status: 0 });
  await assert.rejects(shop.similar(".."), /cannot be used in a path/);
  shop.close();
  assert.throws(() => shop.track({ event: "click", item_id: "i" }), /closed/);
});

test("pauses double up to a bound, and are added to Retry-After", () => {
  for (const [attempt, bound] of [[1, 100], [3, 400], [99, 2000]]) {
    for (let n = 0; n < 100; n++) {
      const pause = pauseMs(attempt, 7000, 100, 2000);
      assert.ok(pause >= 7000 && pause <= 7000 + bound);
    }
  }
  assert.equal(retryAfter("3", 0), 3000);
  assert.equal(retryAfter("Thu, 01 Jan 1970 00:00:10 GMT", 4000), 6000);
  assert.equal(retryAfter("soon", 0), 0);
});
