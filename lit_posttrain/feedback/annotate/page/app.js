// The page: it shows an item, takes the decision in one of four modes, and sends it.

import { $, button, el, kbd, kept, say, text, uuid, writes } from "./dom.js";
import { Pair } from "./pair.js";
import { Rank } from "./rank.js";
import { Rate } from "./rate.js";
import { Outbox, TIMEOUT_MS, trouble } from "./send.js";
import { Write } from "./write.js";

const MODES = { rank: Rank, pair: Pair, rate: Rate, write: Write };
const LOOK_AGAIN_MS = 30000;
const CLAMP_PX = 340; // of a prompt that can be opened

const page = { item: null, changed, complete };
let mode, reason, outbox, last, seconds, since, again;

const options = kept.get("options") ?? {};
const option = (name, otherwise) => options[name] ?? otherwise;
function choose(name, value) {
  options[name] = value;
  kept.set("options", options);
}

async function load() {
  clearTimeout(again);
  let answer;
  try {
    answer = await fetch("/api/item", { signal: AbortSignal.timeout(TIMEOUT_MS) });
  } catch {
    trouble("The server cannot be reached. Nothing is lost; it is tried again.");
    again = setTimeout(load, 2000);
    return;
  }
  if (answer.status === 401) {
    trouble("This link is no longer valid. Open the one that the server has printed.");
    return;
  }
  const said = answer.ok ? await answer.json().catch(() => null) : null;
  if (!said) {
    trouble(`The server has failed (${answer.status}); its console says why. It is tried again.`);
    again = setTimeout(load, 2000);
    return;
  }
  trouble("");
  const whose = `${said.place}:${said.annotator}`;
  if (outbox?.whose !== whose) outbox = new Outbox(whose, acknowledged, refused); // another link was opened meanwhile
  if (outbox.waiting) await outbox.flush();
  else show(said);
}

function acknowledged(said, sent) {
  if (!sent.undoes) kept.set(draftKey(said, sent.item), null);
  show(said, sent.undoes ? "Undone." : "Saved.");
}

async function refused(status, told) {
  await load();
  if (status !== 409) trouble(`Not saved: ${told}.`);
  else say(told);
}

const draftKey = ({ place, annotator }, item) => `draft:${place}:${annotator}:${item}`;

function show(said, told = "") {
  Object.assign(page, { item: said.item, criteria: said.criteria, scale: said.scale });
  Object.assign(page, { annotator: said.annotator, place: said.place });
  last = said.last;
  header(said);
  clearTimeout(again);
  if (!said.item) {
    finished(said);
    return;
  }
  const Mode = MODES[said.mode];
  mode = new Mode(page);
  const draft = kept.get(draftKey(said, said.item.id));
  const before = said.before;
  const begun = before ? Mode.of(before, said.item.order) : draft?.values ?? {};
  const own = before ?? draft ?? {};
  mode.restore(begun);
  seconds = own.seconds ?? 0;
  since = document.visibilityState === "visible" ? performance.now() : null;
  body();
  reason.value = own.reason ?? "";
  mode.draw();
  window.scrollTo(0, 0);
  $("prompt").focus({ preventScroll: true });
  const count = said.item.responses.length;
  say(`${told} ${count ? `${count} responses.` : "A prompt to answer."} ${said.progress.left} left.`);
}

function header(said) {
  const Mode = MODES[said.mode];
  $("task").textContent = Mode.title;
  $("annotator").textContent = said.annotator;
  document.title = `${Mode.title} · ${said.annotator}`;
  const { done, left, pace_s: pace } = said.progress;
  $("bar").max = Math.max(1, done + left);
  $("bar").value = done;
  const parts = [`${done} done`, `${left} left`];
  if (pace !== null && done) parts.push(`${Math.round(pace)} s each`);
  $("progress").textContent = parts.join(" · ");
  const panel = $("guidelines");
  const toggle = document.querySelector("[data-does=guidelines]");
  toggle.hidden = !said.guidelines;
  if (said.guidelines && !panel.dataset.filled) {
    panel.dataset.filled = "yes";
    panel.append(el("h2", {}, "Guidelines"), text({ html: said.guidelines, plain: "" }).firstChild);
    guidelines(option("guidelines", window.matchMedia("(min-width: 70rem)").matches));
  }
  plain(option("plain", false));
}

function body() {
  const { prompt, responses } = page.item;
  const turns = prompt.map((turn) =>
    el("div", { class: `turn ${turn.role}` }, el("span", { class: "role" }, turn.role), text(turn))
  );
  const open = el("div", { class: "turns" }, ...turns);
  const asked = el("section", { class: "prompt", "aria-labelledby": "prompt" },
    el("h2", { id: "prompt", tabIndex: -1 }, prompt.length > 1 ? "Conversation" : "Prompt"), open);
  const cards = responses.map((one, n) => card(one, n + 1));
  const grid = el("div", { class: "responses", id: "responses", "data-count": String(responses.length) }, ...cards);
  const parts = mode.bar();
  $("item").replaceChildren(asked, grid, ...(parts.editor ? [parts.editor] : []));
  if (open.scrollHeight > CLAMP_PX * 1.3 && responses.length) {
    open.classList.add("clamped");
    const all = button("Show all of it", null, () => {
      open.classList.remove("clamped");
      all.remove();
    }, { class: "quiet more" });
    asked.append(all);
    if (prompt.length > 1) open.scrollTop = open.scrollHeight; // the last turn is what is answered
  }
  decision(parts);
}

