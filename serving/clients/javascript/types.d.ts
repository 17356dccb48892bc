/** Types of the JavaScript client. A test compares their fields with the service's OpenAPI schema. */

export type EventName = "impression" | "view" | "click" | "cart" | "purchase" | "rating";
export type SentEventName = EventName | "view_item_list" | "select_item" | "view_item" | "add_to_cart";

/** One interaction of a shopper with an item, as sent. position: position in the list, from 0. */
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
  /** Of an impression: what its list was ranked with. Not needed for lists that the service ranked. */
  columns?: Record<string, ColumnValue> | null;
  /** The spot in the shop where the list was shown. Not needed if the request for the list named it. */
  placement?: string | null;
}

/** An event for `track`; the client adds shopper, session, device, time and an id. */
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

/** The shop's rules for a list, applied after scoring. See docs/rules.md. */
export interface Rules {
  filter?: Condition | null;
  exclude?: Exclude[];
  boost?: Lift[];
  bury?: Lift[];
  cap?: Cap[];
  diversity?: Diversity | null;
  pin?: Pin[];
}

/** Which variants of a product, items with the same group_id, may be in a list. See docs/variants.md. */
export interface Variants {
  keep?: "one" | "all" | null;
  after_purchase_days?: number | null;
}

/** A value of a column; null is missing. */
export type ColumnValue = string | number | boolean | null;

/** Columns of a request by name: one value for all candidates, or one per candidate. */
export type Columns = Record<string, ColumnValue | ColumnValue[]>;

/** Candidates to rank. user_id, session_id, device: default to the client's own. shown: false if the user may never see the list. placement: the spot in the shop that the list is for, as configured. items: the items that the list is for, such as those in the cart; at most 50. */
export interface RankRequest {
  user_id?: string | null;
  /** IDs, or objects with an `id` and the candidate's columns. */
  candidates?: (string | ({ id: string } & Record<string, ColumnValue>))[] | null;
  limit?: number | null;
  explain?: boolean;
  device?: string | null;
  query?: string | null;
  rules?: Rules | null;
  shown?: boolean;
  columns?: Columns;
  placement?: string | null;
  items?: string[];
  variants?: Variants | null;
  session_id?: string | null;
}

