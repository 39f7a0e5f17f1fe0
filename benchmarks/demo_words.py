"""Makes the built-in prompts of on-policy configs (`python benchmarks/demo_words.py`).

demo_words: which word of four stands second? The held-out prompts have no word in common with those for training,
and every word of theirs is as often the answer: a constant answer is right for one in twenty, and a policy has to look.
demo_sums: word problems with an answer to check, for grpo_gsm8k.yaml as it stands.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

TRAINED = [
    "apple",
    "river",
    "stone",
    "cloud",
    "tiger",
    "violin",
    "garden",
    "rocket",
    "window",
    "pepper",
    "candle",
    "forest",
    "monkey",
    "silver",
    "bridge",
    "coffee",
    "planet",
    "orange",
    "jacket",
    "turtle",
    "bottle",
    "camera",
    "desert",
    "engine",
    "finger",
    "guitar",
    "hammer",
    "island",
    "jungle",
    "kitten",
    "ladder",
    "market",
    "needle",
    "office",
    "pencil",
    "rabbit",
    "saddle",
    "tunnel",
    "valley",
    "winter",
]
HELD_OUT = [
    "anchor",
    "basket",
    "carpet",
    "dragon",
    "eagle",
    "feather",
    "glove",
    "honey",
    "iron",
    "jewel",
    "kettle",
    "lemon",
    "mirror",
    "nest",
    "ocean",
    "piano",
    "quilt",
    "ribbon",
    "spoon",
    "table",
]
SHOWN = ["lamp", "chair", "horse", "cheese", "zebra", "yacht", "xylophone", "umbrella"]


SUMS: tuple[tuple[str, Callable[[int, int], int]], ...] = (
    ("{a} birds sit on a roof and {b} more come. How many birds sit there now?", lambda a, b: a + b),
    ("A baker makes {a} trays of {b} rolls. How many rolls are there?", lambda a, b: a * b),
    ("Of {c} tickets {a} are sold. How many are left?", lambda a, b: b),
    ("Mia walks {a} km a day for {b} days. How many km does she walk?", lambda a, b: a * b),
)


def question(words: list[str], chance: random.Random, answer: str | None = None) -> tuple[str, str]:
    """A question and its answer, one that is given or any."""
    answer = answer or chance.choice(words)
    first, *others = chance.sample([word for word in words if word != answer], 3)
    return f"{', '.join([first, answer, *others])}: the second one?", answer


def rows(words: list[str], count: int, seed: int) -> list[dict[str, object]]:
    """Prompts with two solved examples."""
    chance = random.Random(seed)
    made: list[dict[str, object]] = []
    for _ in range(count):
        prompt = []
        for _ in range(2):
            asked, answer = question(SHOWN, chance)
            prompt += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        asked, answer = question(words, chance, words[len(made) % len(words)])
        made.append({"prompt": [*prompt, {"role": "user", "content": asked}], "answer": answer})
    return made


def sums(count: int) -> list[dict[str, object]]:
    """Word problems with worked answers."""
    chance = random.Random(3)
    made: list[dict[str, object]] = []
    for number in range(count):
        text, right = SUMS[number % len(SUMS)]
        a, b = chance.randint(2, 9), chance.randint(2, 9)
        made.append({"question": text.format(a=a, b=b, c=a + b), "answer": f"#### {right(a, b)}"})
    return made


def write(name: str, made: list[dict[str, object]]) -> None:
    """A built-in file."""
    home = Path(__file__).parent.parent / "lit_posttrain" / "builtin"
    (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")


if __name__ == "__main__":
    write("demo_sums", sums(60))
    for name, words, count, seed in (("demo_words", TRAINED, 400, 1), ("demo_words_heldout", HELD_OUT, 60, 2)):
        write(name, rows(words, count, seed))