function card(response, number) {
  const own = mode.card(response, number);
  const acts = Array.isArray(own) ? own : [];
  const thought = response.thought
    ? el("details", { class: "thought" }, el("summary", {}, "Reasoning"), text(response.thought))
    : null;
  return el("article", { class: "card", "aria-label": `Response ${number}` },
    el("header", {}, el("h2", {}, el("span", { class: "unseen" }, "Response "), el("span", { class: "number" }, String(number))),
      el("div", { class: "acts" }, ...acts)),
    thought, text(response), own.below ?? null);
}

function decision({ said, acts }) {
  reason = el("textarea", { rows: 1, placeholder: "Why? (optional)", "aria-label": "Reason, optional", on: { input: changed } });
  const automatic = el("input", {
    type: "checkbox",
    checked: option("automatic", true),
    on: { change: () => choose("automatic", automatic.checked) },
  });
  const row = el("div", { class: "row" },
    button("Undo", "u", undo, { class: "quiet", disabled: !last }),
    button("Skip", "s", () => submit("skipped"), { class: "quiet" }),
    ...acts,
    el("span", { class: "gap" }),
    mode instanceof Write ? null : el("label", { class: "automatic" }, automatic, "Submit when complete ", kbd("a")),
    button("Submit", mode instanceof Write ? "Ctrl ⏎" : "⏎", () => submit("verdict"), { class: "main" }));
  const line = el("div", { class: "said" }, ...said, el("label", { class: "reason" }, reason, kbd("r")));
  $("decision").replaceChildren(line, row);
  $("decision").hidden = false;
}

function finished(said) {
  mode = null;
  const { done } = said.progress;
  const told = done ? `You have decided on ${done} item${done === 1 ? "" : "s"}. Thank you.` : "No item is waiting for you.";
  $("item").replaceChildren(
    el("section", { class: "finished" },
      el("h2", { id: "prompt", tabIndex: -1 }, done ? "All done" : "Nothing to do"),
      el("p", {}, told),
      el("p", { class: "muted" }, "You can close this page. It looks for new items every half a minute."),
      el("div", { class: "row" }, last ? button("Undo the last decision", "u", undo, { class: "quiet" }) : null,
        button("Look again", null, load, { class: "main" })))
  );
  $("decision").hidden = true;
  say(told);
  again = setTimeout(load, LOOK_AGAIN_MS);
}

/** Keep what is decided so far, for a reload. */
function changed() {
  kept.set(draftKey(page, page.item.id), {
    values: mode.draft(), reason: reason.value, seconds: spent(),
  });
}

/** Everything is decided. */
function complete() {
  if (option("automatic", true)) submit("verdict");
}

function spent() {
  return seconds + (since === null ? 0 : (performance.now() - since) / 1000);
}

async function submit(outcome) {
  if (!mode || outbox.busy) return;
  const value = outcome === "verdict" ? mode.value() : {};
  if (typeof value === "string") {
    trouble(value);
    return;
  }
  trouble("");
  await outbox.send("/api/decision", {
    id: uuid(), annotator: page.annotator, item: page.item.id, outcome, order: page.item.order, reason: reason.value, seconds: spent(), ...value,
  });
}

async function undo() {
  if (!last || outbox.busy) return;
  await outbox.send("/api/undo", { id: uuid(), annotator: page.annotator, item: last.item, undoes: last.id });
}

function guidelines(shown) {
  $("guidelines").hidden = !shown;
  document.querySelector("[data-does=guidelines]").setAttribute("aria-pressed", String(shown));
  choose("guidelines", shown);
}

function plain(shown) {
  document.body.classList.toggle("plainly", shown);
  document.querySelector("[data-does=plain]").setAttribute("aria-pressed", String(shown));
  choose("plain", shown);
}

function help() {
  const own = mode ? mode.keys() : [];
  const both = [
    ...own, ["Enter", "Submit"], ["s", "Skip"], ["u", "Undo the last decision"], ["r", "To the reason; Escape leaves it"],
    ["a", "Submit when complete, or by Enter alone"], ["g", "Guidelines"], ["m", "Plain text or Markdown"], ["?", "These keys"],
  ];
  $("keys").replaceChildren(...both.flatMap(([key, what]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, what)]));
  $("help").showModal();
}

const DOES = {
  g: () => {
    if (!$("guidelines").dataset.filled) return;
    guidelines($("guidelines").hidden);
    $("guidelines").scrollIntoView({ block: "nearest" }); // on a phone they stand above the item
  },
  m: () => plain(!document.body.classList.contains("plainly")),
  "?": help,
  s: () => submit("skipped"),
  u: undo,
  r: () => mode && reason.focus(),
  a: () => document.querySelector(".automatic input")?.click(),
};

document.addEventListener("keydown", (event) => {
  if ($("help").open || event.altKey || event.metaKey) return;
  if (event.key === "Escape") {
    document.activeElement.blur();
    return;
  }
  if (event.key === "Enter" && event.ctrlKey) {
    event.preventDefault();
    submit("verdict");
    return;
  }
  if (writes(event.target) || event.ctrlKey || event.repeat) return;
  if (event.key === "Enter") {
    if (event.target.closest("button, a, summary")) return;
    event.preventDefault();
    submit("verdict");
  } else if (mode && !outbox.busy && mode.key(event)) event.preventDefault();
  else if (Object.hasOwn(DOES, event.key)) {
    event.preventDefault();
    DOES[event.key]();
  }
});

document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible") since = performance.now();
  else if (since !== null) {
    seconds = spent();
    since = null;
    if (mode) changed();
  }
});

document.querySelector("[data-does=guidelines]").addEventListener("click", DOES.g);
document.querySelector("[data-does=plain]").addEventListener("click", DOES.m);
document.querySelector("[data-does=help]").addEventListener("click", help);
load();
