// The page: who shops, what is asked for, and what is done when a button is pressed.

import { call, freshId, Refused, useKey } from "./api.js";
import { Card, make } from "./card.js";
import { Shelf } from "./movement.js";

const SHOWN = 24, MANY = 200;
const $ = (id) => document.getElementById(id);
const own = new Shelf($("own")), popular = new Shelf($("popular"));
const products = new Map();
const pins = [], added = [], cart = [];
let shopper, turn = 0, later, among, shown = null;

function say(words) {
  $("said").textContent = words;
}

function notice(words) {
  $("notice").textContent = words;
  $("notice").hidden = !words;
}

function ordinal(n) {
  const end = { one: "st", two: "nd", few: "rd", other: "th" };
  return `${n}${end[new Intl.PluralRules("en", { type: "ordinal" }).select(n)]}`;
}

const title = (id) => products.get(id)?.title || id;

/** Whatever goes wrong is said where people look; a key is asked for where one is needed. */
async function guarded(work) {
  try {
    await work();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    $("key").hidden = error.status !== 401;
    notice(error.message);
  }
}

function rules() {
  const out = {}, all = [];
  if ($("category").value) all.push({ attribute: "category", eq: $("category").value });
  if (Number($("price").value) > 0) all.push({ attribute: "price", lte: Number($("price").value) });
  if (all.length) out.filter = { all };
  if ($("cap").value) out.cap = [{ attribute: "brand", most: Number($("cap").value) }];
  if ($("variety").value) out.diversity = { lambda: Number($("variety").value) };
  if (pins.length) out.pin = pins.map((item_id, position) => ({ item_id, position }));
  return out;
}

/** What was typed to search, empty for nothing: no more than a request takes, and no sign that it refuses. */
function typed() {
  return $("words").value.replace(/[\s\u0000-\u001f\u007f]+/g, " ").trim();
}

/** The shopper's own list out of the whole shop; query: what was searched for, empty for nothing. */
async function personal(query) {
  const asked = { user_id: shopper, limit: SHOWN, explain: true, rules: rules(), ...(query ? { query } : {}) };
  const answer = await call("POST", "v1/recommend", asked);
  const ids = answer.items.map((item) => item.item_id);
  if (added.every((id) => ids.includes(id))) return answer;
  // What was just added is shown though it is not among the first, and at its place among many: a score depends on
  // what else is in the list, so among the few that are shown it would be another.
  const many = await call("POST", "v1/recommend", { ...asked, limit: MANY, explain: false });
  const candidates = [...new Set([...many.items.map((item) => item.item_id), ...added])];
  const all = await call("POST", "v1/rank", { ...asked, candidates, limit: candidates.length });
  const far = new Map(all.items.map((item, k) => [item.item_id, k + 1]).filter(([id, k]) => k > SHOWN && added.includes(id)));
  return { ...all, far, of: all.items.length, items: all.items.filter((item, k) => k < SHOWN || far.has(item.item_id)) };
}

async function know(ids) {
  const unknown = ids.filter((id) => !products.has(id));
  if (!unknown.length) return;
  for (const product of await call("POST", "v1/storefront/products", { candidates: unknown })) products.set(product.item_id, product);
  for (const id of unknown) {
    if (!products.has(id)) products.set(id, { item_id: id, title: id, category: null, brand: null, price: null });
  }
}

/** Ask and show. did: what the shopper did, to be told with what moved; none where another list is asked for. */
async function load(did) {
  const mine = ++turn, started = performance.now(), query = typed();
  $("clear").hidden = !$("words").value;
  clearTimeout(later);
  const [answer, sold] = await Promise.all([personal(query), $("beside").checked ? bestSellers(query) : null]);
  await know([...answer.items, ...(sold?.items ?? [])].map((item) => item.item_id));
  if (mine !== turn) return;  // somebody was quicker
  notice("");
  show(answer, sold, did, query);
  state(answer, performance.now() - started);
  $("own").setAttribute("aria-busy", "false");
  if (!answer.degraded) impressions(answer, query);
}

