// A list of cards whose order changes: what moves is seen to move, and the keyboard's focus goes with it.

const still = matchMedia("(prefers-reduced-motion: reduce)");

export class Shelf {
  constructor(root) {
    this.root = root;
    this.cards = new Map();
    this.far = new Map();
  }

  places() {
    return new Map([...this.cards.keys()].map((id, k) => [id, this.far.get(id) ?? k + 1]));
  }

  /**
   * Show these cards, by item id, in this order. before: of `places`, empty where movement is not to be marked.
   * far: the places of cards that stand at the end for want of room.
   */
  show(cards, before, far = new Map()) {
    this.far = far;
    const focus = this.focused();
    const from = new Map([...this.cards].map(([id, card]) => [id, card.element.getBoundingClientRect()]));
    this.cards = cards;
    this.root.replaceChildren(...[...cards.values()].map((card) => card.element));
    for (const [id, place] of this.places()) cards.get(id).stand(place, before.size ? before.get(id) ?? 0 : undefined);
    if (before.size && !still.matches) this.glide(from);
    if (focus) this.refocus(focus);
  }

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

  /** Where the focus is, if in this shelf: a card's id, its place, and the class of what in it has the focus. */
  focused() {
    const active = document.activeElement, card = active?.closest?.("li.card");
    if (!card || !this.root.contains(card)) return null;
    return { id: card.dataset.item, place: [...this.root.children].indexOf(card), active, seen: active.matches(":focus-visible") };
  }

  /** A product that moved keeps the focus; one that left leaves it to what stands at its place now. */
  refocus({ id, place, active, seen }) {
    const stayed = this.cards.get(id);
    const next = stayed ? active : this.root.children[Math.min(place, this.root.children.length - 1)]?.querySelector("button");
    next?.focus({ preventScroll: true });
    if (seen) next?.closest("li").scrollIntoView({ block: "nearest" });
  }
}
