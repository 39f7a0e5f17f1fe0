"""What stands in README.md, CONTRIBUTING.md and docs/: commands, code, files and links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
_FENCE = re.compile(r"^```(\w*) *([\w./-]*)$")


@dataclass(frozen=True)
class Block:
    """A fenced block: ```bash commands, ```python code, or a file, whose name stands behind the language (```yaml
    mine.yaml)."""

    page: Path
    line: int  # of its first line of text
    language: str
    file: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command of a page, or a block of Python, which is one too."""

    place: str  # such as docs/data.md:12
    text: str
    language: str = "bash"
    in_table: bool = False

    @property
    def words(self) -> list[str]:
        """As a shell splits them."""
        return shlex.split(self.text, comments=True) if self.language == "bash" else [self.text]

    def __str__(self) -> str:
        short = "python" if self.language == "python" else re.sub(r"[^\w.+=]+", "-", self.text)
        return f"{self.place}-{short.removeprefix('lit-posttrain-')[:60].strip('-')}"


def place(file: Path, line: int) -> str:
    """A line as people name it: docs/data.md:12."""
    return f"{file.relative_to(ROOT)}:{line}"


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page."""
    opened: tuple[int, str, str] | None = None
    text: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if opened is not None and line != "```":
            text.append(line)
        elif opened is not None:
            yield Block(page, *opened, "\n".join(text) + "\n")
            opened, text = None, []
        elif line.startswith("```"):
            fence = _FENCE.match(line)
            assert fence, f"{place(page, number)}: {line!r} opens no block of a known form"
            opened = (number + 1, fence.group(1), fence.group(2))
    assert opened is None, f"{page}: a block that begins at line {opened and opened[0]} does not end"


def commands(page: Path) -> list[Command]:
    """The commands and the Python of a page, in blocks and in tables, in their order."""
    found = [*_in_blocks(page), *(command for command in inline_commands(page) if command.in_table)]
    return sorted(found, key=lambda command: int(command.place.rpartition(":")[2]))


def _in_blocks(page: Path) -> Iterator[Command]:
    """Lines that end with a backslash are joined."""
    for block in blocks(page):
        if block.language == "python" and not block.file:
            yield Command(place(page, block.line), block.text, "python")
        if block.language != "bash" or block.file:
            continue
        start, command = block.line, ""
        for number, line in enumerate(block.text.splitlines(), block.line):
            command += line.removesuffix("\\")
            if line.endswith("\\"):
                continue
            if shlex.split(command, comments=True):
                yield Command(place(page, start), " ".join(command.split()))
            start, command = number + 1, ""


def inline_commands(page: Path) -> Iterator[Command]:
    """The commands between backticks, within sentences and tables."""
    lines = _outside_blocks(page).splitlines()
    for number, code in inline_code(page):
        if re.match(r"(lit-posttrain|python|make|pip) ", code):
            yield Command(place(page, number), code, in_table=lines[number - 1].startswith("|"))


def config_commands(file: Path) -> Iterator[Command]:
    """The commands in the header of a config."""
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("#   "):
            yield Command(place(file, number), line.removeprefix("#").strip())


def inline_code(page: Path) -> Iterator[tuple[int, str]]:
    """Everything between backticks within sentences and tables, with its line."""
    text = _outside_blocks(page)
    for found in re.finditer(r"`([^`]+)`", text):
        yield text.count("\n", 0, found.start()) + 1, " ".join(found.group(1).split())


def _outside_blocks(page: Path) -> str:
    """The text of a page with blank lines in place of fenced and indented blocks."""
    fenced, kept = False, []
    for line in page.read_text(encoding="utf-8").splitlines():
        fence = line.startswith("```")
        kept.append("" if fenced or fence or line.startswith("    ") else line)
        fenced ^= fence
    return "\n".join(kept)
