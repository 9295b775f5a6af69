"""An extension of Griffe: docstrings in reStructuredText's roles become Markdown for the site."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:meth|class|func|attr|mod|data):`~?\.?([^`]+)`")
_DOCTEST = re.compile(r"^(?:>>> .*\n?(?:(?!>>>).+\n?)*)+", re.M)
_INDENTED = re.compile(r"::\n\n((?:    .*\n?|\n)+)")


class PlainDocstrings(griffe.Extension):
    """Rewrite the docstring of every object, before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:  # noqa: ANN401 - Griffe's
        """Replace roles by code, and examples by fenced blocks."""
        if obj.docstring is None:
            return
        text = _ROLE.sub(lambda found: f"`{found[1]}`", obj.docstring.value)
        text = _DOCTEST.sub(lambda found: f"```pycon\n{_plain(found[0])}\n```\n", text)
        obj.docstring.value = _INDENTED.sub(lambda found: f":\n\n{found[1]}", text)


def _plain(example: str) -> str:
    return re.sub(r" +# doctest:.*", "", example).rstrip("\n")
