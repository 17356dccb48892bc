// A small SVG line plot of quantities over time, with intervals if there are any, and a table of the same values.

const NS = "http://www.w3.org/2000/svg";
const WIDE = 360, HIGH = 130, LEFT = 54, RIGHT = 8, TOP = 8, BOTTOM = 22;

function svg(name, attributes, text) {
  const out = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) out.setAttribute(key, value);
  if (text !== undefined) out.textContent = text;
  return out;
}

function html(name, className, text) {
  const out = document.createElement(name);
  if (className) out.className = className;
  if (text !== undefined) out.textContent = text;
  return out;
}

const time = (at) => new Date(at * 1000).toISOString();

/** A label of the time axis: the time of day if the plot spans less than a day, otherwise the date. */
function label(at, span) {
  return span < 86400 ? time(at).slice(11, 16) : time(at).slice(5, 10);
}

/** The smallest round number that is not less than the value. */
function above(value) {
  if (!(value > 0)) return 1;
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 5, 7, 10].map((k) => k * unit).find((k) => k >= value * 0.999999) ?? value;
}

/** Split points into runs without gaps. A null, or an interval over three times the median, ends a run. */
function runs(points) {
  const gaps = points.slice(1).map((p, k) => p.at - points[k].at).sort((a, b) => a - b);
  const median = gaps[Math.floor(gaps.length / 2)] ?? 0;
  const out = [[]];
  let last = null;
  for (const p of points) {
    if (p.value === null || (last !== null && p.at - last > 3 * median)) out.push([]);
    if (p.value !== null) out.at(-1).push(p);
    last = p.at;
  }
  return out.filter((run) => run.length);
}

/**
 * A figure with a heading, a plot and a table.
 * lines: [{name, points: [{at, value, low, high}]}], oldest first, value null if unknown. format: (value) => text.
 * from: "zero", or "data" for an axis that starts near the lowest value. marks: [{at, name}], drawn as vertical lines.
 */
export function plot({ title, unit, lines, format, from = "zero", marks = [] }) {
  const figure = html("figure", "plot");
  const known = lines.flatMap((line) => line.points.filter((p) => p.value !== null));
  const caption = html("figcaption");
  caption.append(html("b", "", title), html("span", "unit", unit));
  figure.append(caption);
  if (!known.length) {
    figure.append(html("p", "quiet", "No data."));
    return figure;
  }
  const newest = lines.map((l) => [l.name, l.points.findLast((p) => p.value !== null)]).filter(([, p]) => p);
  const latest = html("p", "latest");
  lines.forEach((line, k) => {
    const p = line.points.findLast((q) => q.value !== null);
    if (!p) return;
    if (latest.childNodes.length) latest.append(" · ");
    if (lines.length > 1) latest.append(html("span", `key s${k}`, line.name), " ");
    latest.append(format(p.value));
  });
  figure.append(latest);
  const first = Math.min(...known.map((p) => p.at)), end = Math.max(...known.map((p) => p.at)), span = Math.max(end - first, 1);
  const most = Math.max(...known.map((p) => p.high ?? p.value)), least = Math.min(...known.map((p) => p.low ?? p.value));
  const top = most > 0 ? above(most) : 0;
  const base = least < 0 ? -above(-least) : from === "data" ? Math.max(0, Math.floor((least - (top - least) * 0.2) * 20) / 20) : 0;
  const x = (at) => LEFT + ((at - first) / span) * (WIDE - LEFT - RIGHT);
  const y = (value) => TOP + (1 - (value - base) / Math.max(top - base, 1e-12)) * (HIGH - TOP - BOTTOM);
  const words = `${title}, ${unit}: latest ${newest.map(([name, p]) => `${name} ${format(p.value)}`).join(", ")}; range from ${format(least)} to ${format(most)}.`;
  const root = svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": words });
  for (const value of [base, (base + top) / 2, top]) {
    root.append(svg("line", { class: "grid", x1: LEFT, x2: WIDE - RIGHT, y1: y(value), y2: y(value) }));
    root.append(svg("text", { class: "axis", x: LEFT - 5, y: y(value) + 3.5, "text-anchor": "end" }, format(value)));
  }
  if (base < 0) root.append(svg("line", { class: "zero", x1: LEFT, x2: WIDE - RIGHT, y1: y(0), y2: y(0) }));
  for (const [at, anchor] of end - first > 0 ? [[first, "start"], [end, "end"]] : [[first, "start"]]) {
    root.append(svg("text", { class: "axis", x: x(at), y: HIGH - 6, "text-anchor": anchor }, label(at, span)));
  }
  for (const { at, name } of marks.filter((m) => m.at >= first && m.at <= end)) {
    const mark = svg("line", { class: "mark", x1: x(at), x2: x(at), y1: TOP, y2: HIGH - BOTTOM });
    mark.append(svg("title", {}, name));
    root.append(mark);
  }
  lines.forEach((line, k) => {
    for (const run of runs(line.points)) {
      if (run.every((p) => p.low !== undefined && p.low !== null)) {
        const up = run.map((p) => `${x(p.at)},${y(p.high)}`), down = run.map((p) => `${x(p.at)},${y(p.low)}`).reverse();
        if (run.length > 1) root.append(svg("polygon", { class: `band s${k}`, points: [...up, ...down].join(" ") }));
        else root.append(svg("line", { class: `bar s${k}`, x1: x(run[0].at), x2: x(run[0].at), y1: y(run[0].low), y2: y(run[0].high) }));
      }
      root.append(svg("polyline", { class: `line s${k}`, points: run.map((p) => `${x(p.at)},${y(p.value)}`).join(" ") }));
      if (line.points.length < 40) for (const p of run) root.append(svg("circle", { class: `dot s${k}`, cx: x(p.at), cy: y(p.value), r: 2.2 }));
    }
  });
  figure.append(root, table(title, lines, format));
  return figure;
}

const ROWS = 60;

function table(title, lines, format) {
  const details = html("details"), all = html("table"), head = html("tr"), scroll = html("div", "rows");
  scroll.tabIndex = 0;
  scroll.setAttribute("role", "region");
  scroll.setAttribute("aria-label", `${title}, as a table`);
  scroll.append(all);
  details.append(html("summary", "", "Show as table"), scroll);
  head.append(html("th", "", "Time (UTC)"), ...lines.map((line) => html("th", "", line.name)));
  all.append(head);
  const ats = [...new Set(lines.flatMap((line) => line.points.map((p) => p.at)))].sort((a, b) => b - a).slice(0, ROWS);
  const by = lines.map((line) => new Map(line.points.map((p) => [p.at, p])));
  for (const at of ats) {
    const row = html("tr");
    row.append(html("td", "", time(at).slice(0, 16).replace("T", " ")), ...by.map((of) => {
      const p = of.get(at);
      const interval = p?.low !== undefined && p?.low !== null ? ` [${format(p.low)}, ${format(p.high)}]` : "";
      return html("td", "", p && p.value !== null ? `${format(p.value)}${interval}` : "–");
    }));
    all.append(row);
  }
  return details;
}
