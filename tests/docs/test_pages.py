"""Every command and snippet of the README and of docs/ runs, and prints what the page shows.

After a change of outputs, this writes the new ones into the pages; read them before a commit::

    XCLIP_DEPLOY_UPDATE_DOCS=1 python -m pytest tests/docs/test_pages.py
"""

from __future__ import annotations

import os
import re
from collections import Counter
from importlib import metadata
from pathlib import Path

import pytest
from documentation import REPOSITORY, RUN, Block, blocks_of, differences, pages
from page_runner import PageRunner

pytestmark = pytest.mark.skipif(
    not (REPOSITORY / "pyproject.toml").is_file(), reason="these tests read the repository"
)

REASONS = {
    "installs packages",
    "needs a GPU",
    "needs Docker",
    "needs systemd",
    "needs Triton",
    "needs a Ray cluster",
    "needs a published data set",
    "needs a published checkpoint",
    "needs the network",
    "takes minutes",
}
"""The only reasons for which a block may stay unexecuted."""
NOT_RUN = {
    "README.md": 2,
    "docs/cluster.md": 2,
    "docs/deployment.md": 3,
    "docs/engines.md": 2,
    "docs/from-checkpoint.md": 3,
    "docs/galleries.md": 1,
    "docs/install.md": 4,
    "docs/performance.md": 2,
    "docs/precision.md": 1,
    "docs/quick-start.md": 1,
    "docs/resident.md": 2,
    "docs/service.md": 1,
    "docs/training.md": 2,
}
"""Blocks of each page that no test executes."""
SLOW = {
    "docs/certificates.md",
    "docs/engines.md",
    "docs/from-checkpoint.md",
    "docs/service.md",
    "docs/training.md",
}
"""Pages whose commands take longer than fast tests may."""
PAGES = [page.relative_to(REPOSITORY).as_posix() for page in pages()]
UPDATE = bool(os.environ.get("XCLIP_DEPLOY_UPDATE_DOCS"))


def _runnable(page: str) -> bool:
    return any(b.language in RUN and b.not_run is None for b in blocks_of(REPOSITORY / page))


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] if page in SLOW else [])
        for page in PAGES
        if _runnable(page)
    ],
)
def test_a_page_runs(page: str, page_runner: PageRunner) -> None:
    blocks = blocks_of(REPOSITORY / page)
    found: list[tuple[Block, str, str]] = []
    problems = []
    for number, block in enumerate(blocks):
        if block.language not in RUN or block.not_run is not None:
            continue
        try:
            outputs = page_runner.run(block)
        except BaseException as error:
            raise AssertionError(f"{block} failed: {error}") from error
        after = blocks[number + 1] if number + 1 < len(blocks) else None
        shown_in = block
        if after is not None and after.language == "text" and _adjacent(block, after):
            outputs = [(after.text, outputs[-1][1])]
            shown_in = after
        for shown, printed in outputs:
            if shown:
                wrong = differences(shown, printed, numbers_vary=shown_in.numbers_vary)
                if wrong:
                    problems.append(f"{shown_in}: {wrong}")
                    found.append((shown_in, shown, printed))
    if UPDATE and found:
        _rewrite(REPOSITORY / page, found)
    assert not problems, "\n".join(problems)


def test_blocks_that_do_not_run_are_counted() -> None:
    """Another one of them is a decision: it needs a line here, and one of the reasons."""
    counts: Counter[str] = Counter()
    for page in PAGES:
        for block in blocks_of(REPOSITORY / page):
            if block.language in RUN and block.not_run is not None:
                assert block.not_run in REASONS, f"{block}: {block.not_run}"
                counts[page] += 1
    assert dict(counts) == NOT_RUN


def test_commands_that_install_name_extras_that_exist() -> None:
    extras = set(metadata.metadata("xclip-deploy").get_all("Provides-Extra") or ())
    named = set()
    for page in PAGES:
        text = (REPOSITORY / page).read_text(encoding="utf-8")
        for found in re.findall(r"(?:xclip-deploy|'\.)\[([\w,]+)\]", text):
            named |= set(found.split(","))
    assert named
    assert named <= extras


def test_shown_output_is_compared() -> None:
    """The comparison fails where it should."""
    assert not differences("a  1.00\n…\nend", "a 1.01\nmore\nend", numbers_vary=False)
    assert differences("a 1.00", "a 2.00", numbers_vary=False)
    assert not differences("a 1.00", "a 2.00", numbers_vary=True)
    assert differences("a 1.00", "b 1.00", numbers_vary=True)
    assert differences("a\n…", "b\nmore", numbers_vary=False)


def _adjacent(block: Block, after: Block) -> bool:
    """Tell whether only blank lines, comments and one short line lie between two blocks."""
    lines = block.page.read_text(encoding="utf-8").split("\n")
    end = block.line + block.text.count("\n") + 2
    between = [line for line in lines[end : after.line - 1] if line and line[:4] != "<!--"]
    return not between


def _rewrite(page: Path, found: list[tuple[Block, str, str]]) -> None:
    """Put printed outputs in place of the shown ones, from the last to the first."""
    lines = page.read_text(encoding="utf-8").split("\n")
    for block, shown, printed in reversed(found):
        old = shown.rstrip("\n").split("\n")
        end = block.line + block.text.count("\n") + 1
        starts = (n for n in range(block.line, end) if lines[n : n + len(old)] == old)
        start = next(starts)
        new = [line.rstrip() for line in printed.rstrip("\n").split("\n")]
        lines[start : start + len(old)] = new
    page.write_text("\n".join(lines), encoding="utf-8")
