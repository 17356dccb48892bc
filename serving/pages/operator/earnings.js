// The page of earnings: the incremental estimates of experiments with a holdout, and beside them the last-touch tables.

import { call, useKey } from "./api.js";
import { guardedBy, notice } from "./guarded.js";
import { make } from "./make.js";
import { plot } from "./plot.js";

const LINES = 3;  // The colours of a plot.
const $ = (id) => document.getElementById(id);
const guarded = guardedBy($("board"));
let tables = null;

const count = (value) => value.toLocaleString("en");
const at = (day) => Date.parse(`${day}T00:00Z`) / 1000;
const plural = (value, one) => `${count(value)} ${one}${value === 1 ? "" : "s"}`;

/** An amount in the shop's currency, without the cents of large ones; a dash if it is unknown. */
function money(value, sign = false) {
  if (value === null || value === undefined) return "–";
  const digits = Math.abs(value) >= 1000 ? 0 : 2;
  const text = Math.abs(value).toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  const before = value < 0 ? "−" : sign && value > 0 ? "+" : "";
  return `${before}${text}${tables.currency ? ` ${tables.currency}` : ""}`;
}

/** An amount in few letters, for an axis. */
const short = (value) => value.toLocaleString("en", { notation: "compact", maximumFractionDigits: 1 }).replace("-", "−");

/** A duration in seconds in words. */
function span(seconds) {
  for (const [unit, name] of [[86400, "day"], [3600, "hour"], [60, "minute"]]) {
    if (seconds % unit === 0) return plural(seconds / unit, name);
  }
  return plural(seconds, "second");
}

async function refresh() {
  tables = await call("GET", "../v1/operator/earnings");
  $("key").hidden = true;
  $("board").hidden = false;
  $("now").textContent = `From ${tables.first_day} to ${tables.last_day}, with data up to ${tables.log_end.slice(0, 16).replace("T", " ")}.`;
  incremental();
  lastTouch();
  notes();
  notice("");
}

const inCurrency = () => (tables.currency ? `, ${tables.currency}` : "");

function incremental() {
  const found = tables.experiments;
  $("no-holdout").hidden = found.length > 0;
  $("not-incremental").replaceChildren(...tables.not_incremental.map((one) => make("p", "quiet",
    `${one.experiment} has no incremental figure: ${one.reason}. Its arms are compared by shelfwise experiments report.`)));
  $("incremental").replaceChildren(...found.map((experiment) => {
    const article = make("article", "experiment");
    article.append(make("h3", "", experiment.experiment));
    const where = experiment.placements.map((p) => p || "lists without a placement").join(", ");
    article.append(make("p", "quiet", `On ${where}. Holdout: ${experiment.holdout}, ${plural(experiment.holdout_users, "user")}.`));
    if (experiment.sample_ratio.alarm) {
      article.append(make("p", "problem", "The arms do not have the numbers of users that their shares say (sample-ratio alarm). Users were lost or counted twice in one arm: do not use these figures before the cause is found."));
    }
    if (experiment.in_two_arms) {
      article.append(make("p", "quiet", `${plural(experiment.in_two_arms, "user")} saw lists of more than one arm, as when guests log in. They are left out.`));
    }
    const estimates = experiment.treated.flatMap((t) => Object.entries(t.outcomes).map(([outcome, days]) => estimate(t, outcome, days)));
    article.append(make("div", "estimates", null, ...estimates));
    return article;
  }));
}

function estimate(treated, outcome, days) {
  const box = make("div", "estimate"), last = days.at(-1);
  box.append(make("h4", "", `${treated.arm}: incremental ${outcome}`));
  if (!last || last.value === null || last.low === null) {
    box.append(make("p", "quiet", "Not known yet: each arm needs purchases of at least two users."));
    return box;
  }
  box.append(make("p", "headline", money(last.value, true)), make("p", "range", `${money(last.low, true)} to ${money(last.high, true)}, with 95% confidence`));
  const clear = last.low > 0 ? "More was bought because of these lists." : last.high < 0 ? "Less was bought because of these lists." : "The interval includes zero: no clear effect yet.";
  box.append(make("p", "", clear));
  box.append(make("p", "quiet", `${count(last.users)} treated users × ${money(last.per_user, true)} per user compared with the holdout, where it was ${money(last.of_holdout)}. The interval stays valid if you look every day; for a single look, decided in advance, it is ${money(last.fixed_low, true)} to ${money(last.fixed_high, true)}.`));
  box.append(plot({ title: "So far, by day", unit: `incremental ${outcome} since the first list, with its interval${inCurrency()}`, format: short,
    lines: [{ name: treated.arm, points: days.filter((d) => d.low !== null).map((d) => ({ at: at(d.day), value: d.value, low: d.low, high: d.high })) }] }));
  return box;
}

