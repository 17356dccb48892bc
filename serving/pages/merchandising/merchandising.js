// The page of merchandisers: the list of a placement for a shopper, its rules with a preview, and their history.

import { ApiError, call, useKey } from "./api.js";
import { $, button, choices, when } from "./dom.js";
import { Editor } from "./editor.js";
import { guardedBy, notice } from "./guarded.js";
import { show } from "./list.js";
import { make } from "./make.js";
import { describe } from "./rules.js";

const API = "v1/merchandising", EVERY_MS = 5000, SOON_MS = 250, HISTORY = 50;
const guarded = guardedBy($("desk"));
let options = null, state = null, asked = 0, drawn = "", timers = {};

const editor = new Editor({ changed: () => soon("preview", preview), save, find: (words) => soon("find", () => find(words)) });
const title = (itemId) => editor.titles.get(itemId) ?? itemId;
const placement = () => $("placement").value || null;

function soon(name, work) {
  clearTimeout(timers[name]);
  timers[name] = setTimeout(() => guarded(work), SOON_MS);
}

/** Read everything, and draw what has changed. */
async function refresh() {
  if (!options) {
    options = await call("GET", `${API}/options`);
    choices($("placement"), [["", "lists without a placement"], ...options.placements.map((p) => [p.name, p.name])]);
    if (options.placements.length) $("placement").value = options.placements[0].name;
    $("shoppers").replaceChildren(...options.shoppers.map((s) => {
      const option = make("option", "", `${s.engagements} interactions${s.likes.length ? `; ${s.likes.join(", ")}` : ""}`);
      option.value = s.user_id;
      return option;
    }));
    editor.offer(options);
    $("new").hidden = !options.may_write;
  }
  state = await call("GET", API);
  $("key").hidden = true;
  $("desk").hidden = false;
  notice(state.problem ? `${state.problem}.` : "");
  $("now").textContent = `Version ${state.version} of the rules`;
  const same = JSON.stringify([state.version, state.rules]);
  if (same === drawn) return;
  drawn = same;
  rules();
  await Promise.all([preview(), history()]);
}

async function preview() {
  const number = ++asked, draft = editor.draft, rules = draft && editor.rules();
  const request = { placement: placement(), user_id: $("shopper").value.trim() || null, query: $("query").value.trim() || null };
  const seeds = $("items").value.split(",").map((id) => id.trim()).filter(Boolean);
  if (seeds.length) request.items = seeds;
  const body = { request };
  if (rules) body.draft = { id: draft.isNew ? "" : draft.id, rules, placement: draft.placement };
  let answer;
  try {
    answer = await call("POST", `${API}/preview`, body);
  } catch (error) {
    if (number !== asked || error.status !== 422) throw error;
    if (rules) return editor.problem(error.message);
    $("list").replaceChildren();
    $("about").textContent = error.message;
    return undefined;
  }
  if (number !== asked) return undefined;  // a newer one is under way
  if (draft) editor.problem("");
  const list = answer.draft ?? answer.now, items = list.items;
  for (const item of [...answer.now.items, ...items, ...answer.gone]) editor.titles.set(item.item_id, item.title);
  const pins = new Set(draft?.form.kind === "pin" ? draft.form.pins.map((p) => p.item_id) : []);
  show($("list"), items, { compared: answer.draft !== null, own: draft?.id, pins, act: options.may_write ? { pin, unpin: (item) => editor.unpin(item.item_id) } : null });
  $("list-title").textContent = answer.draft ? "The list with this rule" : "The list";
  $("about").textContent = said(answer, items);
  $("gone").hidden = !answer.gone.length;
  $("gone").textContent = `Not in the list any more: ${answer.gone.map((p) => p.title).join(", ")}.`;
  if (editor.draft) editor.fillPins();
  redescribe();
  return undefined;
}

function said(answer, items) {
  const parts = [items.length === 1 ? "1 product" : `${items.length} products`];
  if (answer.draft) {
    const moved = items.filter((item, place) => item.was !== place).length;
    parts.push(moved ? `${moved} moved or new` : "nothing changes", "not saved yet");
  }
  if (answer.degraded) parts.push("without the shopper's history, as Redis is unavailable");
  return `${parts.join("; ")}.`;
}

/** Pin a product of the list, in the rule that is being edited or in a new one. */
function pin(item, position) {
  if (editor.draft && editor.draft.form.kind !== "pin") {
    editor.problem("This rule does not pin products. Save or discard it first.");
    $("problem").scrollIntoView({ block: "nearest" });
    return;
  }
  if (!editor.draft) editor.open(state.version, null, placement());
  editor.pin(item, position);
}

async function find(words) {
  const { items } = words.trim() ? await call("GET", `${API}/items?words=${encodeURIComponent(words)}`) : { items: [] };
  if (editor.draft) editor.found(items.slice(0, 8));
}

/** Send a change. If someone else was faster, show what they changed, and keep the draft. */
async function change(method, path, body) {
  try {
    await call(method, `${API}/${path}`, body);
    return "";
  } catch (error) {
    if (!(error instanceof ApiError) || error.status === 401) throw error;
    if (error.status === 409) await refresh();
    return error.status === 409 ? "Someone else has changed the rules meanwhile. Look at the list and the history, then try again." : error.message;
  }
}

