"""Texts from models are shown whole and do nothing."""

from __future__ import annotations

import re

import pytest

from lit_posttrain.feedback.annotate.render import rendered, visible


def test_markdown_is_rendered() -> None:
    html = rendered("# One\n\n**two** ~~three~~\n\n- four\n\n```py\nif x < 5:\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |")
    for part in ("<h3>One</h3>", "<strong>two</strong>", "<s>three</s>", "<li>four</li>", "if x &lt; 5:", "<td>1</td>"):
        assert part in html


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "![a](http://evil.example/x.png)",
        '![a](<http://evil.example/"onload="x>)',
        "![a][b]\n\n[b]: http://evil.example/x.png",
        "[a](javascript:alert(1))",
        "[a](JaVaScRiPt:alert(1))",
        "[a](data:text/html,<script>alert(1)</script>)",
        "[a](vbscript:x)",
        "<a href='javascript:alert(1)'>a</a>",
        "<svg/onload=alert(1)>",
        "<style>body{background:url(http://evil.example)}</style>",
        "<iframe src=http://evil.example></iframe>",
        "<form action=http://evil.example><input name=a></form>",
        "<base href=http://evil.example>",
        "`<script>`\n\n    <script>alert(1)</script>",
        "[a](http://b.example 'x\" onmouseover=\"alert(1)')",
        "<!-- <script>alert(1)</script> -->",
        '| a |\n|---|\n| <td onclick="x"> |',
    ],
)
def test_nothing_runs_or_is_loaded(text: str) -> None:
    html = rendered(text)
    tags = re.findall(r"<(\w+)([^>]*)>", html)
    assert {name for name, _ in tags} <= {"p", "br", "a", "code", "pre", "table", "thead", "tbody", "tr", "th", "td"}
    for name, attributes in tags:
        given = dict(re.findall(r'(\w+)="([^"]*)"', attributes))
        assert set(given) <= ({"href", "title", "rel"} if name == "a" else set())
        assert given.get("href", "http://").startswith("http://")


def test_what_was_html_or_an_image_is_still_read() -> None:
    html = rendered("<b>bold</b> ![a cat](http://x.example/cat.png)")
    assert "&lt;b&gt;bold&lt;/b&gt;" in html
    assert "[image: a cat http://x.example/cat.png]" in html


def test_verses_keep_their_lines() -> None:
    assert rendered("Roses are red,\nviolets are blue.") == "<p>Roses are red,<br>\nviolets are blue.</p>\n"


def test_links_say_nothing_to_the_other_site() -> None:
    assert rendered("[a](http://b.example)") == (
        '<p><a href="http://b.example" rel="noopener noreferrer nofollow">a</a></p>\n'
    )


def test_hidden_characters_are_marks() -> None:
    text = "a\u202eb\u200bc\x07d\x1b[31me\U000e0041f\ud800g\x00"
    assert visible(text) == "a⟦U+202E⟧b⟦U+200B⟧c⟦U+0007⟧d⟦U+001B⟧[31me⟦U+E0041⟧f⟦U+D800⟧g⟦U+0000⟧"
    assert "⟦U+202E⟧" in rendered(text)


def test_ordinary_writing_is_left_alone() -> None:
    text = "tab\there, שלום, سلام, 👩‍👩‍👧, é\nnext"
    assert visible(text) == text
    assert visible("a\r\nb\rc") == "a\nb\nc"


def test_a_very_long_text_is_shown_as_it_is() -> None:
    assert rendered("<" * 300_000).count("&lt;") == 300_000


def test_deeply_nested_text_does_not_fail() -> None:
    for text in ("[" * 20_000, "> " * 3_000 + "x", "*a " * 20_000, "- " * 3_000 + "a"):
        assert rendered(text)


@pytest.mark.parametrize(
    "hidden", [*"\u2061\u180e\u200e\u206a\ufff9\u115f\u3164\uffa0\u034f", "\U000e0101", "\U000e0041"]
)
def test_what_cannot_be_seen_is_marked(hidden: str) -> None:
    assert visible(f"a{hidden}b") == f"a⟦U+{ord(hidden):04X}⟧b"


def test_joiners_of_scripts_and_emoji_stay() -> None:
    assert visible("\u200d\u200c\ufe0f") == "\u200d\u200c\ufe0f"


@pytest.mark.parametrize("address", ["/stats", "//elsewhere.example/x", "stats", "?token=x", "#top", "https:stats"])
def test_links_without_a_whole_address_lead_nowhere(address: str) -> None:
    assert "href" not in rendered(f"[here]({address})")
    assert 'href="https://elsewhere.example/"' in rendered("[here](https://elsewhere.example/)")
