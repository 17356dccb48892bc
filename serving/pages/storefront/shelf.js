// The storefront page: the shopper, the request for a list, and what the buttons do.

import { ApiError, call, newId, useKey } from "./api.js";
import { Card, useCurrency } from "./card.js";
import { make } from "./make.js";
import { Shelf } from "./movement.js";
import { Cart, here, showProduct } from "./views.js";

const SHOWN = 24, MANY = 200, GUEST = "guest-";
const $ = (id) => document.getElementById(id);
const own = new Shelf($("own")), popular = new Shelf($("popular"));
const products = new Map();
const pins = [], added = [];
const cart = new Cart(products, { bought: (ids) => guarded(() => buy(ids)), changed: () => guarded(() => load()) });
/** Of each product that was chosen from a list: the request ID of the list, and its position in it. */
const chosen = new Map();
let shopper, turn = 0, timer, total, shown = null, placements = new Set();

/** Announce a message to screen readers. */
function announce(message) {
  $("said").textContent = message;
}

function notice(message) {
  $("notice").textContent = message;
  $("notice").hidden = !message;
}

function ordinal(n) {
  const end = { one: "st", two: "nd", few: "rd", other: "th" };
  return `${n}${end[new Intl.PluralRules("en", { type: "ordinal" }).select(n)]}`;
}

const title = (id) => products.get(id)?.title || id;

