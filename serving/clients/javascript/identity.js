/** Who acts: the shopper, the visit, the tab and the device, as far as a browser knows. */

/** @typedef {import("./types.js").KeyValue} KeyValue */

const VISIT_ENDS_MS = 30 * 60 * 1000;

/** 32 hexadecimal digits that nobody else draws. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");
}

/**
 * A storage that works here, or null: pages may be denied one, and then even naming it throws.
 * @param {"localStorage" | "sessionStorage"} name
 * @returns {KeyValue | null}
 */
export function storageOf(name) {
  try {
    const storage = globalThis[name];
    storage.setItem("shelfwise?", "");
    storage.removeItem("shelfwise?");
    return storage;
  } catch {
    return null;
  }
}

/**
 * What is kept under a name, made where there is nothing yet.
 * @param {KeyValue | null} storage
 * @param {string} name
 * @param {() => string} make
 */
export function kept(storage, name, make) {
  const held = storage?.getItem(name);
  if (held) return held;
  const made = make();
  try {
    storage?.setItem(name, made);
  } catch {
    // Full: it lives as long as the page.
  }
  return made;
}

export class Identity {
  #storage;

  /**
   * @param {KeyValue | null} storage
   * @param {string | null} user
   * @param {string | null} device
   */
  constructor(storage, user, device) {
    this.#storage = storage;
    this.user = user ?? kept(storage, "shelfwise user", () => `anon-${newId()}`);
    this.device = device ?? deviceOf();
  }

  /**
   * The visit, which ends after half an hour in which nothing happened.
   * @param {number} now
   */
  session(now) {
    const [id, last] = (this.#storage?.getItem("shelfwise visit") ?? "").split(" ");
    const session = id && now - Number(last) < VISIT_ENDS_MS ? id : newId();
    try {
      this.#storage?.setItem("shelfwise visit", `${session} ${now}`);
    } catch {
      // Full: the next event begins another visit.
    }
    return session;
  }
}

/** mobile, tablet or desktop, by what the browser says of its screen and pointer; null outside of a browser. */
export function deviceOf() {
  if (typeof matchMedia !== "function") return null;
  if (!matchMedia("(pointer: coarse)").matches) return "desktop";
  return Math.min(screen.width, screen.height) < 600 ? "mobile" : "tablet";
}
