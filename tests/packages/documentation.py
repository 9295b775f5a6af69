"""Fenced blocks of Markdown pages: what they are, and whether output is what a page shows."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
RUN = ("sh", "python", "console")
"""Languages of blocks that are executed. A ``text`` block shows what the block before it prints."""
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\s*$")
_NOTE = re.compile(r"^<!-- (?P<kind>not run|numbers vary)(?:: (?P<text>.+))? -->$")
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
RELATIVE, ABSOLUTE = 0.05, 0.05
"""How far a printed number may lie from the shown one: instruction sets round differently."""


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: Path
    line: int
    """Number of the first line inside the fence, from 0."""
    language: str
    text: str
    not_run: str | None
    """Why no test runs it; None for a block that runs."""
    numbers_vary: bool

    def __str__(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line + 1}"


def pages() -> list[Path]:
    """Return the README and the pages of ``docs/``."""
    docs = sorted((REPOSITORY / "docs").glob("*.md"))
    return [REPOSITORY / "README.md", *(page for page in docs if not page.is_symlink())]


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of a page. A comment in the line before describes a block."""
    lines = page.read_text(encoding="utf-8").split("\n")
    found, number = [], 0
    while number < len(lines):
        opening = _FENCE.match(lines[number])
        if opening is None:
            assert "```" not in lines[number], f"{page}:{number + 1}: unreadable fence"
            number += 1
            continue
        indent, first = opening["indent"], number + 1
        last = next(n for n in range(first, len(lines)) if lines[n].rstrip() == f"{indent}```")
        notes = _notes_before(lines, number)
        found.append(
            Block(
                page,
                first,
                opening["language"],
                "\n".join(line.removeprefix(indent) for line in lines[first:last]),
                notes.get("not run"),
                "numbers vary" in notes,
            )
        )
        number = last + 1
    return found


def _notes_before(lines: list[str], number: int) -> dict[str, str | None]:
    notes: dict[str, str | None] = {}
    while number and (note := _NOTE.match(lines[number - 1].strip())):
        notes[note["kind"]] = note["text"]
        number -= 1
    return notes


def commands_of(block: Block) -> list[tuple[str, str]]:
    """Return the commands of a block of shell, each with the output shown after it."""
    if block.language == "sh":
        text = re.sub(r"\\\n\s*", "", block.text)
        return [(line, "") for line in text.split("\n") if line and not line.startswith("#")]
    commands: list[tuple[str, str]] = []
    for part in re.split(r"^\$ ", block.text, flags=re.M)[1:]:
        command, _, output = part.partition("\n")
        commands.append((command, output))
    return commands


def differences(shown: str, printed: str, *, numbers_vary: bool) -> str:
    """Return what differs between shown and printed output, empty if nothing does.

    Spaces and rules are compared as one, numbers within a tolerance, durations not at all. A line
    ``…`` in the shown output stands for any lines.
    """
    expected = [_reduced(line) for line in shown.strip().split("\n")]
    found = [_reduced(line) for line in printed.strip().split("\n")]
    if _agree(expected, found, numbers_vary):
        return ""
    return f"the page shows\n\n{shown.strip()}\n\nbut this is printed\n\n{printed.strip()}\n"


def _reduced(line: str) -> str:
    line = re.sub(r"\bin \d+(\.\d+)? s\b", "in … s", re.sub("─+", "─", line))
    return re.sub(r"\s+", " ", line).strip()


def _agree(expected: list[str], found: list[str], numbers_vary: bool) -> bool:
    if not expected:
        return not found
    if expected[0] == "…":
        return any(_agree(expected[1:], found[n:], numbers_vary) for n in range(len(found) + 1))
    if not found or not _alike(expected[0], found[0], numbers_vary):
        return False
    return _agree(expected[1:], found[1:], numbers_vary)


def _alike(expected: str, found: str, numbers_vary: bool) -> bool:
    if _NUMBER.sub("#", expected) != _NUMBER.sub("#", found):
        return False
    pairs = zip(_NUMBER.findall(expected), _NUMBER.findall(found), strict=True)
    return numbers_vary or all(
        math.isclose(float(a), float(b), rel_tol=RELATIVE, abs_tol=ABSOLUTE) for a, b in pairs
    )