/** Do some work; show an error on the page, and the key form if a key is needed. */
async function guarded(work) {
  try {
    await work();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
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

/** The search query, empty if there is none, without control characters, which a request may not contain. */
function typed() {
  return $("words").value.replace(/[\s\u0000-\u001f\u007f]+/g, " ").trim();
}

/** The parts of a request for the page that is shown: its placement, if one of that name is configured, and the products on it. */
function spot(query) {
  const view = here(), name = query ? "search" : view.name;
  const items = name === "product" ? [view.item] : name === "cart" ? cart.ids() : [];
  return {
    ...(placements.has(name) && (name !== "cart" || items.length) ? { placement: name } : {}),
    ...(query ? { query } : {}),
    ...(items.length ? { items } : {}),
  };
}

/** Recommendations for the shopper. query: empty if there is none. */
async function personal(query) {
  const asked = spot(query);  // a placement has a length of its own
  const request = { user_id: shopper, ...(asked.placement ? {} : { limit: SHOWN }), explain: true, rules: rules(), ...asked };
  const answer = await call("POST", "v1/recommend", request);
  const ids = answer.items.map((item) => item.item_id);
  if (added.every((id) => ids.includes(id))) return answer;
  // Products just added are shown even if they do not rank high enough, with their position among many candidates:
  // scores depend on the other candidates, so their position among the few shown would be different.
  const many = await call("POST", "v1/recommend", { ...request, limit: MANY, explain: false });
  const candidates = [...new Set([...many.items.map((item) => item.item_id), ...added])];
  const all = await call("POST", "v1/rank", { ...request, candidates, limit: candidates.length });
  const far = new Map(all.items.map((item, k) => [item.item_id, k + 1]).filter(([id, k]) => k > SHOWN && added.includes(id)));
  return { ...all, far, of: all.items.length, items: all.items.filter((item, k) => k < SHOWN || far.has(item.item_id)) };
}

/** Load the details of products that are not loaded yet. */
async function loadProducts(ids) {
  const unknown = ids.filter((id) => !products.has(id));
  if (!unknown.length) return;
  for (const product of await call("POST", "v1/storefront/products", { candidates: unknown })) products.set(product.item_id, product);
  for (const id of unknown) {
    if (!products.has(id)) products.set(id, { item_id: id, title: id, category: null, brand: null, price: null });
  }
}

/** Request a list and show it. did: the shopper's action, announced with what moved; undefined for a different list. */
async function load(did) {
  const ownTurn = ++turn, started = performance.now(), query = typed();
  $("clear").hidden = !$("words").value;
  clearTimeout(timer);
  const [answer, best] = await Promise.all([personal(query), $("compare").checked ? bestSellers(query) : null]);
  const ids = [...answer.items, ...(best?.items ?? [])].map((item) => item.item_id);
  await loadProducts([...ids, ...cart.ids(), ...(here().item ? [here().item] : [])]);
  if (ownTurn !== turn) return;  // a newer request has been made
  notice("");
  show(answer, best, did, query);
  state(answer, performance.now() - started);
  $("own").setAttribute("aria-busy", "false");
  if (!answer.degraded) impressions(answer, query);
}

/** The list of a shop without a ranker: the most popular items, among those whose title contains the query's words. */
async function bestSellers(query) {
  const request = { limit: SHOWN, rules: rules() };
  if (query) request.candidates = await call("GET", `v1/storefront/search?words=${encodeURIComponent(query)}`);
  return call("POST", "v1/storefront/popular", request);
}

/** Whether any item shown contains a word of the query, allowing for typos. */
const matchesWords = (answer) => answer.items.some((item) => item.sources?.includes("query_words"));

function show(answer, best, did, query) {
  const before = did ? own.places() : new Map();
  const cards = new Map(answer.items.map((item) => {
    const card = own.cards.get(item.item_id) ?? new Card(products.get(item.item_id), act);
    card.explain(item, pins.includes(item.item_id));
    return [item.item_id, card];
  }));
  shown = answer.request_id;
  showPage(query);
  own.show(cards, before, answer.far);
  total = answer.of ?? cards.size;
  $("empty").hidden = cards.size > 0;
  $("other").hidden = !best;
  $("shelves").classList.toggle("two", Boolean(best));
  if (best) {
    const plain = best.items.map(({ item_id: id }) => [id, popular.cards.get(id) ?? new Card(products.get(id), act, true)]);
    popular.show(new Map(plain), did ? popular.places() : new Map());
  }
  const noMatch = query && !matchesWords(answer) ? `No product contains a word of “${query}”. Showing the closest products.` : "";
  $("searched").hidden = !query;
  $("searched").textContent = noMatch || `Products that match “${query}” come first, ranked for you.`;
  const first = cards.size ? `, first ${title(cards.keys().next().value)}` : "";
  if (did) announce(`${did} ${moves(before, own.places())}`);
  else if (query) announce(noMatch || `${cards.size} products for “${query}”${first}.`);
  else announce(`${cards.size} products for ${$("shopper").selectedOptions[0]?.text ?? "you"}.`);
}

/** Headings of the lists of placements; other lists are for the shopper alone. */
const HEADINGS = { product: "Goes with this", cart: "Goes with your cart" };

/** Show what is on the page besides the list: the product, or the cart. */
function showPage(query) {
  const view = here();
  $("own-title").textContent = query ? "Results" : HEADINGS[spot(query).placement] ?? "For you";
  $("product-page").hidden = view.name !== "product";
  if (view.name === "product") showProduct($("product-page"), products.get(view.item), (action) => press(action, view.item));
  $("cart-page").hidden = view.name !== "cart";
  $("to-cart").textContent = cart.size ? `Cart (${cart.size})` : "Cart";
  for (const name of ["home", "cart"]) {
    if (view.name === name) $(`to-${name}`).setAttribute("aria-current", "page");
    else $(`to-${name}`).removeAttribute("aria-current");
  }
  cart.show($("lines"), $("sum"), $("buy"));
}

/** The largest moves between two orders, as text. */
function moves(before, now) {
  const up = [...now].filter(([id, place]) => before.get(id) > place).sort(([a, p], [b, q]) => before.get(b) - q - (before.get(a) - p));
  const added = [...now.keys()].filter((id) => !before.has(id));
  const parts = up.slice(0, 2).map(([id, place]) => `${title(id)} moved up ${before.get(id) - place} to ${ordinal(place)}`);
  if (added.length) parts.push(`${added.length} new, the first is ${title(added[0])}, ${ordinal(now.get(added[0]))}`);
  return parts.length ? `${parts.join("; ")}.` : "The order is unchanged.";
}

function state(answer, waited) {
  $("release").textContent = answer.release;
  $("took").textContent = `${answer.took_ms.toFixed(1)} ms`;
  $("waited").textContent = `${Math.round(waited)} ms`;
  $("state").textContent = answer.degraded ? "unavailable" : "used";
  $("banner").hidden = !answer.degraded;
  $("banner").textContent = answer.degraded
    ? "Degraded: Redis is unavailable. The list is ranked without this shopper's history, and no events are stored."
    : "";
  if (answer.degraded) timer = setTimeout(() => guarded(() => load()), 3000);
}

/** An event with a product. from: the list that showed it, and its position there, if it is known. */
function event(kind, item_id, from) {
  return { event: kind, user_id: shopper, item_id, event_id: newId(), ...from };
}

/** Send impressions, which also show what was skipped. A real shop would send each one as it scrolls into view. */
function impressions(answer, query) {
  const events = answer.items.map((item, k) => ({ ...event("impression", item.item_id, { request_id: shown, position: k }), ...(query ? { query } : {}) }));
  if (events.length) call("POST", "v1/events", events).catch(() => {});
}

const DONE = { click: "Viewed", cart: "Added to cart:", purchase: "Bought" };

/** Handle a card's button. The View button sends the event `click`: a product chosen from a list. */
async function act(action, card) {
  const id = card.product.item_id;
  if (action === "pin") {
    const at = pins.indexOf(id);
    if (at < 0) pins.push(id);
    else pins.splice(at, 1);
    return guarded(() => load(`${at < 0 ? "Pinned" : "Unpinned"} ${title(id)}.`));
  }
  chosen.set(id, { request_id: shown, position: own.places().get(id) - 1 });
  if (action !== "open") return press(action, id);
  return send([event("click", id, chosen.get(id))]);  // the link of the title opens the page
}

/** Send an action with a product, and show the new list. */
async function press(action, id) {
  await guarded(async () => {
    await send([event(action, id, chosen.get(id))]);
    if (action === "cart") cart.add(id);
    if (action === "purchase") cart.buy([id]);
    $("done").textContent = cart.bought ? `${cart.bought} bought` : "";
    return load(`${DONE[action]} ${title(id)}.`);
  });
}

/** Buy all products of the cart. */
async function buy(ids) {
  await send(ids.map((id) => event("purchase", id, chosen.get(id))));
  cart.buy(ids);
  $("done").textContent = `${cart.bought} bought`;
  await load(`Bought ${ids.length} product${ids.length === 1 ? "" : "s"}.`);
}

async function send(events) {
  try {
    await call("POST", "v1/events", events);
  } catch (error) {
    if (error.status !== 503) throw error;
    await load();  // the list still works, and shows that it is degraded
    throw error;
  }
}

function choose(id) {
  shopper = id;
  cart.clear();
  chosen.clear();
  $("done").textContent = "";
  $("shopper").value = id;
  $("login").hidden = !id.startsWith(GUEST) || $("account").options.length === 0;
  openLogin(false);
}

function openLogin(open) {
  $("known").hidden = !open;
  $("login").setAttribute("aria-expanded", String(open));
  if (open) $("account").focus();
}

/** Log the guest in: their events and cart become those of the chosen shopper. */
async function login() {
  const guest = shopper, id = $("account").value, kept = cart.ids();
  const { moved } = await call("POST", `v1/users/${encodeURIComponent(id)}/merge`, { from: guest });
  choose(id);
  for (const item of kept) cart.add(item);
  $("shopper").querySelector(`option[value="${CSS.escape(guest)}"]`)?.remove();
  await load(`Logged in as ${id}; ${moved} event${moved === 1 ? "" : "s"} of the guest kept.`);
}

function newShopper() {
  const id = `${GUEST}${newId().slice(0, 8)}`;
  $("shopper").prepend(new Option(`new shopper ${id.slice(GUEST.length, GUEST.length + 4)}`, id));
  choose(id);
}

/** Write a product, wait until its text is encoded and the service can rank it, and show it. */
async function add(form) {
  const given = Object.fromEntries([...new FormData(form)].filter(([, value]) => value !== ""));
  const item_id = `new-${newId().slice(0, 10)}`, started = performance.now();
  if (given.price) given.price = Number(given.price);
  await call("PUT", "v1/items", { item_id, ...given });
  const status = (message) => ($("added").textContent = message);
  status("Saved. Encoding its text …");
  let state = {};
  while (!(state.live && state.vector) && performance.now() - started < 30000) {
    await new Promise((done) => setTimeout(done, 300));
    state = await call("GET", `v1/items/${item_id}`);
  }
  added.push(item_id);
  await load(`Added ${given.title}.`);
  const place = own.places().get(item_id), seconds = ((performance.now() - started) / 1000).toFixed(1);
  const basis = state.vector ? "ranked by its text" : "ranked without its text, because no embedding worker has encoded it";
  status(place ? `${ordinal(place)} of ${total} after ${seconds} s, ${basis}.` : "Saved, but the current filters hide it.");
  own.cards.get(item_id)?.element.classList.add("just");
  form.reset();
}

function listen() {
  let wait;
  const reload = () => guarded(() => load());
  // The results of a search are a page of their own.
  const search = () => {
    if (typed() && here().name !== "home") history.pushState(null, "", "#/");
    reload();
  };
  const clear = () => {
    clearTimeout(wait);
    $("words").value = "";
    $("words").focus();
    reload();
  };
  $("controls").addEventListener("submit", (e) => (e.preventDefault(), clearTimeout(wait), search()));
  $("clear").addEventListener("click", clear);
  $("words").addEventListener("keydown", (e) => {
    if (e.isComposing || e.key !== "Escape" || !$("words").value) return;
    e.preventDefault();
    clear();
  });
  const soon = () => {
    clearTimeout(wait);
    wait = setTimeout(search, 200);
  };
  // An input method, as for Chinese, first shows the letters that are typed for the characters: they are no query.
  $("controls").addEventListener("input", (e) => e.isComposing || soon());
  $("words").addEventListener("compositionend", soon);
  $("shopper").addEventListener("change", () => (choose($("shopper").value), reload()));
  $("fresh").addEventListener("click", () => (newShopper(), reload()));
  $("login").addEventListener("click", () => openLogin($("known").hidden));
  $("known").addEventListener("submit", (e) => (e.preventDefault(), guarded(login)));
  window.addEventListener("hashchange", () => {
    if (here().name !== "home") $("words").value = "";
    scrollTo(0, 0);
    reload();
  });
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
  const known = ({ user_id: id, engagements, likes }) =>
    new Option(`${id} (${engagements} interactions${likes.length ? `; ${likes.join(", ")}` : ""})`, id);
  $("shopper").replaceChildren(...shop.shoppers.map(known));
  $("account").replaceChildren(...shop.shoppers.map(known));
  placements = new Set(shop.placements);
  if (shop.currency) useCurrency(shop.currency);
  $("category").replaceChildren(new Option("All", ""), ...shop.categories.map((name) => new Option(name, name)));
  $("categories").replaceChildren(...shop.categories.map((name) => make("option", "", name)));
  $("adding").hidden = !shop.writes;
  if (shop.price) $("price").placeholder = `any, up to ${Math.ceil(shop.price[1])}`;
  newShopper();
  await load();
}

listen();
guarded(begin);
