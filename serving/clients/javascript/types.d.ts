/** What the JavaScript client takes and answers. Fields are those of the service's OpenAPI schema; a test holds them to it. */

export type EventName = "impression" | "view" | "click" | "cart" | "purchase" | "rating";
export type SentEventName = EventName | "view_item_list" | "select_item" | "view_item" | "add_to_cart";

/** Something a shopper did with an item, as it is sent. position: the place in the list from 0. */
export interface EventIn {
  event: SentEventName;
  user_id: string;
  item_id: string;
  event_id?: string | null;
  timestamp?: number | string | null;
  request_id?: string | null;
  position?: number | null;
  value?: number | null;
  session_id?: string | null;
  device?: string | null;
  query?: string | null;
}

/** As given to `track`: the client adds shopper, session, device, time and an id. */
export type Tracked = Omit<EventIn, "user_id"> & { user_id?: string };

export type Value = string | number | boolean;

export interface Condition {
  all?: Condition[] | null;
  any?: Condition[] | null;
  not?: Condition | null;
  attribute?: string | null;
  eq?: Value | null;
  in?: Value[] | null;
  has?: string | null;
  lt?: Value | null;
  lte?: Value | null;
  gt?: Value | null;
  gte?: Value | null;
  missing?: boolean | null;
}

export interface Exclude {
  events: EventName[];
  within_days?: number | null;
}

export interface Lift {
  when: Condition;
  by?: number;
}

export interface Cap {
  attribute: string;
  most: number;
}

export interface Diversity {
  lambda: number;
  pool?: number;
}

export interface Pin {
  item_id: string;
  position: number;
}

/** What a shop wants of a list beyond the scores: docs/rules.md. */
export interface Rules {
  filter?: Condition | null;
  exclude?: Exclude[];
  boost?: Lift[];
  bury?: Lift[];
  cap?: Cap[];
  diversity?: Diversity | null;
  pin?: Pin[];
}

/** Candidates to put in order. user_id, device: the client's own where they are left out. */
export interface RankRequest {
  user_id?: string | null;
  candidates?: string[] | null;
  limit?: number | null;
  explain?: boolean;
  device?: string | null;
  query?: string | null;
  rules?: Rules | null;
}

/** A list out of the whole catalogue. */
export interface RecommendRequest {
  user_id?: string | null;
  limit?: number;
  device?: string | null;
  query?: string | null;
  rules?: Rules | null;
  explain?: boolean;
}

export interface Reason {
  feature: string;
  contribution: number;
  text: string;
}

export interface Because {
  item_id: string;
  title: string;
  cosine: number;
  event: string;
}

export interface Applied {
  rule: string;
  added?: number | null;
  moved_from?: number | null;
}

export interface RankedItem {
  item_id: string;
  score: number;
  sources?: string[];
  base?: number | null;
  reasons?: Reason[];
  others?: number | null;
  rules?: Applied[];
  because?: Because | null;
}

export interface Removed {
  rule: string;
  count: number;
  item_ids: string[];
}

/** Items best first. request_id: goes with what the shopper does in this list. degraded: the list is not personal. */
export interface RankAnswer {
  request_id: string;
  release: string;
  degraded: boolean;
  items: RankedItem[];
  took_ms: number;
  removed?: Removed[];
}

export interface SimilarItem {
  item_id: string;
  title: string;
  cosine: number;
}

export interface SimilarAnswer {
  item_id: string;
  release: string;
  items: SimilarItem[];
}

export interface Rejected {
  index: number;
  field: string | null;
  message: string;
}

export interface Derived {
  index: number;
  event_id: string;
}

export interface EventsAnswer {
  accepted: number;
  duplicates: number;
  rejected: Rejected[];
  derived: Derived[];
}

/** What the service says is wrong (RFC 9457). */
export interface ProblemDocument {
  type: string;
  title: string;
  status: number;
  detail: string;
  remedy: string;
  field?: string | null;
  instance?: string | null;
}

/**
 * Something went wrong. status: of HTTP, 0 where there was no answer. code: kind of problem (`rate`, `invalid-field`),
 * or `unreachable`, `deadline`. requestId: what the service's log names.
 */
export class ShelfwiseError extends Error {
  constructor(status: number, code: string | null, message: string, more?: Partial<ShelfwiseError>);
  readonly status: number;
  readonly code: string | null;
  readonly remedy: string;
  readonly field: string | null;
  readonly requestId: string | null;
  readonly rejected: Rejected[];
  readonly retryAfterMs: number;
}

/** Where events are kept until they are delivered; `localStorage` and `sessionStorage` are of this form. */
export interface KeyValue {
  readonly length: number;
  key(index: number): string | null;
  getItem(key: string): string | null;
  setItem(key: string, value: string): void;
  removeItem(key: string): void;
}

export interface Options {
  /** The service's address: https://rank.shop.example */
  url: string;
  /** A key with the scopes `rank,events` alone, and a rate: everybody who opens the page can read it. */
  key?: string | null;
  /** The shopper; a random id that this browser keeps where left out. */
  user?: string | null;
  /** mobile, tablet, desktop or app; found out where left out. */
  device?: string | null;
  /** In which a ranking is answered or fails; 3000. */
  deadlineMs?: number;
  /** Of a ranking, in all; 3. */
  attempts?: number;
  /** How long an event waits for others; 2000. */
  everyMs?: number;
  /** Most events of one request; 100. */
  batch?: number;
  /** Most events that wait; 1000. */
  queue?: number;
  /** Told of an event that will not be delivered, and why; `console.warn` where left out. */
  onRefused?: (event: Tracked, field: string | null, why: string) => void;
  /** Where events outlive the page; `localStorage` where left out, null for nowhere. */
  storage?: KeyValue | null;
}

/** waiting + accepted + duplicates + rejected + expired is all that was queued; turnedAway found no room, and was told. */
export interface Counts {
  waiting: number;
  accepted: number;
  duplicates: number;
  rejected: number;
  expired: number;
  turnedAway: number;
}

export interface ObserveOptions {
  /** The items within the list; `[data-item-id]`. */
  selector?: string;
  /** Track a click on an item, too; false, for shops that say so themselves. */
  clicks?: boolean;
}

export class Shelfwise {
  constructor(options: Options);
  readonly user: string;
  readonly counts: Counts;
  /** From now on the shopper is this one, after a login for example. */
  identify(user: string): void;
  rank(request: RankRequest, how?: { deadlineMs?: number }): Promise<RankAnswer>;
  recommend(request?: RecommendRequest, how?: { deadlineMs?: number }): Promise<RankAnswer>;
  similar(itemId: string, how?: { limit?: number; deadlineMs?: number }): Promise<SimilarAnswer>;
  /** Queue an event; its id, or null where there was no room (`onRefused` is told). */
  track(event: Tracked): string | null;
  /** Send what waits now; true once all that waited is delivered, false where an attempt failed (it goes on by itself). */
  flush(): Promise<boolean>;
  /** Track impressions of a list: half of an item visible for a second, once for each place. Answers how to stop. */
  observe(list: Element, answer: { request_id: string }, how?: ObserveOptions): () => void;
  /** Take over what the shop pushes into GA4's dataLayer, from the beginning of the page. Answers how to stop. */
  dataLayer(layer?: unknown[]): () => void;
  /** Send what waits, and stop listening; what is not delivered waits for the next page. */
  close(): void;
}
