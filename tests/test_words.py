"""The product's docstrings keep to the rules that a machine can hold ("Words" in CONTRIBUTING)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PRODUCT = ("xclip_deploy", "runtime", "training", "export", "benchmarks", "demo", "dev.py")
NO_VERBS = frozenset(
    ("Of", "The", "A", "An", "What", "Whether", "Why", "Which", "Who", "How", "As", "For", "By")
) | frozenset(("In", "With", "From", "That", "Where", "When", "None", "One", "All", "No", "Its"))
LONGEST_FIRST_SENTENCE = 25
PROPERTIES = frozenset(("property", "cached_property", "setter"))

Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = Function | ast.ClassDef | ast.Module


def sources() -> list[Path]:
    files = []
    for name in PRODUCT:
        place = ROOT / name
        # Links in xclip_deploy/ lead to the other folders, which are listed themselves.
        found = [place] if place.is_file() else sorted(place.rglob("*.py"))
        files += [file for file in found if file.resolve() == file]
    return files


def is_property(function: Function) -> bool:
    names = {
        each.attr if isinstance(each, ast.Attribute) else getattr(each, "id", "")
        for each in function.decorator_list
    }
    return bool(names & PROPERTIES)


def first_sentence(docstring: str) -> str:
    """Return the first sentence, which a blank line ends if no period does."""
    paragraph = " ".join(docstring.split("\n\n", 1)[0].split())
    # A period inside a name or number is followed by no space.
    return re.split(r"(?<=[.!?:])\s", paragraph, maxsplit=1)[0]


def offences(code: str) -> Iterator[str]:
    """Say for every docstring what is wrong with it: line, name and rule."""
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, Documented):
            continue
        docstring = ast.get_docstring(node)
        if not docstring:
            continue
        place = f"{getattr(node, 'lineno', 1)}: {getattr(node, 'name', 'module')}"
        line = docstring.split("\n", 1)[0].rstrip()
        if not line.endswith((".", "?", "!")):
            yield f"{place}: the first line ends without a period: {line!r}"
        word = re.split(r"\W", line, maxsplit=1)[0]
        is_verb_wanted = isinstance(node, Function) and not is_property(node)
        if is_verb_wanted and word in NO_VERBS:
            yield f"{place}: a function's docstring begins with no verb: {line!r}"
        sentence = first_sentence(docstring)
        if len(sentence.split()) > LONGEST_FIRST_SENTENCE:
            count = len(sentence.split())
            yield f"{place}: {count} words in the first sentence: {sentence!r}"


def test_every_docstring_keeps_to_the_rules() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{offence}"
        for file in sources()
        for offence in offences(file.read_text(encoding="utf-8"))
    ]
    assert not found, f"{len(found)} offences\n" + "\n".join(found)


def test_all_of_the_product_is_read() -> None:
    names = {file.relative_to(ROOT).parts[0] for file in sources()}
    assert names == set(PRODUCT)
    assert ROOT / "runtime" / "retriever.py" in sources()


def test_offences_are_found() -> None:
    code = '''
"""Words without an end"""

class Reader:
    """The reader of words."""

    @property
    def size(self):
        """The number of words."""

    async def of(self):
        """Of words, the number."""

def count():
    """Count {}."""

def fine():
    """Read `a.py`, version 1.5 or later. {}."""
'''.replace("{}", "one " * 25 + "word")
    found = list(offences(code))
    assert len(found) == 3
    assert found[0].startswith("1: module: the first line ends without a period")
    assert {offence.split(":")[1] for offence in found[1:]} == {" of", " count"}
