// Read by tsc alone: what is declared is what there is, and it is used as the guide says.
import { Shelfwise as Made, ShelfwiseError as MadeError } from "../shelfwise.js";
import type { Options, RankAnswer, Shelfwise, ShelfwiseError } from "../types.js";

const made: Shelfwise = new Made({ url: "https://rank.shop.example" });
const error: ShelfwiseError = new MadeError(503, "busy", "later", { retryAfterMs: 1000 });
const options: ConstructorParameters<typeof Made>[0] = {} as Options;

export async function used(list: Element): Promise<number> {
  const shelf: RankAnswer = await made.recommend({ limit: 12, rules: { cap: [{ attribute: "brand", most: 2 }] } });
  const stop: () => void = made.observe(list, shelf, { clicks: true });
  made.track({ event: "add_to_cart", item_id: shelf.items[0]?.item_id ?? "", request_id: shelf.request_id });
  // @ts-expect-error there is no such event
  made.track({ event: "sneeze", item_id: "p1" });
  // @ts-expect-error an event has an item
  made.track({ event: "click" });
  // @ts-expect-error no such field
  await made.rank({ candidate: ["p1"] });
  stop();
  return error.status + (options.batch ?? 0) + made.counts.waiting;
}
