// The form of one rule. It holds the draft until it is saved or discarded.

import { $, button, choices, fromLocal, toLocal, zone } from "./dom.js";
import { make } from "./make.js";
import { comparisons, toForm, toRules } from "./rules.js";

const ANY = "";

export class Editor {
  /** changed: called when the preview may be another. save, find: called with the draft, and with words of a title. */
  constructor({ changed, save, find }) {
    Object.assign(this, { draft: null, changed, titles: new Map(), attributes: [] });
    for (const span of document.querySelectorAll(".zone")) span.textContent = `(${zone})`;
    for (const id of ["rule-id", "start", "end", "note", "by", "most", "json"]) $(id).addEventListener("input", () => this.read());
    for (const id of ["rule-placement", "comparison", "by", "most", "cap-attribute", "json"]) $(id).addEventListener("change", () => this.read(true));
    $("kind").addEventListener("change", () => {
      if ($("kind").value === "json" && !$("json").value) $("json").value = JSON.stringify(this.rules() ?? { boost: [] }, null, 1);
      this.read(true);
      this.fill();
    });
    $("attribute").addEventListener("change", () => {
      this.draft.form.values = [];
      this.read(true);
      this.fill();
    });
    $("comparison").addEventListener("change", () => this.fill());
    $("add-value").addEventListener("click", () => this.addValue());
    $("value").addEventListener("keydown", (e) => {
      if (e.key !== "Enter") return;
      e.preventDefault();
      this.addValue();
    });
    $("value").addEventListener("change", () => $("comparison").value !== "in" && this.addValue());
    $("words").addEventListener("input", () => find($("words").value));
    $("words").addEventListener("keydown", (e) => e.key === "Enter" && e.preventDefault());
    $("discard").addEventListener("click", () => this.close());
    $("editor").addEventListener("submit", (e) => {
      e.preventDefault();
      this.read();
      save(this.draft);
    });
  }

  /** options: of the API. */
  offer({ placements, attributes }) {
    this.attributes = [{ name: "item_id", kind: "text", values: [] }, ...attributes];
    choices($("rule-placement"), [[ANY, "all lists"], ...placements.map((p) => [p.name, p.name])]);
    choices($("attribute"), this.attributes.map((a) => [a.name, a.name === "item_id" ? "product ID" : a.name]));
    choices($("cap-attribute"), attributes.filter((a) => a.kind === "text").map((a) => [a.name, a.name]));
  }

  /** Begin with a rule of the API, or with a new one. version: of the rules that are shown. */
  open(version, rule, placement) {
    const form = rule ? toForm(rule.rules) : { ...toForm({ pin: [] }), attribute: "category" };
    this.draft = {
      version, form, id: rule?.id ?? "", isNew: !rule, placement: rule ? rule.placement ?? null : placement,
      start: rule?.start ?? null, end: rule?.end ?? null, note: rule?.note ?? "",
    };
    $("editing").hidden = $("unsaved").hidden = false;
    $("editor-title").textContent = rule ? `Rule ${rule.id}` : "New rule";
    this.fill();
    this.changed();
  }

  close() {
    this.draft = null;
    $("editing").hidden = $("unsaved").hidden = true;
    $("found").replaceChildren();
    $("words").value = "";
    this.problem("");
    this.changed();
  }

  problem(message) {
    $("problem").textContent = message;
    $("problem").hidden = !message;
  }

  /** The rules of the draft for the API; null if they are not complete. */
  rules() {
    try {
      return toRules(this.draft.form);
    } catch (error) {
      this.problem(`The rules are not valid JSON: ${error.message}`);
      return null;
    }
  }

  pin(item, position) {
    this.titles.set(item.item_id, item.title);
    const pins = this.draft.form.pins.filter((p) => p.item_id !== item.item_id && p.position !== position);
    this.draft.form.pins = [...pins, { item_id: item.item_id, position }].sort((a, b) => a.position - b.position);
    if (this.draft.isNew && !$("rule-id").value) this.draft.id = `pin-${item.item_id}`.replace(/[^A-Za-z0-9_-]+/g, "-").slice(0, 64);
    this.fill();
    this.changed();
  }

