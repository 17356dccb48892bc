// The operator's page: service metrics, nightly runs, releases, promotion and rollback.

import { call, useKey } from "./api.js";
import { guardedBy, notice } from "./guarded.js";
import { make } from "./make.js";
import { plot } from "./plot.js";

const EVERY_MS = 5000, SOON_MS = 700;
const $ = (id) => document.getElementById(id);
const guarded = guardedBy($("board"));
let board = null, drawn = "", timer;

const day = (seconds) => new Date(seconds * 1000).toISOString().slice(0, 16).replace("T", " ");
const figure = (value, digits = 4) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const signed = (value) => (value === null ? "–" : `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(4)}`);
const percent = (value) => `${(100 * value).toFixed(value > 0 && value < 0.1 ? 1 : 0)}%`;
const ms = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
const seconds = (value) => `${value < 10 ? value.toFixed(2) : Math.round(value)} s`;

/** A duration in seconds as text, in the largest unit of which there are at least two. */
function age(s) {
  for (const [unit, name] of [[86400, "days"], [3600, "hours"], [60, "minutes"]]) {
    if (s >= 2 * unit) return `${Math.floor(s / unit).toLocaleString("en")} ${name}`;
  }
  return `${Math.max(0, Math.round(s))} seconds`;
}

async function refresh() {
  board = await call("GET", "v1/operator/board");
  $("key").hidden = true;
  $("board").hidden = false;
  const same = JSON.stringify({ ...board, at: 0 });
  state();
  if (same !== drawn) {
    drawn = same;
    nights();
    releases();
    audit();
  }
  const { minutes } = await call("GET", `v1/operator/timeline?hours=${$("hours").value}`).catch((error) => {
    if (error.status !== 503) throw error;
    return { minutes: [] };  // the banner already reports that Redis is unavailable
  });
  service(minutes);
  if (!board.degraded) notice("");
}

function state() {
  const live = board.releases.find((r) => r.release === board.live);
  const parts = [board.live ? `Live: ${board.live}${live?.state === "pinned" ? " (pinned)" : ""}` : "No release is live"];
  if (live?.cut_off) parts.push(`data up to ${day(live.cut_off).slice(0, 10)} (${age(board.at - live.cut_off)} old)`);
  if (board.here && board.here !== board.live && board.live) parts.push(`this worker still serves ${board.here}`);
  $("now").textContent = `${parts.join(" · ")}.`;
  if (board.degraded) notice(`Redis is unavailable: rankings do not use shoppers' histories, and the live release cannot be changed. ${board.degraded}`);
  const change = board.change, running = change?.state === "running";
  $("change").hidden = !change || (change.state === "done" && board.at - change.at > 60);
  if (change) {
    const result = { running: "is in progress", done: "is done", failed: `failed: ${change.error}` }[change.state];
    const action = change.action === "promote" ? "promotion of" : `${change.action} to`;
    $("change").textContent = `The ${action} ${change.release} by ${change.by} ${result}.`;
  }
  $("rollback").disabled = running || Boolean(board.degraded) || !board.releases.some((r) => r.state === "previous");
}

function service(minutes) {
  $("empty").hidden = minutes.length > 0;
  $("service").hidden = !minutes.length;
  const line = (name, value) => ({ name, points: minutes.map((m) => ({ at: m.at, value: value(m) })) });
  const swaps = board.audit.filter((a) => ["publish", "promote", "rollback", "pin"].includes(a.action))
    .map((a) => ({ at: Date.parse(a.at) / 1000, name: `${a.action} ${a.release}` }));
  const opened = [...$("service").querySelectorAll("details")].map((d) => d.open);
  $("service").replaceChildren(
    plot({ title: "Latency of rankings", unit: "milliseconds", format: ms, marks: swaps, lines: [line("p99", (m) => m.p99_ms), line("median", (m) => m.p50_ms)] }),
    plot({ title: "Rankings and events", unit: "per second", format: (v) => v.toFixed(v < 10 ? 1 : 0), marks: swaps,
      lines: [line("rankings", (m) => m.rankings / m.span_s), line("events", (m) => m.events / m.span_s)] }),
    plot({ title: "Degraded and failed rankings", unit: "share of rankings", format: percent, marks: swaps,
      lines: [line("degraded", (m) => m.degraded), line("failed", (m) => m.failed)] }),
    plot({ title: "Freshness", unit: "seconds until an event updates item state, p99", format: seconds, marks: swaps, lines: [line("freshness", (m) => m.freshness_s)] }),
  );
  $("service").querySelectorAll("details").forEach((d, k) => (d.open = opened[k] ?? false));
}

function nights() {
  const judged = board.nights.map((n) => ({ ...n, when: Date.parse(n.at) / 1000 }));
  const of = (system) => ({ name: system.replaceAll("_", " "), points: judged.map((n) => {
    const [value, low, high] = n.quality[system] ?? [null];
    return { at: n.when, value: value ?? null, low, high };
  }) });
  const systems = ["ranker", "item_click_rate", "popularity"].filter((s) => judged.some((n) => n.quality[s]));
  const highest = (n) => Math.max(...Object.values(n.drift).filter((v) => v !== null));
  $("nights").replaceChildren(
    plot({ title: "Quality of each nightly release", unit: "ndcg@10 on its own test lists", format: (v) => v.toFixed(3), from: "data", lines: systems.map(of) }),
    plot({ title: "Compared with the release that was live", unit: "difference in ndcg@10, same test lists", format: signed, lines: [{ name: "difference",
      points: judged.map(({ when, difference }) => ({ at: when, value: difference?.[0] ?? null, low: difference?.[1], high: difference?.[2] })) }] }),
    plot({ title: "Feature drift", unit: "PSI, test lists compared with training lists", format: (v) => v.toFixed(2),
      lines: [{ name: "maximum", points: judged.map((n) => ({ at: n.when, value: Number.isFinite(highest(n)) ? highest(n) : null })) },
        { name: "median", points: judged.map((n) => ({ at: n.when, value: n.drift_median })) }] }),
  );
}

