// The picture of a product: its own, where the service allows it, else a pattern with the initials of its title.

const SVG = "http://www.w3.org/2000/svg";

/** 32-bit FNV-1a hash of a text's code points. */
function hash(text) {
  let h = 0x811c9dc5;
  for (const c of text) h = Math.imul(h ^ c.codePointAt(0), 0x01000193) >>> 0;
  return h;
}

function draw(parent, tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text) element.textContent = text;
  parent.append(element);
  return element;
}

/** The first letters of the first two words; the first character of a title in a script without spaces. */
function initials(title) {
  const words = title.match(/[\p{L}\p{N}][\p{L}\p{N}\p{M}]*/gu) ?? [];
  const first = [...(words[0] ?? "·")][0];
  return /\p{Script=Han}|\p{Script=Hiragana}|\p{Script=Katakana}/u.test(first) ? first : words.slice(0, 2).map((w) => [...w][0]).join("").toUpperCase() || first;
}

/**
 * A pattern with initials. It shows no object: a drawing would claim to show the product. Products of one category have
 * one colour, so that a shelf shows which categories moved; the pattern depends on the ID.
 */
function pattern(product) {
  const hue = hash(product.category ?? "") % 360, bits = hash(product.item_id);
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 160 100");
  svg.setAttribute("preserveAspectRatio", "xMidYMid slice");
  draw(svg, "rect", { width: 160, height: 100, fill: `hsl(${hue} 38% 88%)` });
  for (let k = 0; k < 5; k++) {
    const x = (bits >>> (k * 6)) % 160, y = (bits >>> (k * 5 + 3)) % 100, fill = `hsl(${hue} 42% ${78 + 3 * (k % 3)}%)`;
    if (bits & 1) draw(svg, "circle", { cx: x, cy: y, r: 12 + ((bits >>> k) % 22), fill });
    else draw(svg, "rect", { x, y: 0, width: 6 + ((bits >>> k) % 18), height: 100, fill });
  }
  const letters = { x: 80, y: 52, "text-anchor": "middle", "dominant-baseline": "central", "font-size": 36, "font-weight": 650, fill: `hsl(${hue} 45% 28%)` };
  draw(svg, "text", letters, initials(product.title || product.item_id));
  return svg;
}

/** The picture, hidden from screen readers because the title is next to it. */
export function picture(product) {
  const drawn = pattern(product);
  drawn.setAttribute("aria-hidden", "true");
  if (!product.image_url) return drawn;
  const image = document.createElement("img");
  image.alt = "";
  image.loading = "lazy";
  image.decoding = "async";
  image.addEventListener("error", () => image.replaceWith(drawn), { once: true });
  image.src = product.image_url;
  return image;
}
