// The reply that an annotator writes, from nothing or from a response, and further turns.

import { button, el, say } from "./dom.js";

export class Write {
  constructor(page) {
    this.page = page;
    this.turns = [""]; // of the assistant, then of user and assistant in turn
    this.editor = el("div", { class: "editor" });
  }

  static title = "Write";

  keys() {
    const last = this.page.item.responses.length;
    return [
      ...(last ? [[last > 1 ? `1 – ${last}` : "1", "Begin with this response"]] : []),
      ["e", "To the reply; Escape leaves it"],
      ["Ctrl Enter", "Submit, also from within the reply"],
    ];
  }

  card(response, number) {
    return [button("Begin with this", String(number), () => this.begin(response), { class: "place" })];
  }

  bar() {
    return { said: [], acts: [], editor: this.editor };
  }

  key(event) {
    const digit = Number(event.key);
    if (event.key === "e") this.editor.querySelector("textarea").focus();
    else if (event.key.length === 1 && digit >= 1 && digit <= this.page.item.responses.length) {
      this.begin(this.page.item.responses[digit - 1]);
    } else return false;
    return true;
  }

  begin(response) {
    const own = this.turns[0].trim();
    const given = this.page.item.responses.some((one) => one.text.trim() === own);
    if (own && !given && !confirm("Replace what you have written?")) return;
    this.turns[0] = response.text;
    this.changed();
    this.editor.querySelector("textarea").focus();
  }

  more() {
    this.turns.push("", "");
    this.changed();
    this.editor.querySelectorAll("textarea")[this.turns.length - 2].focus();
  }

  fewer() {
    this.turns.splice(-2);
    say("The last two turns are removed.");
    this.changed();
  }

  changed() {
    this.draw();
    this.page.changed();
  }

  draw() {
    const fields = this.turns.map((text, n) => {
      const name = n % 2 ? "User" : "Assistant";
      const area = el("textarea", {
        rows: n % 2 ? 2 : 8,
        value: text,
        spellcheck: true,
        dir: "auto",
        on: {
          input: () => {
            this.turns[n] = area.value;
            this.page.changed();
          },
        },
      });
      return el("label", { class: `turn ${name.toLowerCase()}` }, el("span", { class: "role" }, name), area);
    });
    const acts = el("div", { class: "row" }, button("Add a question and its answer", null, () => this.more(), { class: "quiet" }));
    if (this.turns.length > 1) acts.append(button("Remove the last two turns", null, () => this.fewer(), { class: "quiet" }));
    this.editor.replaceChildren(el("h2", {}, "Your reply"), ...fields, acts);
  }

  value() {
    if (this.turns.some((one) => !one.trim())) {
      return this.turns.length > 1 ? "A turn is empty: write it, or remove it." : "Write a reply, or skip the item.";
    }
    return { turns: this.turns };
  }

  draft() {
    return { turns: this.turns };
  }

  restore(draft) {
    if (draft.turns?.length) this.turns = [...draft.turns];
  }

  static of(decision) {
    return { turns: decision.turns ?? [] };
  }
}
