// The pages of the shop besides the list: a product, and the cart. The address names the page after `#`.

import { about, button, money, pageOf } from "./card.js";
import { make } from "./make.js";
import { picture } from "./picture.js";

/** The page that the address names: home, a product with its `item`, or the cart. */
export function here() {
  const [, name, item] = location.hash.split("/");
  if (name === "cart") return { name };
  try {
    if (name === "product" && item) return { name, item: decodeURIComponent(item) };
  } catch {
    // an address that is not well encoded is that of no product
  }
  return { name: "home" };
}

/** Show a product. press: called with the action of a button. */
export function showProduct(root, product, press) {
  if (root.dataset.item === product.item_id && root.childElementCount) return;
  root.dataset.item = product.item_id;
  const title = make("h2", "", product.title || product.item_id);
  title.id = "product-title";
  root.replaceChildren(
    make("div", "picture", null, picture(product)),
    make("div", "facts", null, title, about(product), make("div", "acts", null,
      button("Add to cart", "cart", product, press), button("Buy", "purchase", product, press))),
  );
}

/** The products in the cart, in the order in which they were added. */
export class Cart {
  #lines = new Map();

  /** products: details by ID. bought: called with the IDs when the cart is bought; changed: after a removal. */
  constructor(products, { bought, changed }) {
    this.products = products;
    this.onBuy = bought;
    this.onChange = changed;
    this.bought = 0;
  }

  get size() {
    return [...this.#lines.values()].reduce((sum, count) => sum + count, 0);
  }

  ids() {
    return [...this.#lines.keys()];
  }

  add(id) {
    this.#lines.set(id, (this.#lines.get(id) ?? 0) + 1);
  }

  /** The products are bought: they leave the cart, and are counted. */
  buy(ids) {
    for (const id of ids) {
      this.bought += this.#lines.get(id) ?? 1;
      this.#lines.delete(id);
    }
  }

  clear() {
    this.#lines.clear();
    this.bought = 0;
  }

  /** Show the lines, the sum of the known prices, and the button. */
  show(list, sum, buy) {
    const lines = [...this.#lines].map(([id, count]) => [this.products.get(id), count]);
    list.replaceChildren(...lines.map(([product, count]) => this.line(product, count)));
    const total = lines.reduce((all, [product, count]) => all + count * (product.price ?? 0), 0);
    sum.textContent = lines.length ? `Total ${money(total)}` : "The cart is empty.";
    buy.hidden = !lines.length;
    buy.onclick = () => this.onBuy(this.ids());
  }

  line(product, count) {
    const link = make("a", "", product.title || product.item_id);
    link.href = pageOf(product.item_id);
    const remove = button("Remove", "remove", product, () => {
      this.#lines.delete(product.item_id);
      this.onChange();
    });
    const price = product.price === null ? "" : money(count * product.price);
    return make("li", "line", null, link, make("span", "", count > 1 ? `× ${count}` : ""), make("b", "price", price), remove);
  }
}
