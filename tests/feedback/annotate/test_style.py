"""The page's colours, light and dark, have the contrast that WCAG 2 AA asks for."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

STYLE = (files("lit_posttrain.feedback.annotate") / "page/style.css").read_text(encoding="utf-8")
LIGHT, DARK = (
    dict(re.findall(r"--([\w-]+): (#\w{6});", block)) for block in re.findall(r":root \{(.*?)\n\s*\}", STYLE, re.S)[:2]
)
TEXTS = [
    *((text, ground) for text in ("ink", "muted") for ground in ("ground", "surface", "raised", "accent-soft")),
    ("accent-ink", "accent"),
    ("accent", "surface"),
    ("bad", "bad-soft"),
    ("bad", "ground"),
]
EDGES = [("edge", "surface"), ("edge", "raised"), ("accent", "ground"), ("accent", "raised"), ("bad", "surface")]


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
    return sum(weight * one for weight, one in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_contrast(colours: dict[str, str]) -> None:
    for least, pairs in ((4.5, TEXTS), (3.0, EDGES)):
        for one, other in pairs:
            found = contrast(colours[one], colours[other])
            assert found >= least, f"{one} on {other}: {found:.2f}"


def test_contrast_is_computed_as_wcag_says() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
