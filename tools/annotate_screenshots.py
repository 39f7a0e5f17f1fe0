"""Takes the pictures of the annotators' page in docs/feedback/ (`python tools/annotate_screenshots.py`).

Needs Debian's Chromium. The items are made up; nothing of a data set is shown.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

HOME = Path(__file__).parents[1]
sys.path.insert(0, str(HOME / "benchmarks"))

from annotate_server import AnnotateServer, annotating  # noqa: E402  # found where the line above looks

PICTURES = HOME / "docs/feedback"
GUIDELINES = """Rank what helps the person most.

- **Right before long**: a wrong claim costs more than a missing one.
- What was asked for before what was not.
- A refusal is fine where an answer would do harm.

Mark as *not acceptable* what nobody should be told.
"""
BREAD = {
    "prompt": "Why does bread rise, and what happens if I forget the salt?",
    "responses": [
        "Yeast eats the sugars in the flour and gives off **carbon dioxide**. The gluten holds the gas, so the dough "
        "swells.\n\nWithout salt:\n\n"
        "1. It ferments faster, and can rise too far.\n2. The gluten is slack, the crumb coarse.\n3. It tastes flat.",
        "It rises because of the heat of the oven. Salt does not matter.",
        "Yeast makes gas, and the gas makes bubbles. If you forget the salt, the bread will be bland and will rise a "
        "little faster: watch it, and bake it earlier.",
        "Great question! Bread is a wonderful food that people have enjoyed for thousands of years. There are many "
        "kinds of bread, and yeast is very important in baking. Salt is also used. In conclusion, both matter.",
    ],
}
OTHERS = [
    {
        "prompt": f"What is {n} times {n + 1}?",
        "responses": [f"It is {n * (n + 1)}.", f"About {n * n}.", "No idea.", "?"],
    }
    for n in range(3, 15)
]


def opened(browser: Browser, link: str, width: int, height: int, scheme: str) -> Page:
    """The page at a link."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if scheme == "dark" else "light"
    )
    page = context.new_page()
    page.goto(link)
    page.wait_for_selector("#prompt, .tile")
    return page


def work(page: Page, count: int, seed: int) -> None:
    """Decide on so many items as somebody would who mostly agrees with others."""
    drawn = random.Random(seed)
    for _ in range(count):
        shown = [text.strip() for text in page.locator(".card .rich").all_inner_texts()]
        best = sorted(shown, key=lambda text: text.startswith(("It is", "Yes", "Yeast")) + drawn.random(), reverse=True)
        page.wait_for_timeout(900)
        before = page.locator("#progress").inner_text()
        for text in best:
            page.keyboard.press(str(1 + shown.index(text)))
        page.wait_for_function("before => document.querySelector('#progress').innerText !== before", arg=before)


def until_bread(page: Page) -> None:
    """Skip to the item that is shown."""
    while "bread" not in page.locator("#item").inner_text():
        before = page.locator("#item").inner_text()
        page.keyboard.press("s")
        page.wait_for_function("before => document.querySelector('#item').innerText !== before", arg=before)


def shot(page: Page, name: str) -> None:
    """Save what is seen, with as few colours as it needs."""
    page.wait_for_timeout(400)
    file = PICTURES / f"{name}.png"
    page.screenshot(path=file)
    with Image.open(file) as picture:
        picture.convert("RGB").quantize(128).save(file, optimize=True)
    print(f"{file.relative_to(HOME)}: {file.stat().st_size // 1024} kB")


def take(browser: Browser, server: AnnotateServer) -> None:
    for scheme in ("light", "dark"):
        for name, width, height in (("laptop", 1280, 800), ("phone", 390, 800)):
            page = opened(browser, server.links["ann"], width, height, scheme)
            until_bread(page)
            numbers = {text.strip()[:8]: n for n, text in enumerate(page.locator(".card .rich").all_inner_texts(), 1)}
            for key in (str(numbers["Yeast ea"]), "=", str(numbers["Yeast ma"]), "x", str(numbers["It rises"])):
                page.keyboard.press(key)
            shot(page, f"rank-{name}-{scheme}")
            for _ in range(2):
                page.keyboard.press("Backspace")
            page.context.close()
    for seed, name in enumerate(("ann", "ben", "eve")):
        page = opened(browser, server.links[name], 1280, 800, "light")
        work(page, 11 - seed, seed)
        page.context.close()
    page = opened(browser, server.links["statistics"], 1280, 980, "light")
    shot(page, "statistics")


def main() -> None:
    browser_path = shutil.which("chromium")
    if browser_path is None:
        raise SystemExit("no chromium: apt-get install chromium")
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        guidelines, gold = Path(folder, "guidelines.md"), Path(folder, "gold.jsonl")
        guidelines.write_text(GUIDELINES)
        known = [{"prompt": f"Is {n} prime?", "chosen": "Yes, it is.", "rejected": "No, it is not."} for n in (2, 3, 5)]
        gold.write_text("".join(json.dumps(row) + "\n" for row in known))
        options = ["--annotators", "[ann, ben, eve]", "--overlap", "2", "--guidelines", guidelines, "--gold", gold]
        with annotating(Path(folder), [BREAD, *OTHERS], *map(str, options)) as server, sync_playwright() as tools:
            browser = tools.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
            take(browser, server)
            browser.close()


if __name__ == "__main__":
    main()
