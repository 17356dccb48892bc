/** Conversion of GA4 events in the dataLayer to Shelfwise events. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { bridge, eventsOf } from "../datalayer.js";
import { Memory } from "./service.js";

const items = [{ item_id: "p1", index: 4 }, { item_id: "p2" }, { item_name: "no id" }];

function gtag(layer) {
  return function () {
    layer.push(arguments);
  };
}

test("a view_item_list becomes one impression per item, with one request id and the items' positions", () => {
  const [first, second, ...more] = eventsOf({ event: "view_item_list", ecommerce: { item_list_id: "home", items } }, null);
  assert.deepEqual([first.event, first.item_id, first.position], ["view_item_list", "p1", 4]);
  assert.deepEqual([second.item_id, second.position], ["p2", 1]);
  assert.equal(first.request_id, second.request_id);
  assert.match(first.request_id, /^[0-9a-f]{32}$/);
  assert.deepEqual(more, []);
});

test("the id of a list is the placement, of the item before that of the event, if it is a valid name", () => {
  const placed = (list, of) => eventsOf({ event: "select_item", ecommerce: { item_list_id: list, items: [{ item_id: "p1", item_list_id: of }] } }, null)[0].placement;
  assert.equal(placed(" home "), "home");
  assert.equal(placed("home", "cart"), "cart");
  assert.equal(placed("ü".repeat(64)), "ü".repeat(64));
  for (const invalid of [undefined, "", "(not set)", "x".repeat(65), "a\u0000b"]) assert.equal(placed(invalid), undefined);
});

test("gtag's form and the shop's own request_id are supported", () => {
  const layer = [];
  gtag(layer)("event", "view_item_list", { request_id: "r1", items: [{ item_id: 7, quantity: 2 }] });
  assert.deepEqual(eventsOf(layer[0], null), [{ event: "view_item_list", item_id: "7", request_id: "r1", position: 0, value: 2 }]);
});

test("an item chosen from a list keeps its request id in cart and purchase, even on later pages of the tab", () => {
  const tab = new Memory();
  const seen = [];
  const page = (...pushed) => bridge(pushed, (event) => seen.push(event), tab);
  page({ event: "view_item_list", ecommerce: { item_list_id: "home", request_id: "r1", items: [{ item_id: "p1" }, { item_id: "p2" }] } },
    { event: "select_item", ecommerce: { item_list_id: "home", items: [{ item_id: "p1" }] } },
    { event: "select_item", ecommerce: { item_list_id: "other", items: [{ item_id: "p2" }] } });
  page({ event: "view_item", ecommerce: { items: [{ item_id: "p1" }] } }, { event: "add_to_cart", ecommerce: { items: [{ item_id: "p1", quantity: 3 }] } });
  page({ event: "purchase", ecommerce: { transaction_id: "T1", items: [{ item_id: "p1", quantity: 3 }, { item_id: "p2" }] } });
  assert.deepEqual(seen.slice(2), [
    { event: "select_item", item_id: "p1", request_id: "r1", placement: "home" },
    { event: "select_item", item_id: "p2", placement: "other" }, // chosen from another list, so it has no request id
    { event: "view_item", item_id: "p1", request_id: "r1" },
    { event: "add_to_cart", item_id: "p1", request_id: "r1", value: 3 },
    { event: "purchase", item_id: "p1", request_id: "r1", value: 3, event_id: "T1:p1" },
    { event: "purchase", item_id: "p2", event_id: "T1:p2" },
  ]);
});

test("earlier and later entries are tracked, and the shop's own push still works", () => {
  const layer = [{ event: "view_item", ecommerce: { items: [{ item_id: "early" }] } }];
  const pushedThrough = [];
  layer.push = function (...given) {
    pushedThrough.push(...given);
    return Array.prototype.push.apply(this, given);
  };
  const seen = [];
  const stop = bridge(layer, (event) => seen.push(event.item_id), null);
  bridge(layer, (event) => seen.push(event.item_id), null); // a second bridge has no effect
  assert.equal(layer.push({ event: "view_item", ecommerce: { items: [{ item_id: "late" }] } }), 2);
  stop();
  layer.push({ event: "view_item", ecommerce: { items: [{ item_id: "after" }] } });
  assert.deepEqual(seen, ["early", "late"]);
  assert.equal(pushedThrough.length, 2);
});

test("other entries are ignored, and an error in the client does not reach the shop", () => {
  const odd = [null, 1, "x", [], {}, { event: "purchase" }, { event: "purchase", ecommerce: null }, { event: "view_item", ecommerce: { items: [null, 3] } }, ["event", "view_item"], { event: "page_view", items: [{ item_id: "a" }] }];
  for (const pushed of odd) assert.deepEqual(eventsOf(pushed, null), []);
  const original = console.error;
  console.error = () => undefined;
  const layer = [];
  bridge(layer, () => {
    throw new Error("in the client");
  }, null);
  assert.equal(layer.push({ event: "view_item", ecommerce: { items: [{ item_id: "a" }] } }), 1);
  console.error = original;
});
