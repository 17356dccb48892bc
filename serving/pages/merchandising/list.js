// The list of products: drag one, or set its position, to pin it.

import { button, money } from "./dom.js";
import { make } from "./make.js";
import { effect } from "./rules.js";

/** How an item has moved, as a sign and, for screen readers, in words. */
function moved(item, place, compared) {
  const isNew = item.was === undefined || item.was === null, by = isNew ? 0 : item.was - place;
  const mark = make("span", `moved ${by < 0 ? "down" : "up"}`);
  if (compared && isNew) mark.textContent = "new";
  if (!compared || !by) return mark;
  const sign = make("span", "", `${by > 0 ? "▲" : "▼"} ${Math.abs(by)}`);
  sign.setAttribute("aria-hidden", "true");
  mark.append(sign, make("span", "hidden", `moved ${by > 0 ? "up" : "down"} by ${Math.abs(by)}`));
  return mark;
}

/** One product. act: {pin(item, position), unpin(item)}, or null for a key that may only read. */
function row(item, place, { compared, pinned, own, act }) {
  const li = make("li", pinned ? "product pinned" : "product");
  li.dataset.item = item.item_id;
  const about = [item.category, item.price === null || item.price === undefined ? null : money.format(item.price)].filter(Boolean).join(" · ");
  const text = make("div", "text", null, make("b", "title", item.title), make("span", "quiet", about));
  const effects = (item.rules ?? []).map((r) => effect(r, own)).join("; ");
  if (effects) text.append(make("span", "effects", effects));
  li.append(make("span", "place", String(place + 1)), text, moved(item, place, compared));
  if (!act) return li;
  const input = make("input");
  Object.assign(input, { type: "number", min: "1", max: "5000", value: String(place + 1) });
  input.setAttribute("aria-label", `Position of ${item.title}`);
  input.addEventListener("change", () => {
    const position = Math.round(Number(input.value));
    if (position >= 1 && position <= 5000) act.pin(item, position - 1);
  });
  const toggle = pinned
    ? button("Unpin", `Unpin ${item.title}`, () => act.unpin(item))
    : button("Pin", `Pin ${item.title} to position ${place + 1}`, () => act.pin(item, place));
  toggle.dataset.toggles = item.item_id;
  li.append(make("span", "acts", null, input, toggle));
  li.draggable = true;
  li.addEventListener("dragstart", (e) => {
    e.dataTransfer.setData("text/plain", item.item_id);
    e.dataTransfer.effectAllowed = "move";
    li.classList.add("dragged");
  });
  li.addEventListener("dragend", () => li.classList.remove("dragged"));
  return li;
}

/** Show a list. how: compared, own and act as in `row`; pins: IDs of the items that the edited rule pins. */
export function show(ol, items, how) {
  const focused = document.activeElement?.dataset?.toggles;
  ol.replaceChildren(...items.map((item, place) => row(item, place, { ...how, pinned: how.pins.has(item.item_id) })));
  if (focused) ol.querySelector(`[data-toggles="${CSS.escape(focused)}"]`)?.focus();
  ol.ondragover = (e) => {
    if (!how.act) return;
    e.preventDefault();
    const over = e.target.closest("li");
    for (const li of ol.children) li.classList.toggle("over", li === over);
  };
  ol.ondrop = (e) => {
    e.preventDefault();
    const place = [...ol.children].indexOf(e.target.closest("li"));
    const item = items.find((i) => i.item_id === e.dataTransfer.getData("text/plain"));
    for (const li of ol.children) li.classList.remove("over");
    if (item && place >= 0) how.act.pin(item, place);
  };
}
