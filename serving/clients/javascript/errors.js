/** What can go wrong, with what the service said of it. */

/** @typedef {import("./types.js").Rejected} Rejected */

export class ShelfwiseError extends Error {
  /**
   * @param {number} status
   * @param {string | null} code
   * @param {string} message
   * @param {Partial<import("./types.js").ShelfwiseError>} [more]
   */
  constructor(status, code, message, more = {}) {
    super(message);
    this.name = "ShelfwiseError";
    this.status = status;
    this.code = code;
    this.remedy = more.remedy ?? "";
    this.field = more.field ?? null;
    this.requestId = more.requestId ?? null;
    /** @type {Rejected[]} */
    this.rejected = more.rejected ?? [];
    this.retryAfterMs = more.retryAfterMs ?? 0;
  }

  /** Whether the same request may succeed later. */
  get mayPass() {
    return this.status === 0 || [408, 425, 429, 500, 502, 503, 504].includes(this.status);
  }

  /** Whether the request was surely not carried out, nor any part of it. */
  get surelyNotDone() {
    return this.status === 429 || (this.status === 503 && (this.code === "busy" || this.code === "not-ready"));
  }
}

/**
 * The error in an answer, whatever answered it.
 * @param {Response} response
 * @returns {Promise<ShelfwiseError>}
 */
export async function errorOf(response) {
  const requestId = response.headers.get("x-request-id");
  const retryAfterMs = retryAfter(response.headers.get("retry-after"), Date.now());
  const text = await response.text().catch(() => "");
  /** @type {any} */
  let said = null;
  try {
    said = JSON.parse(text);
  } catch {
    // Not from the service: a proxy's page, perhaps.
  }
  if (typeof said?.type !== "string") {
    return new ShelfwiseError(response.status, null, `${response.status}: ${text.slice(0, 200)}`, { requestId, retryAfterMs });
  }
  const where = said.field ? ` (${said.field})` : "";
  const message = `${response.status} ${said.title}${where}: ${said.detail} ${said.remedy}`;
  const { remedy, field, rejected } = said;
  return new ShelfwiseError(response.status, said.type.split(":").pop(), message, { remedy, field, rejected, requestId, retryAfterMs });
}

/**
 * Milliseconds that a Retry-After header asks for, 0 where it says nothing that can be read.
 * @param {string | null} header
 * @param {number} now
 */
export function retryAfter(header, now) {
  if (!header) return 0;
  const ms = /^\s*\d+\s*$/.test(header) ? Number(header) * 1000 : Date.parse(header) - now;
  return ms > 0 ? ms : 0;
}
