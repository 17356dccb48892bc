// A list of cards whose order changes. Moves are animated, and keyboard focus follows the product.

const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");

export class Shelf {
  constructor(root) {
    this.root = root;
    this.cards = new Map();
    this.far = new Map();
  }

  /** Position of each card from 1, by item id. */
  places() {
    return new Map([...this.cards.keys()].map((id, k) => [id, this.far.get(id) ?? k + 1]));
  }

  /**
   * Show these cards, by item id, in this order. before: the previous `places`; empty to mark no movement.
   * far: real positions of the cards at the end, which rank below the shelf's length.
   */
  show(cards, before, far = new Map()) {
    this.far = far;
    const focus = this.focused();
    const from = new Map([...this.cards].map(([id, card]) => [id, card.element.getBoundingClientRect()]));
    this.cards = cards;
    this.root.replaceChildren(...[...cards.values()].map((card) => card.element));
    for (const [id, place] of this.places()) cards.get(id).setPlace(place, before.size ? before.get(id) ?? 0 : undefined);
    if (before.size && !reducedMotion.matches) this.glide(from);
    if (focus) this.refocus(focus);
  }

  /** Animate the cards from their previous rectangles. */
  glide(from) {
    const timing = { duration: 550, easing: "cubic-bezier(.2,.7,.2,1)" };
    const to = [...this.cards].map(([id, card]) => [id, card.element, card.element.getBoundingClientRect()]);
    for (const [id, element, now] of to) {
      const was = from.get(id);
      if (!was) element.animate([{ opacity: 0, transform: "scale(.9)" }, { opacity: 1, transform: "none" }], timing);
      else if (was.x !== now.x || was.y !== now.y) {
        element.animate([{ transform: `translate(${was.x - now.x}px, ${was.y - now.y}px)` }, { transform: "none" }], timing);
      }
    }
  }

  /** The focus, if it is in this shelf: its card's id and position, the focused element, and whether focus is visible. */
  focused() {
    const active = document.activeElement, card = active?.closest?.("li.card");
    if (!card || !this.root.contains(card)) return null;
    return { id: card.dataset.item, place: [...this.root.children].indexOf(card), active, seen: active.matches(":focus-visible") };
  }

  /** Restore the focus: to the same product if it is still shown, otherwise to the one now at its position. */
  refocus({ id, place, active, seen }) {
    const stayed = this.cards.get(id);
    const next = stayed ? active : this.root.children[Math.min(place, this.root.children.length - 1)]?.querySelector("button");
    next?.focus({ preventScroll: true });
    if (seen) next?.closest("li").scrollIntoView({ block: "nearest" });
  }
}