const NAMES = { placement: "Placement", release: "Release", experiment: "Experiment", arm: "Arm" };
const FIGURES = { lists: "Lists", users: "Users", clicks: "Clicks", carts: "Carts", purchases: "Purchases", returns: "Returns", revenue: "Revenue", margin: "Margin" };
const MONEY = ["revenue", "margin"];

function lastTouch() {
  const all = tables.all[0]?.total, shop = tables.shop.total;
  const share = all?.revenue && shop.revenue > 0 ? ` That is ${(100 * all.revenue / shop.revenue).toFixed(0)}% of the revenue of all purchases, ${money(shop.revenue)}.` : "";
  $("touch-about").textContent = `A click, cart or purchase is credited to the list it names, else to the last list that showed the item to the user within ${span(tables.attribution_s)}. It counts on the day of the list. Users are counted once in each row, so their numbers do not add up. ${all ? `Lists are credited with ${money(all.revenue)}.` : "There are no lists in this period."}${share}`;
  const known = tables.placements.filter((p) => p.total.revenue !== null).sort((a, b) => b.total.revenue - a.total.revenue).slice(0, LINES);
  const marks = tables.complete_to && tables.complete_to < tables.last_day ? [{ at: at(tables.complete_to) + 86400, name: "not complete from here on" }] : [];
  const lines = (figure) => known.map((p) => ({ name: p.placement ?? "no placement", points: p.days.map((d) => ({ at: at(d.day), value: d[figure] })) }));
  const drawn = ["revenue", "margin", "purchases", "lists"].filter((figure) => all && figure in all);
  $("touch").replaceChildren(...drawn.map((figure) => plot({ title: FIGURES[figure], unit: `by day of the list, last touch${MONEY.includes(figure) ? inCurrency() : ""}`, format: short, marks, lines: lines(figure) })));
  fill("placements", tables.placements, ["placement"]);
  fill("releases", tables.releases, ["placement", "release"]);
  $("by-arm").hidden = !tables.arms.length;
  fill("arms", tables.arms, ["experiment", "arm", "placement", "release"]);
}

function fill(id, entries, keys) {
  const returned = tables.shop.total.returns > 0;
  const figures = Object.keys(FIGURES).filter((f) => f !== "returns" || returned).filter((f) => entries.length && f in entries[0].total);
  const head = make("tr");
  head.append(...[...keys.map((k) => NAMES[k]), ...figures.map((f) => FIGURES[f])].map((text, k) => {
    const cell = make("th", k >= keys.length ? "number" : "", text);
    cell.scope = "col";
    return cell;
  }));
  const rows = entries.map((entry) => {
    const row = make("tr");
    row.append(...keys.map((k) => make("td", "", entry[k] ?? "–")), ...figures.map((f) => {
      const value = entry.total[f];
      return make("td", "number", MONEY.includes(f) ? money(value) : count(value));
    }));
    return row;
  });
  $(id).replaceChildren(make("thead", "", null, head), make("tbody", "", null, ...rows));
}

const VALUES = {
  amount: "Revenue is the amount that each purchase event has (value), else the price of the catalogue.",
  quantity: "Revenue is the number of pieces of each purchase event (value), else one, at the price of the catalogue.",
  ignored: "Revenue is one piece of each purchase at today's price of the catalogue: earnings.value is not set. Set it if events have amounts or quantities.",
};

function notes() {
  const lines = [VALUES[tables.value], ...tables.notes];
  if (tables.margin) lines.push(`Margin comes from the attribute ${tables.margin} of the catalogue.`);
  const missing = tables.shop.total.without_revenue;
  if (missing) lines.push(`${plural(missing, "purchase")} of the shop without amount or price: they are counted, but not in the revenue.`);
  if (tables.shop.total.without_margin) lines.push(`${plural(tables.shop.total.without_margin, "purchase")} of the shop without a known margin: they are not in the margin.`);
  lines.push(tables.complete_to ? `Days after ${tables.complete_to} are not complete: their lists can still be credited with purchases.` : "No day is complete yet: all lists can still be credited with purchases.");
  $("notes").replaceChildren(...lines.map((text) => make("li", "", text)));
}

$("key").addEventListener("submit", (e) => {
  e.preventDefault();
  useKey(new FormData(e.target).get("key"));
  e.target.reset();
  guarded(refresh);
});
guarded(refresh);
