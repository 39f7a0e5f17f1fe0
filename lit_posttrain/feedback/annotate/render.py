"""Texts of prompts and responses as HTML that is safe to show: nothing in it runs, is loaded, or is hidden.

Markdown is rendered by markdown-it, with HTML in it shown as text and line ends kept, and cleaned by nh3. Images are
shown as their description and address. Characters that change how other text is read, or that cannot be seen, become
visible marks.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererProtocol
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

_LONGEST = 200_000  # characters that are read as Markdown; a longer text is shown as it is
_HIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"  # control characters, apart from tab and line ends
    "\u200b\u2060-\u2064\ufeff\u00ad\u034f\u17b4\u17b5\u180e\ufff9-\ufffb"  # without width
    "\u115f\u1160\u3164\uffa0"  # fillers
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u206f"  # marks and overrides of the direction of text
    "\ud800-\udfff"  # halves of surrogate pairs
    "\U000e0000-\U000e0fff]"  # tags and selectors of variants, in which words can be hidden
)
_TAGS = {"p", "br", "hr", "strong", "em", "s", "a", "code", "pre", "blockquote", "ul", "ol", "li"}
_TAGS |= {"h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td"}
_ATTRIBUTES = {"a": {"href", "title"}, "ol": {"start"}}
_ADDRESS = re.compile(r"(https?://|mailto:)", re.IGNORECASE)
_TOP_HEADING = 3  # the page has headings of its own above


def visible(text: str) -> str:
    """The text with each hidden character as a mark, such as ⟦U+202E⟧, and its line ends as newlines."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _HIDDEN.sub(lambda found: f"⟦U+{ord(found[0]):04X}⟧", text)


def rendered(text: str) -> str:
    """Markdown as clean HTML."""
    shown = visible(text)
    if len(shown) > _LONGEST:
        return f"<pre>{html.escape(shown)}</pre>"
    return nh3.clean(
        _markdown().render(shown),
        tags=_TAGS,
        attributes=_ATTRIBUTES,
        attribute_filter=_whole_address,
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
    )


def _whole_address(tag: str, attribute: str, value: str) -> str | None:
    """Without links to the page's own server, and those that say where they lead only with its address."""
    return value if attribute != "href" or _ADDRESS.match(value) else None


@cache
def _markdown() -> MarkdownIt:
    made = MarkdownIt("commonmark", {"html": False, "breaks": True, "maxNesting": 100}).enable(
        ["table", "strikethrough"]
    )
    made.add_render_rule("image", _image)
    made.add_render_rule("heading_open", _heading)
    made.add_render_rule("heading_close", _heading)
    return made


def _image(self: RendererProtocol, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    """An image in words: what it shows and where it lies."""
    token: Any = tokens[index]
    return f"<code>[image: {html.escape(token.content)} {html.escape(str(token.attrs.get('src', '')))}]</code>"


def _heading(self: RendererProtocol, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    token = tokens[index]
    level = min(6, int(token.tag[1:]) + _TOP_HEADING - 1)
    return f"<h{level}>" if token.nesting == 1 else f"</h{level}>\n"