  unpin(itemId) {
    this.draft.form.pins = this.draft.form.pins.filter((p) => p.item_id !== itemId);
    this.fill();
    this.changed();
  }

  addValue() {
    const text = $("value").value.trim(), form = this.draft.form;
    if (!text) return;
    form.values = $("comparison").value === "in" ? [...new Set([...form.values, text])] : [text];
    $("value").value = "";
    this.read(true);
    this.fill();
  }

  /** Show products that were found by their titles. */
  found(items) {
    $("found").replaceChildren(...items.map((item) => {
      const free = this.firstFree();
      return make("li", "", null, make("span", "", item.title), button("Pin", `Pin ${item.title}`, () => this.pin(item, free)));
    }));
  }

  firstFree() {
    const taken = new Set(this.draft?.form.pins.map((p) => p.position));
    let position = 0;
    while (taken.has(position)) position += 1;
    return position;
  }

  /** Take the fields into the draft. tell: whether the preview may be another. */
  read(tell = false) {
    const d = this.draft, form = d.form;
    Object.assign(d, {
      id: $("rule-id").value.trim(), placement: $("rule-placement").value || null,
      start: fromLocal($("start").value), end: fromLocal($("end").value), note: $("note").value.trim(),
    });
    form.kind = $("kind").value;
    form.attribute = (form.kind === "cap" ? $("cap-attribute") : $("attribute")).value;
    form.comparison = $("comparison").value;
    form.by = Number($("by").value) || 1;
    form.most = Number($("most").value) || 1;
    form.json = $("json").value;
    if (tell) {
      this.problem("");
      this.changed();
    }
  }

  /** Show the draft in the fields. */
  fill() {
    const { form, ...d } = this.draft, of = (name, shown) => ($(name).hidden = !shown);
    const attribute = this.attributes.find((a) => a.name === form.attribute), about = attribute ?? this.attributes[0];
    $("rule-id").value = d.id;
    $("rule-id").readOnly = !d.isNew;
    $("rule-placement").value = d.placement ?? ANY;
    $("kind").value = form.kind;
    of("of-pin", form.kind === "pin");
    of("of-condition", ["boost", "bury", "filter", "hide"].includes(form.kind));
    of("of-by", form.kind === "boost" || form.kind === "bury");
    of("of-cap", form.kind === "cap");
    of("of-json", form.kind === "json");
    if (form.kind === "cap") $("cap-attribute").value = form.attribute;
    else $("attribute").value = about?.name ?? "";
    choices($("comparison"), comparisons(about?.kind));
    if ([...$("comparison").options].some((o) => o.value === form.comparison)) $("comparison").value = form.comparison;
    form.comparison = $("comparison").value;
    of("of-values", !["missing", "present"].includes(form.comparison));
    choices($("values"), (about?.values ?? []).map((v) => [v, v]));
    $("value").placeholder = { date: "2026-12-24 or now-30d", number: about?.low === undefined ? "" : `${about.low.toFixed(2)} to ${about.high.toFixed(2)}` }[about?.kind] ?? "";
    $("chosen").replaceChildren(...form.values.map((value) => make("li", "", value, button("×", `Remove ${value}`, () => {
      form.values = form.values.filter((v) => v !== value);
      this.fill();
      this.changed();
    }))));
    $("by").value = form.by;
    $("most").value = form.most;
    $("json").value = form.json;
    this.fillPins();
    $("start").value = toLocal(d.start);
    $("end").value = toLocal(d.end);
    $("note").value = d.note;
  }

  /** Show the pinned products, whose titles are known once a list has been read. */
  fillPins() {
    $("pins").replaceChildren(...this.draft.form.pins.map((p) => {
      const title = this.titles.get(p.item_id) ?? p.item_id;
      return make("li", "", null, make("span", "place", String(p.position + 1)), make("span", "", title), button("×", `Unpin ${title}`, () => this.unpin(p.item_id)));
    }));
  }
}
