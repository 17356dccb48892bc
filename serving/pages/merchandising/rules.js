// Rules of the API as the fields of the form and back, and as text.

const ORDER = { lte: "at most", gte: "at least" };

/** Comparisons of an attribute: [value, text]. */
export function comparisons(kind) {
  const missing = [["missing", "is missing"], ["present", "is known"]];
  return kind === "text" ? [["in", "is one of"], ...missing] : [...Object.entries(ORDER), ...missing];
}

function condition({ attribute, comparison, values }) {
  if (comparison === "missing" || comparison === "present") return { attribute, missing: comparison === "missing" };
  if (comparison === "in") return { attribute, in: values };
  const [value] = values, number = Number(value);
  return { attribute, [comparison]: value !== "" && Number.isFinite(number) ? number : value };
}

/** The rules of the API for a form; null if it is not complete. Throws SyntaxError for invalid JSON. */
export function toRules(form) {
  if (form.kind === "json") return JSON.parse(form.json);
  if (form.kind === "pin") {
    return form.pins.length ? { pin: form.pins.map(({ item_id, position }) => ({ item_id, position })) } : null;
  }
  if (form.kind === "cap") return form.attribute ? { cap: [{ attribute: form.attribute, most: form.most }] } : null;
  const needsValue = !["missing", "present"].includes(form.comparison);
  if (!form.attribute || (needsValue && !form.values.length)) return null;
  const of = condition(form);
  if (form.kind === "filter") return { filter: of };
  if (form.kind === "hide") return { filter: { not: of } };
  return { [form.kind]: [{ when: of, by: form.by }] };
}

/** The fields of a condition with one comparison; null if it has another form. */
function simple(c) {
  const { attribute, ...rest } = c ?? {};
  const [[comparison, value] = [], ...more] = Object.entries(rest);
  if (attribute === undefined || more.length) return null;
  if (comparison === "missing") return { attribute, comparison: value ? "missing" : "present", values: [] };
  if (comparison === "in") return value.every((v) => typeof v === "string") ? { attribute, comparison, values: value } : null;
  if (comparison === "eq" && typeof value === "string") return { attribute, comparison: "in", values: [value] };
  return comparison in ORDER ? { attribute, comparison, values: [String(value)] } : null;
}

/** The form for rules of the API. Rules that the form has no fields for are edited as JSON. */
export function toForm(rules) {
  const blank = { pins: [], attribute: "", comparison: "in", values: [], by: 1, most: 2, json: "" };
  const [[kind, value] = [], ...more] = Object.entries(rules);
  const other = { ...blank, kind: "json", json: JSON.stringify(rules, null, 1) };
  if (more.length) return other;
  if (kind === "pin") return { ...blank, kind, pins: value.map((p) => ({ ...p })) };
  if (kind === "cap" && value.length === 1) return { ...blank, kind, attribute: value[0].attribute, most: value[0].most };
  const lift = (kind === "boost" || kind === "bury") && value.length === 1 ? value[0] : null;
  const hides = kind === "filter" && value.not !== undefined;
  const fields = kind === "filter" ? simple(hides ? value.not : value) : lift && simple(lift.when);
  return fields ? { ...blank, ...fields, kind: hides ? "hide" : kind, by: lift?.by ?? 1 } : other;
}

function conditionText(c) {
  const of = simple(c);
  if (!of) return "products that match its conditions";
  if (of.comparison === "in") return `${of.attribute} ${of.values.join(", ")}`;
  if (of.comparison === "missing") return `products without ${of.attribute}`;
  return of.comparison === "present" ? `products with ${of.attribute}` : `${of.attribute} ${ORDER[of.comparison]} ${of.values[0]}`;
}

/** What rules do, as text. title: the title of an item by its ID. */
export function describe(rules, title) {
  const out = [];
  if (rules.filter?.not) out.push(`hides ${conditionText(rules.filter.not)}`);
  else if (rules.filter) out.push(`shows only ${conditionText(rules.filter)}`);
  for (const e of rules.exclude ?? []) out.push(`leaves out what the shopper has seen or done (${e.events.join(", ")})`);
  for (const b of rules.boost ?? []) out.push(`boosts ${conditionText(b.when)} by ${b.by ?? 1}`);
  for (const b of rules.bury ?? []) out.push(`buries ${conditionText(b.when)} by ${b.by ?? 1}`);
  for (const c of rules.cap ?? []) out.push(`at most ${c.most} with the same ${c.attribute}`);
  if (rules.diversity) out.push("varies the top of the list");
  const pins = (rules.pin ?? []).map((p) => `${title(p.item_id)} at ${p.position + 1}`);
  if (pins.length) out.push(`pins ${pins.slice(0, 4).join(", ")}${pins.length > 4 ? ` and ${pins.length - 4} more` : ""}`);
  return out.join("; ");
}

/** The effect of a rule on an item, as text. own: the ID of the rule that is being edited. */
export function effect({ rule, added, moved_from: from }, own) {
  const [, id, kind] = rule.match(/^merchandising\.([^.]+)\.([a-z]+)/) ?? [null, null, rule.match(/\.?([a-z]+)\[?\d*\]?$/)?.[1] ?? rule];
  const source = id === null ? "settings" : id === own || id === "draft" ? "this rule" : id;
  if (kind === "pin") return `pinned by ${source}`;
  if (added) return `${added > 0 ? "boosted" : "buried"} by ${source}`;
  return from === undefined ? `${kind} of ${source}` : `moved by ${source}`;
}
