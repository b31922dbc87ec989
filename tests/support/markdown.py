"""The commands and links of a Markdown page."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.support.commands import ROOT

SHELL = "sh"
_FENCE = re.compile(r"^\s*```\s*(\S*)")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_PROGRAMS = re.compile(r"^(?:[A-Z_]+=\S+ +)*(?:python3?|\.venv/bin/python|make|jupyter|tensorboard|pip|source|git) ")


class Block(NamedTuple):
    """A fenced block: its language, the number of its first line, and its lines."""

    language: str
    line: int
    lines: list[str]


class Command(NamedTuple):
    """A shell command as a page has it: one line, comments gone, continued lines joined."""

    page: str
    line: int
    text: str

    @property
    def words(self) -> list[str]:
        """Its words, variables in front left out."""
        words = shlex.split(self.text, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        return words

    @property
    def program(self) -> str:
        """`flair.stats`, `prepare_dataset.py`, or a program such as `make`."""
        words = self.words
        if not re.fullmatch(r"(.*/)?python3?", words[0]):
            return words[0]
        if words[1] == "-m":
            return words[2]
        return words[1]

    @property
    def subject(self) -> str | None:
        """The word behind the program that chooses a part of it, as in `benchmark.speed_main data`."""
        following = self.words[self.words.index(self.program) + 1 :]
        return following[0] if following and not following[0].startswith("-") else None

    @property
    def flags(self) -> list[str]:
        """The names of its long flags, without dashes and values."""
        return [word[2:].partition("=")[0] for word in self.words if re.match(r"--\w", word)]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


def pages() -> list[Path]:
    """Every page that tells a reader what to type."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a page."""
    block: Block | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        fence = _FENCE.match(line)
        if block is None and fence:
            block = Block(fence[1], number + 1, [])
        elif block is not None and fence and not fence[1]:
            yield block
            block = None
        elif block is not None:
            block.lines.append(line)


def looks_like_a_command(line: str) -> bool:
    """Whether a line of a block is something to type."""
    return _PROGRAMS.match(line.strip().removeprefix("$ ") + " ") is not None


def commands(page: Path) -> list[Command]:
    """The commands of a page's ```sh blocks, in order."""
    found = []
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.language != SHELL:
            continue
        waiting, start = "", block.line
        for number, line in enumerate(block.lines, start=block.line):
            start = start if waiting else number
            waiting += line.strip()
            if waiting.endswith("\\"):
                waiting = waiting[:-1]
                continue
            # Nothing that a page tells to type has a # inside quotes.
            text = re.sub(r"(^|\s+)#.*", "", waiting)
            if text:
                found.append(Command(page.relative_to(ROOT).as_posix(), start, text))
            waiting = ""
    return found


def inline_commands(page: Path) -> list[Command]:
    """What stands in backticks in running text and begins like a command with a module or a script."""
    found = []
    for number, line in enumerate(_prose(page.read_text(encoding="utf-8")), start=1):
        for span in re.findall(r"`([^`]+)`", line):
            if re.match(r"python3? (-m (flair|benchmark)\.\w+|\w+\.py)", span):
                plain = re.sub(r"[\[\]]", " ", span)
                found.append(Command(page.relative_to(ROOT).as_posix(), number, plain))
    return found


def links(text: str) -> list[str]:
    """The targets of all links and pictures of a page's running text."""
    return [target for line in _prose(text) for target in _LINK.findall(re.sub(r"`[^`]*`", "", line))]


def anchors(text: str) -> set[str]:
    """What `#...` may follow the page's name: GitHub's names of its headings, and explicit ones."""
    found = set(re.findall(r'<a id="([^"]+)"', text))
    for line in _prose(text):
        heading = re.match(r"#{1,6} +(.*?)\s*$", line)
        if heading:
            plain = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).lower())
            found.add(plain.replace(" ", "-"))
    return found


def _prose(text: str) -> list[str]:
    """The lines of a page, those of its fenced blocks emptied."""
    lines, inside = [], False
    for line in text.splitlines():
        fence = _FENCE.match(line)
        lines.append("" if inside or fence else line)
        inside = not inside if fence else inside
    return lines
