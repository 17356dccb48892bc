// Errors of calls, shown on a page that needs a key. The page has a notice and a form for the key.

import { ApiError } from "./api.js";

const $ = (id) => document.getElementById(id);

/** Show a message; hide the notice if it is empty. An unchanged one is not written again: it would be read out again. */
export function notice(message) {
  if ($("notice").textContent === message && $("notice").hidden === !message) return;
  $("notice").textContent = message;
  $("notice").hidden = !message;
}

/** A function that does some work and returns whether it succeeded. content: hidden while a key is needed. */
export function guardedBy(content) {
  return async (work) => {
    try {
      await work();
      return true;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      $("key").hidden = error.status !== 401 && error.status !== 403;
      if (!$("key").hidden) content.hidden = true;
      notice(error.message);
      return false;
    }
  };
}
