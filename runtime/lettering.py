"""Fonts for texts in any script, and what is said where no font has a letter."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_FIRST = "DejaVu Sans"
"""Font that comes with matplotlib."""
_PREFERRED = (
    *("Noto Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans JP", "Noto Sans SC"),
    *("Noto Sans KR", "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari"),
    *("Noto Sans Thai", "IPAexGothic", "IPAGothic", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei"),
    *("Droid Sans Fallback", "Hiragino Sans", "PingFang SC", "Yu Gothic", "Microsoft YaHei"),
    *("Malgun Gothic", "Arial Unicode MS", "Noto Emoji", "Symbola"),
)
_INVISIBLE = ("Cc", "Cf", "Zl", "Zp", "Mn")
"""Unicode categories of characters that draw nothing of their own."""
_SHAPED_SINCE = (3, 11)
"""First matplotlib that draws text from right to left and joins its letters."""


@dataclass(frozen=True)
class Lettering:
    """The fonts of a picture, and what they cannot draw."""

    families: tuple[str, ...]
    """Fonts in the order in which each letter is looked for."""
    missing: str = ""
    """Letters that no font here has, each once."""
    is_turned: bool = False
    """Whether text that runs from right to left is drawn from left to right."""

    @property
    def notes(self) -> list[str]:
        """Sentences for the reader of the picture; none if every letter is drawn."""
        lines = []
        if self.missing:
            shown = " ".join(f"U+{ord(letter):04X}" for letter in self.missing[:4])
            more = f" and {len(self.missing) - 4} more" if len(self.missing) > 4 else ""
            lines.append(
                f"boxes: no font here has {shown}{more}; to see these letters, install a font "
                "that has them, such as Noto Sans CJK."
            )
        if self.is_turned:
            lines.append(
                "text that runs from right to left is drawn from left to right; matplotlib 3.11 "
                "or later turns it."
            )
        return lines


def lettering_for(texts: Iterable[str]) -> Lettering:
    """Choose fonts that have the letters of ``texts``. matplotlib must be installed."""
    import matplotlib as mpl
    from matplotlib.font_manager import fontManager

    letters = {
        letter
        for text in texts
        for letter in text
        if unicodedata.category(letter) not in _INVISIBLE and not letter.isspace()
    }
    runs_left = any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in letters)
    is_turned = runs_left and _version(mpl.__version__) < _SHAPED_SINCE
    left = _without(letters, _FIRST)
    families = [_FIRST]
    if left:
        # "Last Resort" has a box for every letter there is.
        installed = dict.fromkeys(
            entry.name for entry in fontManager.ttflist if not entry.name.startswith("Last Resort")
        )
        preferred = [name for name in _PREFERRED if name in installed]
        others = [name for name in installed if name not in preferred and name != _FIRST]
        for name in (*preferred, *others):
            rest = _without(left, name)
            if rest != left:
                families.append(name)
                left = rest
            if not left:
                break
    return Lettering(tuple(families), "".join(sorted(left)), is_turned)


def width_of(text: str) -> int:
    """Return the width of a text in letters, of which those of East Asia count twice."""
    return sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text)


def wrapped(text: str, width: int, most: int) -> list[str]:
    """Break a text into at most ``most`` lines of ``width`` letters; an ellipsis ends the rest.

    Lines break at spaces, or within a word that fills a line. East Asian letters count twice.
    """
    lines: list[str] = []
    line = ""
    for word in _pieces(text, width):
        joined = f"{line}{word}"
        if line and width_of(joined.rstrip()) > width:
            lines.append(line.rstrip())
            line = word.lstrip()
        else:
            line = joined
    lines.append(line.rstrip())
    if len(lines) <= most:
        return lines
    last = lines[most - 1]
    while width_of(last) > width - 2:
        last = last[:-1]
    return [*lines[: most - 1], f"{last.rstrip()} …"]


def middle_cut(text: str, width: int) -> str:
    """Shorten a text in its middle to ``width`` letters: both ends tell paths apart."""
    if width_of(text) <= width:
        return text
    start, end = text[: width // 3], text[-width:]
    while width_of(start) > width // 3:
        start = start[:-1]
    while width_of(start) + 1 + width_of(end) > width:
        end = end[1:]
    return f"{start}…{end}"


def _pieces(text: str, width: int) -> list[str]:
    """Split a text after its spaces, and words longer than a line anywhere."""
    pieces: list[str] = []
    for word in text.split(" "):
        rest = f"{word} "
        while width_of(rest.rstrip()) > width:
            count = 1
            while width_of(rest[: count + 1]) <= width:
                count += 1
            pieces.append(rest[:count])
            rest = rest[count:]
        pieces.append(rest)
    return pieces


def _without(letters: set[str], family: str) -> set[str]:
    """Return the letters that a font lacks; all of them where it cannot be read."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    try:
        font = get_font(findfont(FontProperties(family=[family]), fallback_to_default=False))
    except (OSError, RuntimeError, ValueError):
        return letters
    return {letter for letter in letters if not font.get_char_index(ord(letter))}


def _version(text: str) -> tuple[int, ...]:
    parts: Sequence[str] = text.split(".")[:2]
    return tuple(int(part) for part in parts if part.isdecimal())
