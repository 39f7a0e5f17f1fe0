// Elements, and what is said to a screen reader.

/** An element. `options`: properties, `data-`/`aria-` attributes, `class`, and `on` with listeners. */
export function el(name, options = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(options)) {
    if (value === undefined || value === null) continue;
    if (key === "on") for (const [event, act] of Object.entries(value)) made.addEventListener(event, act);
    else if (key === "class") made.className = value;
    else if (key.includes("-") || key === "role" || key === "for") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children.flat().filter((one) => one !== null && one !== undefined));
  return made;
}

export const $ = (id) => document.getElementById(id);

export const kbd = (text) => el("kbd", { "aria-hidden": "true" }, text);

/** A button with its key. After a click of the mouse the focus leaves it, or Enter would press it again. */
export function button(label, key, act, options = {}) {
  const click = (event) => {
    if (event.detail > 0) event.currentTarget.blur();
    act();
  };
  return el("button", { type: "button", ...options, on: { click } }, label, key ? [" ", kbd(key)] : []);
}

/** Tell a screen reader. */
export function say(text) {
  $("said").textContent = text;
}

/** A text in both forms, of which the page shows one. `html` was cleaned by the server. */
export function text(shown) {
  const rich = el("div", { class: "rich" });
  rich.innerHTML = shown.html;
  for (const block of rich.querySelectorAll("pre")) block.tabIndex = 0; // which may scroll
  return el("div", { class: "text", dir: "auto" }, rich, el("pre", { class: "plain" }, shown.plain));
}

const ENDINGS = { 1: "st", 2: "nd", 3: "rd" }; // codespell:ignore nd

export function ordinal(rank) {
  const number = rank + 1;
  const teens = number % 100 > 10 && number % 100 < 14;
  return `${number}${teens ? "th" : (ENDINGS[number % 10] ?? "th")}`;
}

export function uuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16)); // randomUUID is for secure origins alone
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** True if a key that was pressed belongs to a field in which somebody writes. */
export const writes = (target) => target instanceof HTMLTextAreaElement || target.matches?.("input[type=text]");

/** Kept in the browser, as far as it lets us. */
export const kept = {
  get(key) {
    try {
      return JSON.parse(localStorage.getItem(key));
    } catch {
      return null;
    }
  },
  set(key, value) {
    try {
      if (value === null) localStorage.removeItem(key);
      else localStorage.setItem(key, JSON.stringify(value));
    } catch {
      // a browser that keeps nothing: a reload then begins the item anew
    }
  },
};