const VERDICTS = { promote: "passed it", ask: "asks for approval", keep: "kept the live release" };

function releases() {
  const opened = new Set([...$("releases").querySelectorAll("details[open]")].map((d) => d.dataset.release));
  $("releases").replaceChildren(...board.releases.map((r) => card(r, opened.has(r.release))));
  if (!board.releases.length) $("releases").append(make("p", "quiet", "No releases yet. Run shelfwise nightly."));
}

function card(r, open) {
  const article = make("article", "release");
  const head = make("h3", "", r.release);
  if (r.state) head.append(" ", make("span", `state ${r.state}`, { live: "live", pinned: "live, pinned", previous: "previous" }[r.state]));
  article.append(head);
  if (r.problem) {
    article.append(make("p", "problem", r.problem));
    return article;
  }
  article.append(make("p", "quiet", `data up to ${day(r.cut_off)} · ${r.items.toLocaleString("en")} items · ${r.megabytes.toFixed(1)} MB`));
  const [value, low, high] = r.night?.quality.ranker ?? [r.ndcg];
  article.append(make("p", "quality", `ndcg@10 ${figure(value)}${low !== undefined && low !== null ? ` [${figure(low)}, ${figure(high)}]` : ""}`));
  if (r.night?.difference) {
    const [d, a, b] = r.night.difference;
    article.append(make("p", "", `${signed(d)} [${signed(a)}, ${signed(b)}] compared with ${r.night.live} on the same test lists`));
  }
  article.append(judgement(r, open));
  const live = r.state === "live" || r.state === "pinned";
  if (!live) {
    const button = make("button", "", "Promote");
    button.setAttribute("aria-label", `Promote ${r.release}`);
    button.disabled = Boolean(board.degraded) || board.change?.state === "running";
    button.addEventListener("click", () => confirmChange("promote", r.release));
    article.append(button);
  }
  return article;
}

function judgement(r, open) {
  if (!r.night) return make("p", "quiet", "Not evaluated by the gate.");
  const details = make("details"), list = make("ul", "reasons");
  details.dataset.release = r.release;
  details.open = open;
  details.append(make("summary", "", `The gate ${VERDICTS[r.night.verdict] ?? r.night.verdict}`));
  for (const [rule, verdict, message] of r.night.reasons) {
    const item = make("li", verdict);
    item.append(make("b", "", rule), " ", make("span", "verdict", { promote: "passed", ask: "needs approval", keep: "failed" }[verdict] ?? verdict), ` ${message}`);
    list.append(item);
  }
  details.append(list);
  return details;
}

function audit() {
  $("audit").replaceChildren(...board.audit.map((line) => {
    const row = make("tr");
    row.append(...[String(line.at ?? "").slice(0, 16).replace("T", " "), line.action, line.release, line.by ?? "", line.reason ?? ""].map((text) => make("td", "", String(text))));
    return row;
  }));
}

/** Ask for confirmation and a reason, saying what the change would do. */
function confirmChange(action, release) {
  const live = board.live, target = board.releases.find((r) => r.release === release);
  $("sure-title").textContent = action === "rollback" ? "Roll back?" : `Promote ${release}?`;
  const pinned = board.releases.find((r) => r.release === live)?.state === "pinned" ? " The live release is pinned; this removes the pin." : "";
  const verdict = target?.night && target.night.verdict !== "promote" ? ` The gate did not pass it: it ${VERDICTS[target.night.verdict]}.` : "";
  const stays = action === "rollback" ? ` Nightly runs will not publish ${live} again.` : "";
  $("sure-what").textContent = `All workers switch from ${live} to ${release} within seconds. No request fails.${verdict}${pinned}${stays}`;
  $("sure-do").textContent = action === "rollback" ? "Roll back" : "Promote";
  const dialog = $("sure"), form = dialog.querySelector("form");
  form.reset();
  dialog.returnValue = "no";
  dialog.onclose = () => {
    const reason = new FormData(form).get("reason").trim();
    if (dialog.returnValue !== "yes" || !reason) return;
    guarded(async () => {
      await call("POST", `v1/operator/${action}`, { live, reason, release });
      await poll(SOON_MS);
    });
  };
  dialog.showModal();
}

/** Refresh, and schedule the next refresh: sooner while a change is in progress. */
async function poll(after) {
  clearTimeout(timer);
  await guarded(refresh);
  const wait = board?.change?.state === "running" || (board?.here && board.here !== board.live) ? SOON_MS : EVERY_MS;
  clearTimeout(timer);
  if (document.visibilityState === "visible") timer = setTimeout(poll, after ?? wait);
}

$("rollback").addEventListener("click", () => {
  const before = board.releases.find((r) => r.state === "previous");
  if (before) confirmChange("rollback", before.release);
});
$("hours").addEventListener("change", () => poll());
$("key").addEventListener("submit", (e) => {
  e.preventDefault();
  useKey(new FormData(e.target).get("key"));
  e.target.reset();
  poll();
});
document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && poll());
poll();
