// By how much the best response is better, which may be left open.

import { button, el, kbd, say } from "./dom.js";

const NAMES = ["slightly", "clearly", "much"];

export function strengths(page) {
  const buttons = NAMES.map((name, n) =>
    button(name, null, () => choose(made.value === n + 1 ? null : n + 1), { "aria-pressed": "false" })
  );
  const element = el("div", { class: "segments", role: "group", "aria-label": "By how much the best is better" },
    el("span", { class: "label" }, "Better by ", kbd("w")), ...buttons);
  function choose(value) {
    made.value = value;
    made.draw();
    say(value ? `${NAMES[value - 1]} better` : "no strength");
    page.changed();
  }
  const made = {
    element,
    value: null,
    next: () => choose(made.value === NAMES.length ? null : (made.value ?? 0) + 1),
    draw: () => buttons.forEach((one, n) => one.setAttribute("aria-pressed", String(made.value === n + 1))),
  };
  return made;
}
