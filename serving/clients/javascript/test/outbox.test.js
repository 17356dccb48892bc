/** What becomes of tracked events, for each thing that may happen to them. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { retryAfter } from "../errors.js";
import { pauseMs } from "../exchange.js";
import { Shelfwise } from "../shelfwise.js";
import { Memory, serviceThat, until } from "./service.js";

const HOUR = 3600_000;

/** A client of a service that misbehaves as told, for as long as `then` runs. */
async function withShop(fate, then, options = {}) {
  const service = await serviceThat(fate);
  const told = [];
  const storage = new Memory();
  const onRefused = (event, field, why) => told.push([event.item_id, field, why]);
  const shop = new Shelfwise({ url: service.url, user: "u1", storage, onRefused, everyMs: 5, ...options });
  try {
    await then(shop, service, { told, storage });
  } finally {
    shop.close();
    service.close();
  }
}

test("events go in batches, with shopper, session, time and id, and leave the storage when they are taken", () =>
  withShop(() => undefined, async (shop, service, { storage }) => {
    const before = Date.now() / 1000;
    const ids = [1, 2, 3].map((n) => shop.track({ event: "click", item_id: `i${n}` }));
    assert.equal(storage.events.length, 3);
    assert.equal(await shop.flush(), true);
    assert.deepEqual([...service.taken.keys()], ids);
    const [first] = service.taken.values();
    assert.equal(first.user_id, "u1");
    assert.match(first.session_id, /^[0-9a-f]{32}$/);
    assert.ok(first.timestamp >= before && first.timestamp <= Date.now() / 1000);
    assert.equal(service.asked.length, 1);
    assert.equal(storage.events.length, 0);
    assert.deepEqual(shop.counts, { waiting: 0, accepted: 3, duplicates: 0, rejected: 0, expired: 0, turnedAway: 0 });
  }));

test("an answer that is lost costs nothing and counts nothing twice", () =>
  withShop((_, turn) => (turn < 2 ? "cut" : undefined), async (shop, service) => {
    shop.track({ event: "click", item_id: "i" });
    await until(() => shop.counts.waiting === 0);
    assert.equal(service.taken.size, 1);
    assert.ok(service.asked.length >= 3);
    assert.equal(shop.counts.duplicates, 1);
  }));

test("a rejected event is told once with its reason, and the others of its batch are in", () =>
  withShop((events, turn) => (turn === 0 ? [202, { accepted: 1, duplicates: 0, rejected: [{ index: 1, field: "position", message: "no" }], derived: [] }] : undefined),
    async (shop, service, { told }) => {
      shop.track({ event: "click", item_id: "good" });
      shop.track({ event: "click", item_id: "bad", position: -1 });
      await shop.flush();
      assert.deepEqual(told, [["bad", "position", "no"]]);
      assert.deepEqual([shop.counts.accepted, shop.counts.rejected, shop.counts.waiting], [1, 1, 0]);
      assert.equal(service.asked.length, 1);
    }));

test("where none of a batch is good, the problem document says so of each", () =>
  withShop(() => [422, { type: "urn:shelfwise:problem:no-event-taken", title: "", detail: "", remedy: "", rejected: [{ index: 0, field: "event", message: "no" }] }],
    async (shop, _, { told }) => {
      shop.track({ event: "click", item_id: "bad" });
      await shop.flush();
      assert.deepEqual(told, [["bad", "event", "no"]]);
    }));

test("a request that is too large is halved until it is taken, or stands alone and is told", () =>
  withShop((events) => (events.length > 2 || events.some((e) => e.item_id === "i7") ? [413, {}] : undefined),
    async (shop, service, { told }) => {
      for (let n = 0; n < 8; n++) shop.track({ event: "click", item_id: `i${n}` });
      await until(() => shop.counts.waiting === 0);
      assert.equal(service.taken.size, 7);
      assert.deepEqual(told.map(([item]) => item), ["i7"]);
    }));

test("no request is longer than a browser delivers after a page has ended", () =>
  withShop(() => undefined, async (shop, service) => {
    for (let n = 0; n < 60; n++) shop.track({ event: "click", item_id: `ö${n}`.padEnd(2000, "ö") });
    await shop.flush();
    assert.equal(service.taken.size, 60);
    for (const { headers } of service.asked) assert.ok(Number(headers["content-length"]) <= 64 * 1024);
  }));

test("Retry-After is waited", () =>
  withShop((_, turn) => (turn === 0 ? [429, {}, { "retry-after": "1" }] : undefined), async (shop, service) => {
    shop.track({ event: "click", item_id: "i" });
    await until(() => shop.counts.waiting === 0);
    assert.ok(service.asked[1].at - service.asked[0].at >= 1000);
  }));

