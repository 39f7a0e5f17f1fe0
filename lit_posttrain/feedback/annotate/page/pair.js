// Two responses: one is better, both are equal, or both are bad.

import { button, el, say } from "./dom.js";
import { strengths } from "./strength.js";

const SAID = { first: "Response 1 is better", second: "Response 2 is better", tie: "Tie", bad: "Both are bad" };
const KEYS = { 1: "first", 2: "second", ArrowLeft: "first", ArrowRight: "second", "=": "tie", 0: "tie", b: "bad" };

export class Pair {
  constructor(page) {
    this.page = page;
    this.order = page.item.order;
    this.choice = null;
    this.strength = strengths(page);
    this.buttons = {
      first: this.button("first", "Better", "1", { class: "place" }),
      second: this.button("second", "Better", "2", { class: "place" }),
      tie: this.button("tie", "Tie", "="),
      bad: this.button("bad", "Both bad", "b", { class: "bad" }),
    };
  }

  button(name, label, key, options = {}) {
    const named = { "aria-label": SAID[name], "aria-pressed": "false", ...options };
    return button(label, key, () => this.choose(name), named);
  }

  static title = "Compare";

  keys() {
    return [
      ["1 or ←", "The first one is better"],
      ["2 or →", "The second one is better"],
      ["= or 0", "Tie"],
      ["b", "Both are bad"],
      ["w", "By how much; press it before you choose"],
    ];
  }

  card(response, number) {
    return [this.buttons[number === 1 ? "first" : "second"]];
  }

  bar() {
    const { tie, bad } = this.buttons;
    const choices = el("div", { class: "choices", role: "group", "aria-label": "Neither is better" }, tie, bad);
    return { said: [choices, this.strength.element], acts: [] };
  }

  key(event) {
    if (event.key === "w") this.strength.next();
    else if (Object.hasOwn(KEYS, event.key)) this.choose(KEYS[event.key]);
    else return false;
    return true;
  }

  choose(name) {
    this.choice = name;
    say(SAID[name]);
    this.draw();
    this.page.changed();
    this.page.complete();
  }

  draw() {
    for (const [name, one] of Object.entries(this.buttons)) one.setAttribute("aria-pressed", String(name === this.choice));
    document.querySelectorAll(".card").forEach((card, n) => {
      card.classList.toggle("best", this.choice === (n === 0 ? "first" : "second"));
      card.classList.toggle("rejected", this.choice === "bad");
    });
    this.strength.draw();
  }

  value() {
    if (!this.choice) return "Say which response is better, or skip the item.";
    const ranks = [0, 0];
    if (this.choice === "first") ranks[this.order[1]] = 1;
    if (this.choice === "second") ranks[this.order[0]] = 1;
    const bad = this.choice === "bad";
    const decided = this.choice === "first" || this.choice === "second";
    return { ranks, rejected: bad ? [true, true] : null, strength: decided ? this.strength.value : null };
  }

  draft() {
    return { choice: this.choice, strength: this.strength.value };
  }

  restore(draft) {
    this.choice = draft.choice ?? null;
    this.strength.value = draft.strength ?? null;
  }

  static of(decision, order) {
    if (!decision.ranks) return {};
    const [first, second] = order.map((place) => decision.ranks[place]);
    const tie = (decision.rejected ?? []).some(Boolean) ? "bad" : "tie";
    const choice = first < second ? "first" : second < first ? "second" : tie;
    return { choice, strength: decision.strength };
  }
}
