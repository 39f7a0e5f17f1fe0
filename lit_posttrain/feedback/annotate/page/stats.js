// The organiser's page: how far the annotators are, how fast, and how well they agree.

import { $, el } from "./dom.js";

const EVERY_MS = 5000;
const TIMEOUT_MS = 60000;
const percent = (share) => (share === null ? "–" : `${Math.round(100 * share)} %`);
const estimate = (one) =>
  one === null ? "–" : `${one.value.toFixed(2)} (${one.low.toFixed(2)} to ${one.high.toFixed(2)})`;
const share = (one) => (one === null ? "–" : percent(one.value));
const number = (value, unit = "") => (value === null ? "–" : `${Math.round(value)}${unit}`);

async function load() {
  try {
    const answer = await fetch("/api/stats", { signal: AbortSignal.timeout(TIMEOUT_MS) });
    if (answer.status === 401) throw new Error("This link is no longer valid. Open the one that the server has printed.");
    if (!answer.ok) throw new Error(`The server has failed (${answer.status}); its console says why.`);
    draw(await answer.json());
    $("trouble").hidden = true;
  } catch (problem) {
    $("trouble").textContent = problem instanceof TypeError || problem.name === "TimeoutError" ? "The server cannot be reached." : problem.message;
    $("trouble").hidden = false;
  }
  setTimeout(load, EVERY_MS);
}

function draw(said) {
  const tiles = [
    [said.items, "items"], [said.decisions, "decisions"], [said.missing, "still wanted"],
  ];
  if (said.gold) tiles.push([said.gold, "items with known answers"]);
  const parts = [el("div", { class: "tiles" }, ...tiles.map(([value, name]) => tile(value, name)))];
  const about =
    "Annotators. Pace leaves breaks of over ten minutes out. First and longer: how often what is shown first, and what " +
    "is longer, is said to be better, of all pairs of responses. Known: pairs ordered as known.";
  const heads = ["", "decisions", "skipped", "seconds each", "an hour", "ties", "first", "longer", "known"];
  const rows = said.annotators.map((one) => [
    one.name, one.decisions, one.skipped, number(one.median_s), number(one.per_hour), percent(one.ties),
    share(one.first_position), share(one.longer),
    one.gold_pairs ? { text: `${percent(one.gold_right)} of ${one.gold_pairs}`, low: one.gold_right < 0.7 } : "–",
  ]);
  parts.push(table(about, heads, rows));
  if (said.people) {
    const { agreement, alpha, fleiss } = said.people;
    parts.push(
      table("All together, with intervals of 95 %. Values of alpha and kappa: 1 is agreement, 0 is chance.", ["", "value", "pairs"], [
        ["Agreement", estimate(agreement), agreement?.n ?? "–"],
        ["Krippendorff's alpha", estimate(alpha), alpha?.n ?? "–"],
        ["Fleiss' kappa", estimate(fleiss), fleiss?.n ?? "–"],
      ])
    );
  }
  if (said.between.length) {
    parts.push(
      table("Every two: better, worse or tied, of the pairs of responses that both have ranked.", ["", "pairs", "agreement", "Cohen's kappa"],
        said.between.map((one) => [`${one.one} and ${one.other}`, one.agreement.n, share(one.agreement), estimate(one.kappa)]))
    );
  }
  $("board").replaceChildren(...parts);
  $("when").textContent = `at ${new Date().toLocaleTimeString()}`;
}

const tile = (value, name) => el("div", { class: "tile" }, el("b", {}, String(value)), el("span", {}, name));

function table(caption, heads, rows) {
  const cell = (value, n) =>
    n === 0
      ? el("th", { scope: "row" }, String(value))
      : el("td", { class: value?.low ? "low" : undefined }, String(value?.text ?? value));
  const title = el("p", { class: "muted", id: `about-${heads.join("-").replaceAll(/\W/g, "")}` }, caption);
  const body = el("table", { "aria-labelledby": title.id },
    el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map(cell)))));
  return el("section", {}, title,
    el("div", { class: "scroll", tabIndex: 0, role: "region", "aria-labelledby": title.id }, body));
}

load();
