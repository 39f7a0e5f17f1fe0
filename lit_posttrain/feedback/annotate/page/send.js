// Decisions on their way: kept in the browser until the server has acknowledged them, and sent again with the same id,
// which the server counts once.

import { $, el, kept } from "./dom.js";

export const TIMEOUT_MS = 30000; // after which a request is given up, and made again
const WAIT_MS = 2000;

export class Outbox {
  /** `shown` is called with what the server answers; `back` with the reason for which it refused a decision. */
  constructor(whose, shown, back) {
    this.whose = whose;
    this.key = `outbox:${whose}`;
    this.shown = shown;
    this.back = back;
    this.busy = false;
  }

  get waiting() {
    return kept.get(this.key);
  }

  async send(path, body) {
    kept.set(this.key, { path, body });
    await this.flush({ path, body });
  }

  async flush(letter = this.waiting) {
    if (!letter || this.busy) return;
    this.busy = true;
    document.body.classList.add("busy");
    try {
      while (!(await this.sent(letter))) await new Promise((done) => setTimeout(done, WAIT_MS));
    } finally {
      this.busy = false;
      document.body.classList.remove("busy");
    }
  }

  /** True once the server has answered in a way that another attempt would not change. */
  async sent({ path, body }) {
    let answer, said;
    try {
      answer = await fetch(path, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify(body),
        signal: AbortSignal.timeout(TIMEOUT_MS),
      });
      said = await answer.json().catch(() => ({}));
    } catch {
      trouble("The server cannot be reached. Your decision is kept in this browser, and sent as soon as it answers.");
      return false;
    }
    if (answer.status === 401) {
      trouble(
        "The server was started again with new links. Open your new link in this browser: your last decision is kept, and will be sent."
      );
      return false;
    }
    if (said.belongs_to) {
      trouble(
        `The link of ${said.belongs_to} was opened in this browser. Open yours again: your last decision is kept, and will be sent.`
      );
      return false;
    }
    if (answer.status >= 500) {
      trouble(`Not saved: ${said.error ?? "the server has failed"}. It is tried again.`);
      return false;
    }
    kept.set(this.key, null);
    trouble("");
    if (answer.ok) this.shown(said, body);
    else this.back(answer.status, said.error ?? `the server answered ${answer.status}`);
    return true;
  }
}

export function trouble(text) {
  $("trouble").hidden = !text;
  $("trouble").replaceChildren(...(text ? [el("p", {}, text)] : []));
}