/** What a shop without rankings would show: titles that hold the words, by sales. */
async function bestSellers(query) {
  const most = { limit: SHOWN, rules: rules() };
  if (query) most.candidates = await call("GET", `v1/storefront/search?words=${encodeURIComponent(query)}`);
  return call("POST", "v1/storefront/popular", most);
}

/** Whether anything shown holds a word of the query, or one it may be a slip of. */
const holds = (answer) => answer.items.some((item) => item.sources?.includes("query_words"));

function show(answer, sold, did, query) {
  const before = did ? own.places() : new Map();
  const cards = new Map(answer.items.map((item) => {
    const card = own.cards.get(item.item_id) ?? new Card(products.get(item.item_id), act);
    card.explain(item, pins.includes(item.item_id));
    return [item.item_id, card];
  }));
  shown = answer.request_id;
  own.show(cards, before, answer.far);
  among = answer.of ?? cards.size;
  $("empty").hidden = cards.size > 0;
  $("other").hidden = !sold;
  $("shelves").classList.toggle("two", Boolean(sold));
  if (sold) {
    const plain = sold.items.map(({ item_id: id }) => [id, popular.cards.get(id) ?? new Card(products.get(id), act, true)]);
    popular.show(new Map(plain), did ? popular.places() : new Map());
  }
  const none = query && !holds(answer) ? `No product holds a word of “${query}”; this is what comes nearest.` : "";
  $("searched").hidden = !query;
  $("searched").textContent = none || `What matches “${query}” comes first, in your order.`;
  const first = cards.size ? `, first ${title(cards.keys().next().value)}` : "";
  if (did) say(`${did} ${moved(before, own.places())}`);
  else if (query) say(none || `${cards.size} products for “${query}”${first}.`);
  else say(`${cards.size} products for ${$("shopper").selectedOptions[0]?.text ?? "you"}.`);
}

function moved(before, now) {
  const up = [...now].filter(([id, place]) => before.get(id) > place).sort(([a, p], [b, q]) => before.get(b) - q - (before.get(a) - p));
  const come = [...now.keys()].filter((id) => !before.has(id));
  const said = up.slice(0, 2).map(([id, place]) => `${title(id)} is up ${before.get(id) - place} to ${ordinal(place)}`);
  if (come.length) said.push(`${come.length} new here, first of them ${title(come[0])}, ${ordinal(now.get(come[0]))}`);
  return said.length ? `${said.join("; ")}.` : "The order stays.";
}

function state(answer, waited) {
  $("release").textContent = answer.release;
  $("took").textContent = `${answer.took_ms.toFixed(1)} ms`;
  $("waited").textContent = `${Math.round(waited)} ms`;
  $("state").textContent = answer.degraded ? "away" : "read";
  $("banner").hidden = !answer.degraded;
  $("banner").textContent = answer.degraded
    ? "Degraded: Redis is away. The shelf is ranked without what this shopper did, and nothing new is taken in."
    : "";
  if (answer.degraded) later = setTimeout(() => guarded(() => load()), 3000);
}

function event(kind, item_id, position) {
  return { event: kind, user_id: shopper, item_id, event_id: freshId(), request_id: shown, ...(position === undefined ? {} : { position }) };
}

/** That these were seen is evidence too: of what was passed over. A shop would send each as it scrolls into view. */
function impressions(answer, query) {
  const seen = answer.items.map((item, k) => ({ ...event("impression", item.item_id, k), ...(query ? { query } : {}) }));
  if (seen.length) call("POST", "v1/events", seen).catch(() => {});
}

const DONE = { click: "Viewed", cart: "In the cart:", purchase: "Bought" };

