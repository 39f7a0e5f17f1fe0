"""Write docs/templates.md: what each chat template that TRL carries takes. Run it from anywhere in a checkout."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from helpers.published import Outcome, outcomes, published  # noqa: E402  # its path is just above
from helpers.talks import TALKS  # noqa: E402

_MARKS = {
    "right": "yes",
    "as generated": "gen",
    "left out": "part",
    "refused": "no",
    "impossible": "-",
    "wrong": "WRONG",
}
_WORST = ["wrong", "refused", "left out", "as generated", "right", "impossible"]
_INTRODUCTION = """\
# Chat templates

Every model is trained with its own chat template, or with the one named by `--model.policy.chat_template`. Training
shows the model exactly what it sees in use: the prompt of each assistant turn is, token for token,
`apply_chat_template(messages[:k], add_generation_prompt=True)`, and the rest of the turn, with its end token, is
trained. If a template makes that impossible the row is refused with the reason. What a template leaves out (thoughts,
tools, keys of messages) is counted in the audit.

- **Trained as generated**: some templates render a finished conversation differently from the prompt that generation
  gets (DeepSeek's and Nemotron's `<think>`, Gemma's empty channel, Mistral's tools before the last user turn). Such a
  turn is trained behind the prompt of generation. The audit counts these rows and names the template variables that
  make both agree, if there are any. If the prompt opens `<think>` and the template drops the thought of a turn, the
  thought is trained and closed with `</think>`, also if it is empty or stands in the content.
- **Template variables**: `--model.policy.template_variables '{enable_thinking: false}'` sets them for training,
  rollouts, validation and every later use of the checkpoint, and writes them into the template of an exported folder.
  A row's own `chat_template_kwargs` override them. A variable that the template does not use is an error. The texts
  "true" and "false" become booleans if the template only tests the variable; they stay text if it prints or compares
  it.
- **Spelling**: content as a list of parts, arguments of tool calls as text, and thoughts under `reasoning_content`,
  `thinking` or `reasoning` are converted to what the template expects.
- **What is left out** is found by marking every piece of a conversation and looking for the marks in the rendered
  text. A trained turn that lost one of its calls is refused. Lost thoughts, tools, tool results and earlier turns are
  counted.
- **`{% generation %}`** narrows a turn down to what it marks. The generation prompt is never trained. What generation
  has to write before the marked words is trained, and so is an end token right behind them.
- **Ends**: if a turn has no end token of its own, the special token that follows it is its end (GLM's `<|user|>`).
- **Dates**: a template that writes the date writes the same one in all of the data, that of the first tokenisation,
  which the cache keeps. In use it writes the current date, which no data can hold.
- **Reward models** read conversations as rendered: for them nothing is trained as generated.

## What the templates take

"""


def page() -> str:
    """The page with the table of the installed TRL's templates."""
    import trl

    shows = list(dict.fromkeys(talk.shows for talk in TALKS))
    rows: list[str] = []
    counts: Counter[str] = Counter()
    for path in published():
        made = outcomes(path)
        found = [(talk.shows, made[talk.name]) for talk in TALKS]
        counts.update(one.kind for _, one in found)
        cells = [_cell([one for kind, one in found if kind == column]) for column in shows]
        rows.append(f"| {path.stem} | " + " | ".join(cells) + " |")
    possible = counts.total() - counts["impossible"]
    trained = possible - counts["refused"] - counts["wrong"]
    summary = (
        f"{len(rows)} templates of TRL {trl.__version__} with {len(TALKS)} conversations each, written by\n"
        f"`tools/templates_table.py`. Of {possible:,} cases that transformers renders as text {trained:,} "
        f"({trained / possible:.1%}) are trained on,\n{counts['refused']} refused, {counts['wrong']} wrong.\n\n"
        "`yes`: all is trained. `gen`: as generated, see above. `part`: the template leaves something out, which the\n"
        "audit says. `no`: refused, with the reason. `-`: transformers refuses it too. A column is as good as the\n"
        "worst of its conversations.\n\n"
    )
    head = f"| template | {' | '.join(shows)} |\n|{'---|' * (len(shows) + 1)}\n"
    return _INTRODUCTION + summary + head + "\n".join(rows) + "\n"


def _cell(found: list[Outcome]) -> str:
    return _MARKS[min((one.kind for one in found), key=_WORST.index)]


if __name__ == "__main__":
    (ROOT / "docs" / "templates.md").write_text(page(), encoding="utf-8")
