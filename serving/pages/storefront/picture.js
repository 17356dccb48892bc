// A product picture drawn from attributes: category sets the shape, title or brand the colour, id the background.

const SVG = "http://www.w3.org/2000/svg";

// [category words, [colour number, path] in a box of 100 by 100]. Colours: 0 is the main one, 1 is darker, 2 an accent.
const SHAPES = [
  ["furniture chair sofa home", [[1, "M32 58h6v30h-6zM62 58h6v30h-6z"], [0, "M30 16h40a4 4 0 0 1 4 4v28H26V20a4 4 0 0 1 4-4z"], [2, "M24 48h52a4 4 0 0 1 4 4v8H20v-8a4 4 0 0 1 4-4z"]]],
  ["kitchen dining food grocery cup mug", [[1, "M68 40h8a12 12 0 0 1 0 26h-9v-7h8a5 5 0 0 0 0-12h-7z"], [0, "M24 34h46v36a12 12 0 0 1-12 12H36a12 12 0 0 1-12-12z"], [2, "M24 44h46v8H24zM38 14q-6 7 0 14M52 14q-6 7 0 14"]]],
  ["lighting lamp light electronics", [[1, "M47 50h6v32h-6z"], [0, "M36 16h28l16 36H20z"], [2, "M34 80h32v6H34z"]]],
  ["bedding textiles cushion pillow bath towel", [[0, "M18 24q32 10 64 0q-8 28 0 54q-32-10-64 0q8-26 0-54z"], [2, "M32 38h36v4H32zM32 49h36v4H32zM32 60h36v4H32z"]]],
  ["garden plant outdoor flower pet", [[0, "M50 50Q24 48 24 20q26 2 26 30zM50 44q0-26 26-30q2 28-26 30z"], [1, "M48 40h4v22h-4z"], [2, "M30 60h40l-5 28H35z"]]],
  ["bags travel luggage office", [[1, "M36 32V22a14 14 0 0 1 28 0v10h-6V22a8 8 0 0 0-16 0v10z"], [0, "M22 32h56l5 50a5 5 0 0 1-5 6H22a5 5 0 0 1-5-6z"], [2, "M32 52h36v6H32z"]]],
  ["clothing apparel fashion shoes", [[0, "M36 16l-22 14 8 18 10-5v43h36V43l10 5 8-18-22-14q-14 12-28 0z"], [2, "M32 58h36v7H32z"]]],
  ["jewellery jewelry watches beauty", [[1, "M50 86a26 26 0 1 1 0-52a26 26 0 0 1 0 52zm0-8a18 18 0 1 0 0-36a18 18 0 0 0 0 36z"], [0, "M36 18h28l8 10-22 20-22-20z"], [2, "M28 28h44L50 34z"]]],
  ["toys games kids baby", [[0, "M18 50h30v30H18z"], [2, "M52 50h30v30H52z"], [1, "M35 18h30v28H35z"]]],
  ["stationery desk books film movies music", [[1, "M22 18h50a6 6 0 0 1 6 6v62H28a6 6 0 0 1-6-6z"], [0, "M28 14h50v62H28z"], [2, "M40 28h26v6H40zM40 40h18v5H40z"]]],
  ["sports fitness outdoors scientific", [[0, "M50 18a32 32 0 1 1 0 64a32 32 0 0 1 0-64z"], [2, "M28 28q22 22 0 44l-5-5q14-17 0-34zM72 28q-22 22 0 44l5-5q-14-17 0-34z"], [1, "M47 18h6v64h-6z"]]],
  ["body care bottle health gift box", [[1, "M42 12h16v14H42z"], [0, "M38 26h24q10 6 10 18v38a6 6 0 0 1-6 6H34a6 6 0 0 1-6-6V44q0-12 10-18z"], [2, "M28 52h44v20H28z"]]],
];

const HUES = { red: 4, orange: 26, amber: 38, mustard: 46, yellow: 50, moss: 95, green: 130, teal: 178, blue: 215, navy: 228, indigo: 245, purple: 280, plum: 310, pink: 338 };

/** 32-bit FNV-1a hash of a text's code points. */
export function hash(text) {
  let h = 0x811c9dc5;
  for (const c of text) h = Math.imul(h ^ c.codePointAt(0), 0x01000193) >>> 0;
  return h;
}

function shapeOf(category) {
  const words = category.toLowerCase().match(/[a-z]+/g) ?? [];
  const known = SHAPES.find(([names]) => words.some((w) => w.length > 2 && names.split(" ").includes(w)));
  return (known ?? SHAPES[hash(category) % SHAPES.length])[1];
}

function hueOf(product) {
  const named = (product.title.toLowerCase().match(/[a-z]+/g) ?? []).find((w) => w in HUES);
  return named ? HUES[named] : hash(product.brand ?? product.item_id) % 360;
}

function draw(parent, tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  parent.append(element);
  return element;
}

/** The picture as an SVG element, hidden from screen readers because the title is next to it. */
export function picture(product) {
  const hue = hueOf(product), bits = hash(product.item_id);
  const colours = [`hsl(${hue} 48% 52%)`, `hsl(${hue} 46% 34%)`, `hsl(${(hue + 150) % 360} 58% 70%)`];
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 160 100");
  svg.setAttribute("preserveAspectRatio", "xMidYMid slice");
  svg.setAttribute("aria-hidden", "true");
  draw(svg, "rect", { width: 160, height: 100, fill: `hsl(${(hue + 20) % 360} 38% 90%)` });
  for (let k = 0; k < 4; k++) {  // background: discs or bars, placed by the id's hash
    const x = (bits >>> (k * 7)) % 160, y = (bits >>> (k * 5 + 3)) % 100, fill = `hsl(${(hue + 20) % 360} 42% 84%)`;
    if (bits & 1) draw(svg, "circle", { cx: x, cy: y, r: 9 + ((bits >>> k) % 16), fill });
    else draw(svg, "rect", { x, y: 0, width: 5 + ((bits >>> k) % 14), height: 100, fill });
  }
  draw(svg, "ellipse", { cx: 80, cy: 91, rx: 38, ry: 4, fill: `hsl(${hue} 25% 70%)` });
  const size = 0.82 + ((bits >>> 9) % 12) / 100;
  const group = draw(svg, "g", { transform: `translate(${80 - 50 * size} ${92 - 90 * size}) scale(${size})` });
  for (const [colour, d] of shapeOf(product.category ?? "")) draw(group, "path", { d, fill: colours[colour] });
  return svg;
}
