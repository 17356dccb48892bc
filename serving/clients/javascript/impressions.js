/** Impressions: an item counts as seen once half of it is visible for a second, once per list and position. */

/** @typedef {(item: {item_id: string, request_id: string, position: number}) => void} Seen */

const SHARE = 0.5;
const SEEN_MS = 1000;
const STEPS = Array.from({ length: 21 }, (_, n) => n / 20);

export class Impressions {
  /** @type {Set<string>} */
  #reported = new Set();
  #seen;

  /** @param {Seen} seen called once for each impression */
  constructor(seen) {
    this.#seen = seen;
  }

  /**
   * Observe the items of a list, including items added later. Returns a function that stops observing.
   * @param {Element} list
   * @param {string} requestId
   * @param {string} selector
   */
  observe(list, requestId, selector) {
    /** @type {Map<Element, ReturnType<typeof setTimeout>>} */
    const timers = new Map();
    /** @type {Set<Element>} */
    const inSight = new Set();
    /** @param {Element} element */
    const cancel = (element) => {
      clearTimeout(timers.get(element));
      timers.delete(element);
    };
    /** @param {Element} element */
    const begin = (element) => {
      if (timers.has(element) || document.visibilityState === "hidden") return;
      timers.set(element, setTimeout(() => this.#report(list, requestId, selector, element), SEEN_MS));
    };
    const observer = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (visible(entry)) {
          inSight.add(entry.target);
          begin(entry.target);
        } else {
          inSight.delete(entry.target);
          cancel(entry.target);
        }
      }
    }, { threshold: STEPS });
    const add = () => list.querySelectorAll(selector).forEach((element) => observer.observe(element));
    const changes = new MutationObserver(add);
    // Nothing is seen in a hidden tab. The second starts again when the tab becomes visible.
    const visibilityChanged = () => (document.visibilityState === "hidden" ? [...timers.keys()].forEach(cancel) : inSight.forEach(begin));
    add();
    changes.observe(list, { childList: true, subtree: true });
    document.addEventListener("visibilitychange", visibilityChanged);
    return () => {
      observer.disconnect();
      changes.disconnect();
      document.removeEventListener("visibilitychange", visibilityChanged);
      [...timers.keys()].forEach(cancel);
    };
  }

  /**
   * @param {Element} list
   * @param {string} requestId
   * @param {string} selector
   * @param {Element} element
   */
  #report(list, requestId, selector, element) {
    const item = placed(list, selector, element);
    if (!item) return;
    const key = JSON.stringify([requestId, item.item_id, item.position]);
    if (this.#reported.has(key)) return;
    this.#reported.add(key);
    this.#seen({ ...item, request_id: requestId });
  }
}

/**
 * The item of an element, and its position in the list from 0 (`data-position`, or by order). Null if it has no item.
 * @param {Element} list
 * @param {string} selector
 * @param {Element} element
 */
export function placed(list, selector, element) {
  const { itemId, position } = /** @type {HTMLElement} */ (element).dataset;
  if (!itemId) return null;
  const place = position === undefined ? [...list.querySelectorAll(selector)].indexOf(element) : Number(position);
  return Number.isInteger(place) && place >= 0 ? { item_id: itemId, position: place } : null;
}

/**
 * Whether half of an element is visible, or it covers half of the window.
 * @param {IntersectionObserverEntry} entry
 */
function visible(entry) {
  if (entry.intersectionRatio >= SHARE) return true;
  const [visibleRect, rootRect] = [entry.intersectionRect, entry.rootBounds];
  return rootRect !== null && entry.isIntersecting && visibleRect.width * visibleRect.height >= SHARE * rootRect.width * rootRect.height;
}
