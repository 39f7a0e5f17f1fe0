// The organiser's page: how far the annotators are, how fast, and how well they agree.

import { $, el } from "./dom.js";

const EVERY_MS = 5000;
const percent = (share) => (share === null ? "–" : `${Math.round(100 * share)} %`);
const number = (value, unit = "") => (value === null ? "–" : `${Math.round(value)}${unit}`);

async function load() {
  try {
    const answer = await fetch("/api/stats");
    if (!answer.ok) throw new Error("This link is no longer valid. Open the one that the server has printed.");
    draw(await answer.json());
    $("trouble").hidden = true;
  } catch (problem) {
    $("trouble").textContent = problem instanceof TypeError ? "The server cannot be reached." : problem.message;
    $("trouble").hidden = false;
  }
  setTimeout(load, EVERY_MS);
}

function draw(said) {
  const tiles = [
    [said.items, "items"], [said.decisions, "decisions"], [said.missing, "still wanted"], [said.annotators.length, "annotators"],
  ];
  if (said.gold) tiles.push([said.gold, "items with known answers"]);
  const parts = [el("div", { class: "tiles" }, ...tiles.map(([value, name]) => tile(value, name)))];
  parts.push(
    table(
      "Annotators. A pace leaves breaks of over ten minutes out. Known answers: the share of pairs ordered as known.",
      ["", "decisions", "skipped", "seconds each", "an hour", "ties", "first shown is best", "known answers"],
      said.annotators.map((one) => [
        one.name, one.decisions, one.skipped, number(one.median_s), number(one.per_hour), percent(one.ties),
        percent(one.first_shown_best),
        one.gold_pairs ? { text: `${percent(one.gold_right)} of ${one.gold_pairs}`, low: one.gold_right < 0.7 } : "–",
      ])
    )
  );
  if (said.summary.length) parts.push(table("Agreement of all", ["", "value"], said.summary));
  if (said.agreement.length) {
    parts.push(
      table(
        "Agreement of two: the share of pairs of responses on which both say better, worse or tied.",
        ["", "items of both", "pairs", "agreement"],
        said.agreement.map((one) => [`${one.first} and ${one.second}`, one.items, one.pairs, percent(one.agreement)])
      )
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
  return el("div", { class: "scroll", tabIndex: 0, role: "region", "aria-label": caption },
    el("table", {}, el("caption", {}, caption),
      el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))),
      el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map(cell))))));
}

load();
