/** Errors of the client, with the details the service returned. */

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

  /** Whether the request was certainly not carried out, not even in part. */
  get surelyNotDone() {
    return this.status === 429 || (this.status === 503 && (this.code === "busy" || this.code === "not-ready"));
  }
}

/**
 * The error in a response, from the service or from something in between, such as a proxy.
 * @param {Response} response
 * @returns {Promise<ShelfwiseError>}
 */
export async function errorOf(response) {
  const requestId = response.headers.get("x-request-id");
  const retryAfterMs = retryAfter(response.headers.get("retry-after"), Date.now());
  const text = await response.text().catch(() => "");
  /** @type {any} */
  let problem = null;
  try {
    problem = JSON.parse(text);
  } catch {
    // Not from the service: probably a proxy's error page.
  }
  if (typeof problem?.type !== "string") {
    return new ShelfwiseError(response.status, null, `${response.status}: ${text.slice(0, 200)}`, { requestId, retryAfterMs });
  }
  const where = problem.field ? ` (${problem.field})` : "";
  const message = `${response.status} ${problem.title}${where}: ${problem.detail} ${problem.remedy}`;
  const { remedy, field, rejected } = problem;
  return new ShelfwiseError(response.status, problem.type.split(":").pop(), message, { remedy, field, rejected, requestId, retryAfterMs });
}

/**
 * Milliseconds to wait according to a Retry-After header; 0 if it is missing or cannot be parsed.
 * @param {string | null} header
 * @param {number} now
 */
export function retryAfter(header, now) {
  if (!header) return 0;
  const ms = /^\s*\d+\s*$/.test(header) ? Number(header) * 1000 : Date.parse(header) - now;
  return ms > 0 ? ms : 0;
}