/** A button of a card. What people call viewing is the event `click`: a product chosen from a shown list. */
async function act(kind, card) {
  const id = card.product.item_id;
  await guarded(async () => {
    if (kind === "pin") {
      const at = pins.indexOf(id);
      if (at < 0) pins.push(id);
      else pins.splice(at, 1);
      return load(`${at < 0 ? "Pinned" : "Unpinned"} ${title(id)}.`);
    }
    try {
      await call("POST", "v1/events", event(kind, id, own.places().get(id) - 1));
    } catch (error) {
      if (error.status !== 503) throw error;
      await load();  // the shelf goes on, and says how it does
      throw error;
    }
    if (kind !== "click") cart.push(kind);
    const count = (k) => cart.filter((c) => c === k).length;
    $("done").textContent = cart.length ? `${count("cart")} in the cart, ${count("purchase")} bought` : "";
    return load(`${DONE[kind]} ${title(id)}.`);
  });
}

function choose(id) {
  shopper = id;
  cart.length = 0;
  $("done").textContent = "";
  $("shopper").value = id;
}

function newShopper() {
  const id = `guest-${freshId().slice(0, 8)}`;
  $("shopper").prepend(new Option(`new shopper ${id.slice(6, 10)}`, id));
  choose(id);
}

/** Write a product, wait until the service ranks it by its text, and show it. */
async function add(form) {
  const given = Object.fromEntries([...new FormData(form)].filter(([, value]) => value !== ""));
  const item_id = `new-${freshId().slice(0, 10)}`, started = performance.now();
  if (given.price) given.price = Number(given.price);
  await call("PUT", "v1/items", { item_id, ...given });
  const words = (said) => ($("added").textContent = said);
  words("Written. Its text is being read …");
  let known = {};
  while (!(known.live && known.vector) && performance.now() - started < 30000) {
    await new Promise((done) => setTimeout(done, 300));
    known = await call("GET", `v1/items/${item_id}`);
  }
  added.push(item_id);
  await load(`Added ${given.title}.`);
  const place = own.places().get(item_id), seconds = ((performance.now() - started) / 1000).toFixed(1);
  const text = known.vector ? "by its text" : "without its text, which no embedding worker has read";
  words(place ? `${ordinal(place)} of ${among} after ${seconds} s, ${text}.` : `Written; the filters keep it off the shelf.`);
  own.cards.get(item_id)?.element.classList.add("just");
  form.reset();
}

function listen() {
  let wait;
  const again = () => guarded(() => load());
  const cleared = () => {
    clearTimeout(wait);
    $("words").value = "";
    $("words").focus();
    again();
  };
  $("controls").addEventListener("submit", (e) => (e.preventDefault(), clearTimeout(wait), again()));
  $("clear").addEventListener("click", cleared);
  $("words").addEventListener("keydown", (e) => {
    if (e.key !== "Escape" || !$("words").value) return;
    e.preventDefault();
    cleared();
  });
  $("controls").addEventListener("input", () => {
    clearTimeout(wait);
    wait = setTimeout(again, 200);
  });
  $("shopper").addEventListener("change", () => (choose($("shopper").value), again()));
  $("fresh").addEventListener("click", () => (newShopper(), again()));
  $("product").addEventListener("submit", (e) => (e.preventDefault(), guarded(() => add(e.target))));
  $("key").addEventListener("submit", (e) => {
    e.preventDefault();
    useKey(new FormData(e.target).get("key"));
    $("key").hidden = true;
    guarded(begin);
  });
}

async function begin() {
  const shop = await call("GET", "v1/storefront/shop");
  $("shopper").replaceChildren(...shop.shoppers.map(({ user_id: id, engagements, likes }) =>
    new Option(`${id} (${engagements} things done${likes.length ? `; ${likes.join(", ")}` : ""})`, id)));
  $("category").replaceChildren(new Option("All", ""), ...shop.categories.map((name) => new Option(name, name)));
  $("categories").replaceChildren(...shop.categories.map((name) => make("option", "", name)));
  $("adding").hidden = !shop.writes;
  if (shop.price) $("price").placeholder = `any, to ${Math.ceil(shop.price[1])}`;
  newShopper();
  await load();
}

listen();
guarded(begin);
