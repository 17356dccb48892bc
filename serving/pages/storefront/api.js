// Calls to the service that served this page. Paths are relative, so the service may run under a path prefix.

const KEY = "shelfwise-key";

/** An error response. status: of HTTP, 0 if the service cannot be reached. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Send this API key with every call from now on, for as long as the tab is open. */
export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** Call the service and return the decoded response. Throws ApiError. */
export async function call(method, path, body) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch {
    throw new ApiError(0, "The service cannot be reached.");
  }
  const content = await response.json().catch(() => null);
  if (response.ok && content !== null) return content;
  throw new ApiError(response.status, content?.detail ? `${content.title}: ${content.detail}. ${content.remedy ?? ""}` : response.statusText);
}

/** A random unique id. crypto.randomUUID is not available over plain HTTP from another machine. */
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint32Array(3)), (n) => n.toString(36)).join("");
}