test("what one page left, the next sends, with the same id", async () => {
  const storage = new Memory();
  const away = new Shelfwise({ url: "http://127.0.0.1:9", user: "u1", storage, everyMs: 1e6 });
  const id = away.track({ event: "purchase", item_id: "i" });
  away.close();
  const [left] = storage.events;
  const service = await serviceThat(() => undefined);
  const moved = { ...left, at: left.at - HOUR }; // another tab's, an hour ago
  storage.setItem(`shelfwise ${service.url} ${id}`, JSON.stringify(moved));
  storage.setItem(`shelfwise ${service.url} broken`, "{");
  const shop = new Shelfwise({ url: service.url, user: "u2", storage, everyMs: 5 });
  await until(() => service.taken.size === 1);
  assert.deepEqual([...service.taken.keys()], [id]);
  assert.equal(service.taken.get(id).user_id, "u1");
  assert.equal(service.taken.get(id).timestamp, moved.at / 1000);
  shop.close();
  service.close();
});

test("what may have counted two days ago is told and not sent; what surely never arrived is sent", async () => {
  const service = await serviceThat(() => undefined);
  const storage = new Memory();
  const event = { event: "click", user_id: "u1", item_id: "i" };
  const long = Date.now() - 60 * HOUR;
  for (const [id, tried] of /** @type {[string, number][]} */ ([["tried", long], ["never", 0]])) {
    storage.setItem(`shelfwise ${service.url} ${id}`, JSON.stringify({ event: { ...event, event_id: id }, at: long, tab: "", tried }));
  }
  const told = [];
  const shop = new Shelfwise({ url: service.url, user: "u1", storage, everyMs: 5, onRefused: (e) => told.push(e.event_id) });
  await until(() => shop.counts.waiting === 0);
  assert.deepEqual([[...service.taken.keys()], told, shop.counts.expired], [["never"], ["tried"], 1]);
  shop.close();
  service.close();
});

test("a clock that is an hour ahead is put right by the service's", () => {
  const now = Date.now;
  Date.now = () => now() + HOUR;
  const late = (events) => (events[0].timestamp * 1000 > now() + 60_000
    ? [202, { accepted: 0, duplicates: 0, rejected: [{ index: 0, field: "timestamp", message: "ahead" }], derived: [] }, { date: new Date(now()).toUTCString() }]
    : undefined);
  return withShop(late, async (shop, service, { told }) => {
    shop.track({ event: "click", item_id: "i" });
    await until(() => shop.counts.waiting === 0);
    const [event] = service.taken.values();
    assert.ok(Math.abs(event.timestamp * 1000 - now()) < 5000);
    assert.deepEqual(told, []);
  }).finally(() => (Date.now = now));
});

test("a full queue says so and drops nothing silently", () =>
  withShop(() => [503, {}], async (shop, _, { told }) => {
    assert.ok(shop.track({ event: "click", item_id: "1" }));
    assert.ok(shop.track({ event: "click", item_id: "2" }));
    assert.equal(shop.track({ event: "click", item_id: "3" }), null);
    assert.deepEqual(told.map(([item]) => item), ["3"]);
    assert.deepEqual([shop.counts.waiting, shop.counts.turnedAway], [2, 1]);
  }, { queue: 2 }));

test("a storage that is full or denied costs the next page, not this one", async () => {
  const service = await serviceThat(() => undefined);
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
  assert.equal(service.taken.size, 2);
  service.close();
});

test("a ranking is tried again within its deadline, and says what is wrong", async () => {
  let turn = 0;
  const answer = { request_id: "r", release: "x", degraded: false, items: [], took_ms: 1 };
  const service = await serviceThat(() => [turn === 0 ? 503 : 200, turn++ === 0 ? {} : answer]);
  const shop = new Shelfwise({ url: service.url, key: "swk_a_b", user: "u1", storage: null, device: "mobile" });
  assert.deepEqual(await shop.rank({ candidates: ["a"] }), answer);
  assert.equal(service.asked[1].headers.authorization, "Bearer swk_a_b");
  assert.deepEqual(service.asked[1].events, { user_id: "u1", device: "mobile", candidates: ["a"] });
  service.close();
  await assert.rejects(shop.recommend({}, { deadlineMs: 200 }), { name: "ShelfwiseError", status: 0 });
  await assert.rejects(shop.similar(".."), /cannot stand in a path/);
  shop.close();
  assert.throws(() => shop.track({ event: "click", item_id: "i" }), /closed/);
});

test("pauses double up to a bound, after what was asked for", () => {
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
