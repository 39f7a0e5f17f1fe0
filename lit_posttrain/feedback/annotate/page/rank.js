// Ranking: responses are placed one after another, ties are joined with =, and what is bad can be marked.

import { button, el, ordinal, say } from "./dom.js";
import { strengths } from "./strength.js";

export class Rank {
  constructor(page) {
    this.page = page;
    this.order = page.item.order;
    this.groups = []; // of places in the data, best first
    this.tie = false; // the next one is as good as the last
    this.marks = false; // the next digit marks what is not acceptable
    this.rejected = new Set();
    this.strength = strengths(page);
    this.buttons = new Map();
    this.strip = el("ol", { class: "strip", "aria-label": "Your ranking, best first" });
  }

  static title = "Rank";

  keys() {
    return [
      [this.order.length < 10 ? `1 – ${this.order.length}` : "1 – 9, 0", "Place this response next; once more takes it out"],
      ["=", "The next one ties with the one before"],
      ["Backspace", "Take out the last one"],
      ["x, then a digit", "Mark a response as not acceptable"],
      ["b", "All are bad"],
      ["w", "By how much the best one is better"],
    ];
  }

  card(response, number) {
    const place = button("Place", null, () => this.press(response.place), { class: "place" });
    const reject = button("Not acceptable", null, () => this.reject(response.place), {
      class: "quiet reject",
      "aria-pressed": "false",
      "aria-label": `Response ${number} is not acceptable`,
    });
    this.buttons.set(response.place, { place, reject, number });
    return [reject, place];
  }

  bar() {
    const all = button("All bad", "b", () => this.allBad(), { class: "quiet" });
    return { said: [this.strip, this.strength.element], acts: [all] };
  }

  key(event) {
    const digit = event.key === "0" ? 10 : Number(event.key);
    if (event.key.length === 1 && digit >= 1 && digit <= this.order.length) {
      const place = this.order[digit - 1];
      if (this.marks) this.reject(place);
      else this.press(place);
      this.marks = false;
    } else if (event.key === "=") {
      this.tie = this.groups.length > 0 && !this.tie;
      this.draw();
      if (this.tie) say("The next response ties with the last.");
    } else if (event.key === "Backspace") {
      const last = this.groups.at(-1)?.at(-1);
      if (last !== undefined) this.press(last);
    } else if (event.key === "x") {
      this.marks = true;
      say("Mark as not acceptable: which response?");
    } else if (event.key === "b") this.allBad();
    else if (event.key === "w") this.strength.next();
    else return false;
    return true;
  }

  rankOf(place) {
    return this.groups.findIndex((group) => group.includes(place));
  }

  press(place) {
    const number = this.order.indexOf(place) + 1;
    if (this.rankOf(place) >= 0) {
      this.groups = this.groups.map((group) => group.filter((one) => one !== place)).filter((group) => group.length);
      say(`Response ${number} has no rank.`);
    } else {
      if (this.tie && this.groups.length) this.groups.at(-1).push(place);
      else this.groups.push([place]);
      say(`Response ${number} is ${ordinal(this.rankOf(place))}.`);
    }
    this.tie = false;
    this.changed();
    if (this.groups.flat().length === this.order.length) this.page.complete();
  }

  reject(place) {
    if (!this.rejected.delete(place)) this.rejected.add(place);
    const number = this.order.indexOf(place) + 1;
    say(`Response ${number} is ${this.rejected.has(place) ? "not acceptable" : "acceptable"}.`);
    this.changed();
  }

  allBad() {
    this.rejected = new Set(this.order);
    if (!this.groups.length) this.groups = [[...this.order]];
    this.changed();
    this.page.complete();
  }

  /** Join two neighbours of the ranking into a tie, or part them. */
  join(flat) {
    const items = this.groups.flatMap((group, at) => group.map((place) => ({ place, at })));
    const tied = items[flat].at === items[flat + 1].at;
    const next = [];
    items.forEach((one, n) => {
      const joined = n > 0 && (n - 1 === flat ? !tied : items[n - 1].at === one.at);
      if (joined) next.at(-1).push(one.place);
      else next.push([one.place]);
    });
    this.groups = next;
    this.changed();
  }

  changed() {
    this.draw();
    this.page.changed();
  }

  draw() {
    for (const [place, { place: mark, reject, number }] of this.buttons) {
      const rank = this.rankOf(place);
      const next = ordinal(this.tie ? this.groups.length - 1 : this.groups.length);
      mark.textContent = rank >= 0 ? ordinal(rank) : `Place ${next}`;
      mark.setAttribute("aria-pressed", String(rank >= 0));
      mark.setAttribute(
        "aria-label",
        rank >= 0 ? `Response ${number} is ${ordinal(rank)}: take it out` : `Place response ${number} ${next}`
      );
      reject.setAttribute("aria-pressed", String(this.rejected.has(place)));
      const card = mark.closest(".card");
      card?.classList.toggle("ranked", rank >= 0);
      card?.classList.toggle("best", rank === 0);
      card?.classList.toggle("rejected", this.rejected.has(place));
    }
    const flat = this.groups.flatMap((group, at) => group.map((place) => [place, at]));
    const parts = flat.flatMap(([place, at], n) => {
      const number = this.order.indexOf(place) + 1;
      const chip = el("li", {}, button(String(number), null, () => this.press(place), {
        class: "chip",
        "aria-label": `Response ${number}, ${ordinal(at)}: take it out`,
      }));
      if (n === 0) return [chip];
      const tied = flat[n - 1][1] === at;
      const sign = button(tied ? "=" : ">", null, () => this.join(n - 1), {
        class: "sign",
        "aria-label": tied ? "Tied: part them" : "Better than: make a tie",
      });
      return [el("li", { class: "between" }, sign), chip];
    });
    const open = this.order.length - flat.length;
    const focused = [...this.strip.querySelectorAll("button")].indexOf(document.activeElement);
    const hint = flat.length ? (this.tie ? "= …" : open ? `${open} to go` : "") : "Place the best one first";
    this.strip.replaceChildren(...parts, el("li", { class: "hint" }, hint));
    if (focused >= 0) {
      const all = this.strip.querySelectorAll("button"); // made anew: the focus goes on where it was
      all[Math.min(focused, all.length - 1)]?.focus();
    }
    this.strength.draw();
  }

  value() {
    const ranks = this.order.map(() => null);
    this.groups.forEach((group, at) => group.forEach((place) => (ranks[place] = at)));
    if (this.groups.flat().length < 2 && !this.rejected.size) {
      return "Rank at least two responses, mark what is not acceptable, or skip the item.";
    }
    const rejected = ranks.map((_, place) => this.rejected.has(place));
    return { ranks, rejected, strength: this.strength.value };
  }

  draft() {
    return { groups: this.groups, rejected: [...this.rejected], strength: this.strength.value };
  }

  restore(draft) {
    this.groups = draft.groups ?? [];
    this.rejected = new Set(draft.rejected ?? []);
    this.strength.value = draft.strength ?? null;
  }

  /** The draft that a decision was made of. */
  static of(decision) {
    const ranks = decision.ranks ?? [];
    const most = Math.max(-1, ...ranks.filter((rank) => rank !== null));
    const groups = Array.from({ length: most + 1 }, (_, at) => ranks.flatMap((rank, i) => (rank === at ? [i] : [])));
    const rejected = (decision.rejected ?? []).flatMap((bad, place) => (bad ? [place] : []));
    return { groups, rejected, strength: decision.strength };
  }
}
