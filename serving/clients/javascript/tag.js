/**
 * The client as one line, for a shop that already uses GA4:
 *
 *     <script type="module" src="/shelfwise/tag.js" data-shelfwise="https://rank.shop.example" data-key="swk_..."></script>
 *
 * It tracks the page's dataLayer from its first entry, and makes the client available as `window.shelfwise`.
 */

import { Shelfwise } from "./shelfwise.js";

const tag = /** @type {HTMLElement | null} */ (document.querySelector("script[data-shelfwise]"));
if (tag?.dataset.shelfwise) {
  const { shelfwise: url, key, user, token } = tag.dataset;
  const shop = new Shelfwise({ url, key, user, token });
  shop.dataLayer();
  Object.assign(window, { shelfwise: shop });
} else {
  console.error('shelfwise: no script tag with the service address; add data-shelfwise="https://..."');
}