function save(draft) {
  return guarded(async () => {
    const rules = editor.rules();
    if (!rules) return editor.problem($("problem").textContent || "The rule is not complete.");
    const exists = draft.isNew && state.rules.some((r) => r.rule.id === draft.id);
    if (exists) return editor.problem(`There is a rule ${draft.id} already. Choose another name.`);
    const { version, placement: of, start, end, note } = draft;
    const problem = await change("PUT", `rules/${draft.id}`, { version, rules, placement: of, start, end, note });
    draft.version = state.version;
    if (problem) return editor.problem(problem);
    editor.close();
    $("list-title").focus();
    return refresh();
  });
}

function rules() {
  const own = (r) => !r.rule.placement || r.rule.placement === placement();
  const here = state.rules.filter(own), others = state.rules.filter((r) => !own(r));
  $("rules").replaceChildren(...here.map(card));
  if (!here.length) $("rules").append(make("li", "quiet", "No rules yet."));
  $("other-rules").replaceChildren(...others.map(card));
  $("others").hidden = !others.length;
}

/** Titles of pinned products are known once the list has been read. */
function redescribe() {
  for (const p of document.querySelectorAll("[data-rule]")) {
    const found = state.rules.find((r) => r.rule.id === p.dataset.rule);
    if (found) p.textContent = describe(found.rule.rules, title);
  }
}

function card({ rule, state: now, problem }) {
  const li = make("li", "rule"), head = make("h3", "", rule.id);
  head.append(" ", make("span", `state ${now.replace(" ", "-")}`, now));
  const what = make("p", "", describe(rule.rules, title));
  what.dataset.rule = rule.id;
  const span = [rule.start ? `from ${when(rule.start)}` : "", rule.end ? `until ${when(rule.end)}` : ""].filter(Boolean).join(" ");
  li.append(head, what, make("p", "quiet", [rule.placement ?? "all lists", span, rule.note, `${rule.by}, ${when(rule.at)}`].filter(Boolean).join(" · ")));
  if (problem) li.append(make("p", "problem", problem));
  if (!options.may_write) return li;
  const edit = () => {
    editor.open(state.version, rule);
    $("editor-title").focus();
  };
  const remove = () => confirm(`Delete ${rule.id}?`, `It does: ${describe(rule.rules, title)}. The history can restore it.`, "Delete", (note) =>
    change("DELETE", `rules/${rule.id}?version=${state.version}&note=${encodeURIComponent(note)}`));
  li.append(make("p", "buttons start", null, button("Edit", `Edit ${rule.id}`, edit), button("Delete", `Delete ${rule.id}`, remove)));
  return li;
}

function changeText({ action, before = [], after = [], to }) {
  const ids = [...new Set([...before, ...after].map((r) => r.id))].join(", ");
  if (action === "undo") return `restored version ${to}${ids ? ` (${ids})` : ""}`;
  if (action === "delete") return `deleted ${ids}`;
  return `${before.length ? "changed" : "added"} ${ids}${after.length ? `: ${describe(after[0].rules, title)}` : ""}`;
}

async function history() {
  const { changes } = await call("GET", `${API}/history?limit=${HISTORY}`).catch((error) => {
    if (error.status !== 503) throw error;
    return { changes: [] };  // the banner already reports that Redis is unavailable
  });
  $("history").replaceChildren(...changes.map((c, k) => {
    const row = make("tr"), to = k ? c.version : c.version - 1;
    row.append(...[String(c.version), when(c.at), c.by, changeText(c), c.note ?? ""].map((text) => make("td", "", text)));
    const cell = make("td");
    if (options.may_write) cell.append(button(k ? "Restore" : "Undo", k ? `Restore version ${to}` : `Undo version ${c.version}`, () => restore(to, k ? `Restore version ${to}?` : "Undo the last change?")));
    row.append(cell);
    return row;
  }));
  if (!changes.length) $("history").append(make("tr", "", null, make("td", "quiet", "No changes yet.")));
}

function restore(to, question) {
  confirm(question, `All rules become as they were in version ${to}, as a new version. The history keeps every version.`, "Restore", (note) =>
    change("POST", "undo", { version: state.version, to, note }));
}

/** Ask for confirmation and a note. act: returns what went wrong, empty if nothing did. */
function confirm(question, what, verb, act) {
  $("sure-title").textContent = question;
  $("sure-what").textContent = what;
  $("sure-do").textContent = verb;
  const dialog = $("sure"), form = dialog.querySelector("form");
  form.reset();
  dialog.returnValue = "no";
  dialog.onclose = () => {
    if (dialog.returnValue !== "yes") return;
    guarded(async () => {
      const problem = await act(new FormData(form).get("note").trim());
      await refresh();
      if (problem) notice(problem);
    });
  };
  dialog.showModal();
}

async function poll() {
  clearTimeout(timers.poll);
  await guarded(refresh);
  clearTimeout(timers.poll);
  if (document.visibilityState === "visible") timers.poll = setTimeout(poll, EVERY_MS);
}

$("new").addEventListener("click", () => {
  if (!editor.draft) editor.open(state.version, null, placement());
  $("editor-title").focus();
});
$("placement").addEventListener("change", () => {
  rules();
  soon("preview", preview);
});
for (const id of ["shopper", "query", "items"]) $(id).addEventListener("input", () => soon("preview", preview));
$("choice").addEventListener("submit", (e) => {
  e.preventDefault();
  guarded(preview);
});
$("key").addEventListener("submit", (e) => {
  e.preventDefault();
  useKey(new FormData(e.target).get("key"));
  e.target.reset();
  options = null;
  drawn = "";
  poll();
});
document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && poll());
poll();
