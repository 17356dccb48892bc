/** What a shopper has seen of a list: half of an item for a second, once for each list and place. */

/** @typedef {(item: {item_id: string, request_id: string, position: number}) => void} Seen */

const SHARE = 0.5;
const SEEN_MS = 1000;
const STEPS = Array.from({ length: 21 }, (_, n) => n / 20);

export class Impressions {
  /** @type {Set<string>} */
  #told = new Set();
  #seen;

  /** @param {Seen} seen told once of each */
  constructor(seen) {
    this.#seen = seen;
  }

  /**
   * Look at the items of a list, also at those that come into it later. Answers how to stop.
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
    const forget = (element) => {
      clearTimeout(timers.get(element));
      timers.delete(element);
    };
    /** @param {Element} element */
    const begin = (element) => {
      if (timers.has(element) || document.visibilityState === "hidden") return;
      timers.set(element, setTimeout(() => this.#tell(list, requestId, selector, element), SEEN_MS));
    };
    const looking = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (visible(entry)) {
          inSight.add(entry.target);
          begin(entry.target);
        } else {
          inSight.delete(entry.target);
          forget(entry.target);
        }
      }
    }, { threshold: STEPS });
    const add = () => list.querySelectorAll(selector).forEach((element) => looking.observe(element));
    const changes = new MutationObserver(add);
    // In a tab behind others nothing is seen; a second begins anew when it comes back.
    const turn = () => (document.visibilityState === "hidden" ? [...timers.keys()].forEach(forget) : inSight.forEach(begin));
    add();
    changes.observe(list, { childList: true, subtree: true });
    document.addEventListener("visibilitychange", turn);
    return () => {
      looking.disconnect();
      changes.disconnect();
      document.removeEventListener("visibilitychange", turn);
      [...timers.keys()].forEach(forget);
    };
  }

  /**
   * @param {Element} list
   * @param {string} requestId
   * @param {string} selector
   * @param {Element} element
   */
  #tell(list, requestId, selector, element) {
    const item = placed(list, selector, element);
    if (!item) return;
    const key = JSON.stringify([requestId, item.item_id, item.position]);
    if (this.#told.has(key)) return;
    this.#told.add(key);
    this.#seen({ ...item, request_id: requestId });
  }
}

/**
 * The item an element stands for, and its place in the list from 0: `data-position`, or by its order. Null for none.
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
 * Whether half of an element is in view, or it fills half of the window, being larger than that.
 * @param {IntersectionObserverEntry} entry
 */
function visible(entry) {
  if (entry.intersectionRatio >= SHARE) return true;
  const [seen, all] = [entry.intersectionRect, entry.rootBounds];
  return all !== null && entry.isIntersecting && seen.width * seen.height >= SHARE * all.width * all.height;
}
