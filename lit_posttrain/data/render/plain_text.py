"""Plain text for tokenizers: special tokens that the text has already are not added twice."""

from __future__ import annotations

from lit_posttrain.tokenizer import Tokenizer


class PlainText:
    """Removes from plain text what one tokenizer adds to it, so that it occurs once. opening: the token that it writes
    before any text, such as <s>; empty for none."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        added, bare = (tokenizer("a", add_special_tokens=how)["input_ids"] for how in (True, False))
        first = added[0] if added and bare and added[0] != bare[0] else None
        self.opening = "" if first is None else str(tokenizer.convert_ids_to_tokens(first))
        self._end: str = tokenizer.eos_token or ""

    def opened_once(self, text: str) -> str:
        """A text without opening tokens at its beginning."""
        while self.opening and text.startswith(self.opening) and len(text) > len(self.opening):
            text = text[len(self.opening) :]
        return text

    def ended_once(self, text: str) -> str:
        """A text without end tokens at its end, and without the white space around them."""
        while self._end and text.rstrip().endswith(self._end) and len(text.strip()) > len(self._end):
            text = text.rstrip()[: -len(self._end)]
        return text
