// Calls to the service this page came from. Paths are relative, so that it may stand below a prefix.

const KEY = "shelfwise-key";

/** An answer that is an error: its status, and what the service said of it. */
export class Refused extends Error {
  constructor(status, said) {
    super(said);
    this.status = status;
  }
}

export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** The decoded answer. Throws Refused, with status 0 where the service cannot be reached. */
export async function call(method, path, body) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  let answer;
  try {
    answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch {
    throw new Refused(0, "The service cannot be reached.");
  }
  const said = await answer.json().catch(() => null);
  if (answer.ok && said !== null) return said;
  throw new Refused(answer.status, said?.detail ? `${said.title}: ${said.detail}. ${said.remedy ?? ""}` : answer.statusText);
}

/** Text that nobody had before. Plain HTTP beyond this machine has no crypto.randomUUID. */
export function freshId() {
  return Array.from(crypto.getRandomValues(new Uint32Array(3)), (n) => n.toString(36)).join("");
}