/** Request for recommendations from the whole catalogue. limit: by default that of the placement, otherwise 10. items: the items that the list is for, such as those in the cart, and which are not in it; at most 50. */
export interface RecommendRequest {
  user_id?: string | null;
  limit?: number;
  device?: string | null;
  query?: string | null;
  rules?: Rules | null;
  explain?: boolean;
  shown?: boolean;
  columns?: Columns;
  placement?: string | null;
  items?: string[];
  variants?: Variants | null;
  session_id?: string | null;
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

/** Effect of the placement's objective on an item. added: change of the score. */
export interface ObjectivePart {
  added: number;
  relevance: number;
  value: number;
  probability: Record<string, number>;
  amount: number;
  expected: number;
  /** Present only if it is true: the item has no value, and the amount is the median of the catalogue. */
  assumed?: boolean;
  /** Present only if it is true: too few shoppers would click the item for its value to count. */
  below_floor?: boolean;
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
  /** Present only if it is false: the item is not in the catalogue. */
  known?: boolean;
  objective?: ObjectivePart | null;
  /** In an interleaved list, the arm that chose the item. */
  team?: string | null;
}

export interface Removed {
  rule: string;
  count: number;
  item_ids: string[];
}

/** Items best first. request_id: send it with the shopper's events on this list. degraded: the list is worse than usual; degraded_reason says why. */
export interface RankAnswer {
  request_id: string;
  release: string;
  degraded: boolean;
  items: RankedItem[];
  took_ms: number;
  removed?: Removed[];
  degraded_reason?: "history-unavailable" | "release-from-disk" | "redis-replaced";
  placement?: string;
  /** The arm of the list by experiment; `interleaved` for one that mixes both arms. */
  experiments?: Record<string, string>;
}

/** A list of a page. columns: in addition to those of the page. */
export interface PageList {
  placement: string;
  limit?: number;
  query?: string | null;
  rules?: Rules | null;
  columns?: Columns;
  items?: string[];
  variants?: Variants | null;
}

/** Lists for several placements, in the order of the page: an item is in the first list only. user_id, session_id, device: default to the client's own. */
export interface PageRequest {
  placements: PageList[];
  user_id?: string | null;
  device?: string | null;
  columns?: Columns;
  explain?: boolean;
  shown?: boolean;
  session_id?: string | null;
}

/** Lists in the order of the request, each with a request_id of its own for its events. */
export interface PageAnswer {
  release: string;
  degraded: boolean;
  lists: RankAnswer[];
  took_ms: number;
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

/** What an anonymous shopper did becomes the history of the user. from: the anonymous user id. */
export interface MergeIn {
  from: string;
}

/** at: Unix seconds of the merge. moved: number of events that now belong to the user. */
export interface MergeAnswer {
  at: number;
  moved: number;
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

/** A problem document (RFC 9457). */
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
 * An error of the client. status: HTTP status code, 0 if there was no response. code: kind of problem (`rate`,
 * `invalid-field`), or `unreachable` or `deadline`. requestId: id of the request in the service's log.
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

/** Storage for events until they are delivered, such as `localStorage` or `sessionStorage`. */
export interface KeyValue {
  readonly length: number;
  key(index: number): string | null;
  getItem(key: string): string | null;
  setItem(key: string, value: string): void;
  removeItem(key: string): void;
}

/** A shopper token, or a function that returns the current one; null for a guest. */
export type ShopperToken = string | (() => string | null);

export interface Options {
  /** The service's address: https://rank.shop.example */
  url: string;
  /** A public key with a rate limit: everyone who opens the page can read it. */
  key?: string | null;
  /** The shopper's id; defaults to a random id stored in this browser. */
  user?: string | null;
  /** The shopper token of the user, from the shop's back end; a function if it is renewed while the page is open. */
  token?: ShopperToken | null;
  /** mobile, tablet, desktop or app; detected by default. */
  device?: string | null;
  /** Maximum time of a ranking request, with retries, in milliseconds; 3000 by default. */
  deadlineMs?: number;
  /** Maximum attempts for a ranking request; 3 by default. */
  attempts?: number;
  /** Maximum time an event waits for others, in milliseconds; 2000 by default. */
  everyMs?: number;
  /** Maximum events per request; 100 by default. */
  batch?: number;
  /** Maximum events queued; 1000 by default. */
  queue?: number;
  /** Called with an event that will not be delivered, and the reason; `console.warn` by default. */
  onRefused?: (event: Tracked, field: string | null, why: string) => void;
  /** Storage that keeps events after the page is closed; `localStorage` by default, null for none. */
  storage?: KeyValue | null;
}

/** The queued events are waiting + accepted + duplicates + rejected + expired. turnedAway: refused, as the queue was full. */
export interface Counts {
  waiting: number;
  accepted: number;
  duplicates: number;
  rejected: number;
  expired: number;
  turnedAway: number;
}

export interface ObserveOptions {
  /** Selector of the items within the list; `[data-item-id]` by default. */
  selector?: string;
  /** Whether to track clicks on items as well; false by default, for shops that track clicks themselves. */
  clicks?: boolean;
}

export class Shelfwise {
  constructor(options: Options);
  readonly user: string;
  readonly counts: Counts;
  /** Set the shopper from now on, for example after a login. With tokens, await `flush()` first: queued events are of the previous one. */
  identify(user: string, token?: ShopperToken): void;
  /** Rank candidates for the shopper. Rejects with ShelfwiseError. */
  rank(request: RankRequest, how?: { deadlineMs?: number }): Promise<RankAnswer>;
  /** Recommend items of the whole catalogue to the shopper. Rejects with ShelfwiseError. */
  recommend(request?: RecommendRequest, how?: { deadlineMs?: number }): Promise<RankAnswer>;
  /** Recommend items for several placements at once, without repeats. Rejects with ShelfwiseError. */
  page(request: PageRequest, how?: { deadlineMs?: number }): Promise<PageAnswer>;
  /** List items with similar text. Rejects with ShelfwiseError. */
  similar(itemId: string, how?: { limit?: number; deadlineMs?: number }): Promise<SimilarAnswer>;
  /**
   * Move what an anonymous shopper did to a user, at login. from: defaults to the client's own user. Needs a key with
   * scope `merge`, which a public key cannot have: call it in the back end. Rejects with ShelfwiseError.
   */
  merge(user: string, how?: { from?: string; deadlineMs?: number }): Promise<MergeAnswer>;
  /** Queue an event. Returns its id, or null if the queue is full (`onRefused` is called). */
  track(event: Tracked): string | null;
  /** Send queued events now. Resolves to true if all are delivered, to false if an attempt failed (it will be retried). */
  flush(): Promise<boolean>;
  /**
   * Track impressions of a list: half of an item visible for a second, once per position. Returns a function that stops
   * tracking.
   */
  observe(list: Element, answer: { request_id: string }, how?: ObserveOptions): () => void;
  /** Track GA4 events in the page's dataLayer, from its first entry. Returns a function that stops tracking. */
  dataLayer(layer?: unknown[]): () => void;
  /** Send queued events, and stop tracking. Events that are not delivered are left for the next page. */
  close(): void;
}
