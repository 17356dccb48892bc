/**
 * One line for a shop that has GA4 already:
 *
 *     <script type="module" src="/shelfwise/tag.js" data-shelfwise="https://rank.shop.example" data-key="swk_..."></script>
 *
 * It reads the page's dataLayer from its beginning, and leaves the client as `window.shelfwise`.
 */

import { Shelfwise } from "./shelfwise.js";

const tag = /** @type {HTMLElement | null} */ (document.querySelector("script[data-shelfwise]"));
if (tag?.dataset.shelfwise) {
  const { shelfwise: url, key, user } = tag.dataset;
  const shop = new Shelfwise({ url, key, user });
  shop.dataLayer();
  Object.assign(window, { shelfwise: shop });
} else {
  console.error('shelfwise: no script tag names the service: data-shelfwise="https://..."');
}
