// Only compiled by tsc: the declarations match the implementation, and allow the usage shown in the guide.
import { Shelfwise as Implementation, ShelfwiseError as ErrorImplementation } from "../shelfwise.js";
import type { Options, RankAnswer, Shelfwise, ShelfwiseError } from "../types.js";

const client: Shelfwise = new Implementation({ url: "https://rank.shop.example" });
const error: ShelfwiseError = new ErrorImplementation(503, "busy", "later", { retryAfterMs: 1000 });
const options: ConstructorParameters<typeof Implementation>[0] = {} as Options;

export async function used(list: Element): Promise<number> {
  const shelf: RankAnswer = await client.recommend({ limit: 12, rules: { cap: [{ attribute: "brand", most: 2 }] } });
  const stop: () => void = client.observe(list, shelf, { clicks: true });
  client.track({ event: "add_to_cart", item_id: shelf.items[0]?.item_id ?? "", request_id: shelf.request_id });
  // @ts-expect-error unknown event
  client.track({ event: "sneeze", item_id: "p1" });
  // @ts-expect-error item_id is required
  client.track({ event: "click" });
  // @ts-expect-error unknown field
  await client.rank({ candidate: ["p1"] });
  const moved: number = (await client.merge("ann", { from: "anon-7" })).moved;
  // @ts-expect-error the user is required
  await client.merge({ from: "anon-7" });
  stop();
  return moved + error.status + (options.batch ?? 0) + client.counts.waiting;
}
