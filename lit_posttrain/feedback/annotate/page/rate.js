// A score for each response on each criterion.

import { el, say } from "./dom.js";

export class Rate {
  constructor(page) {
    this.page = page;
    this.order = page.item.order;
    this.scores = Object.fromEntries(page.criteria.map((name) => [name, this.order.map(() => null)]));
    this.cells = []; // { name, place, number, group } as they are shown
  }

  static title = "Rate";

  keys() {
    const [least, most] = [this.page.scale[0], this.page.scale.at(-1)];
    return [
      [`${least} – ${most}`, `Rate, and go on to the next criterion: ${least} is poor, ${most} excellent`],
      ["↑ ↓", "The criterion before, the next one"],
      ["Backspace", "Take a rating back"],
    ];
  }

  card(response, number) {
    const rows = this.page.criteria.map((name) => {
      const cell = { name, place: response.place, number };
      const marks = this.page.scale.map((score) => {
        const input = el("input", {
          type: "radio",
          name: `${number}-${name}`,
          value: String(score),
          on: { change: () => this.set(cell, score) },
        });
        return el("label", { class: "score" }, input, el("span", {}, String(score)));
      });
      cell.group = el("fieldset", { class: "criterion" }, el("legend", {}, name), el("div", { class: "scores" }, ...marks));
      this.cells.push(cell);
      return cell.group;
    });
    return { below: el("div", { class: "criteria" }, ...rows) };
  }

  bar() {
    this.hint = el("p", { class: "hint" });
    return { said: [this.hint], acts: [] };
  }

  get at() {
    const focused = this.cells.findIndex((cell) => cell.group.contains(document.activeElement));
    if (focused >= 0) return focused;
    const open = this.cells.findIndex((cell) => this.scores[cell.name][cell.place] === null);
    return open >= 0 ? open : 0;
  }

  go(at) {
    const cell = this.cells[Math.max(0, Math.min(at, this.cells.length - 1))];
    const input = cell.group.querySelector("input:checked") ?? cell.group.querySelector("input");
    input.focus({ preventScroll: true });
    cell.group.scrollIntoView({ block: "nearest" });
  }

  key(event) {
    const digit = Number(event.key);
    if (event.key.length === 1 && event.key !== " " && this.page.scale.includes(digit)) {
      const at = this.at;
      this.set(this.cells[at], digit);
      this.go(at + 1);
    } else if (event.key === "ArrowDown" || event.key === "ArrowUp") this.go(this.at + (event.key === "ArrowDown" ? 1 : -1));
    else if (event.key === "Backspace") this.set(this.cells[this.at], null);
    else return false;
    return true;
  }

  set(cell, score) {
    this.scores[cell.name][cell.place] = score;
    say(score === null ? `Response ${cell.number}: no ${cell.name}` : `Response ${cell.number}, ${cell.name}: ${score}`);
    this.draw();
    this.page.changed();
    if (score !== null && this.left() === 0) this.page.complete();
  }

  left() {
    return Object.values(this.scores).flat().filter((one) => one === null).length;
  }

  draw() {
    for (const cell of this.cells) {
      const score = this.scores[cell.name][cell.place];
      for (const input of cell.group.querySelectorAll("input")) input.checked = Number(input.value) === score;
    }
    const left = this.left();
    this.hint.textContent = left ? `${left} rating${left === 1 ? "" : "s"} to go` : "All rated";
  }

  value() {
    const all = Object.values(this.scores).flat();
    if (all.every((one) => one === null)) return "Rate at least one response, or skip the item.";
    return { criteria: this.scores };
  }

  draft() {
    return { scores: this.scores };
  }

  restore(draft) {
    for (const name of this.page.criteria) {
      if (draft.scores?.[name]?.length === this.order.length) this.scores[name] = draft.scores[name];
    }
  }

  static of(decision) {
    return { scores: decision.criteria ?? {} };
  }
}
