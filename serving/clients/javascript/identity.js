/** Identity of the shopper, the session, the tab and the device, as far as a browser knows it. */

/** @typedef {import("./types.js").KeyValue} KeyValue */

const SESSION_TIMEOUT_MS = 30 * 60 * 1000;

/** A random unique id of 32 hexadecimal digits. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");
}

/**
 * A storage that works in this page, or null. If storage is denied, merely accessing it throws.
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
 * The value stored under a name, created and stored if there is none.
 * @param {KeyValue | null} storage
 * @param {string} name
 * @param {() => string} create
 */
export function storedOrNew(storage, name, create) {
  const stored = storage?.getItem(name);
  if (stored) return stored;
  const created = create();
  try {
    storage?.setItem(name, created);
  } catch {
    // Storage is full: the value lasts only as long as the page.
  }
  return created;
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
    this.user = user ?? storedOrNew(storage, "shelfwise user", () => `anon-${newId()}`);
    this.device = device ?? deviceOf();
  }

  /**
   * The session id. A session ends after 30 minutes without an event or a list.
   * @param {number} now
   */
  session(now) {
    const [id, last] = (this.#storage?.getItem("shelfwise visit") ?? "").split(" ");
    const session = id && now - Number(last) < SESSION_TIMEOUT_MS ? id : newId();
    try {
      this.#storage?.setItem("shelfwise visit", `${session} ${now}`);
    } catch {
      // Storage is full: the next event starts another session.
    }
    return session;
  }
}

/** mobile, tablet or desktop, according to the browser's pointer and screen; null outside a browser. */
export function deviceOf() {
  if (typeof matchMedia !== "function") return null;
  if (!matchMedia("(pointer: coarse)").matches) return "desktop";
  return Math.min(screen.width, screen.height) < 600 ? "mobile" : "tablet";
}
