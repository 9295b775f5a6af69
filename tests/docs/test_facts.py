"""What pages say of the package is so: errors, names, extras, and the README's size."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from documentation import REPOSITORY, pages

import xclip_deploy
from xclip_deploy import errors
from xclip_deploy.errors import XclipDeployError

DOCS = REPOSITORY / "docs"
pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="these tests read the repository")


def test_the_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_sentences_of_the_readme_are_short() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```|<!--.*?-->", "", text, flags=re.S)
    lines = [line for line in prose.splitlines() if line and not re.match(r"[#|!<-]", line)]
    for sentence in re.split(r"(?<=[.:;])\s|<br>", "\n".join(lines)):
        words = re.sub(r"\]\([^)]*\)|`[^`]*`", " x ", sentence).split()
        assert len(words) <= 20, sentence


def test_every_error_is_listed_with_its_status_and_a_way_out() -> None:
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    listed: dict[str, int] = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and (name := re.search(r"`(\w+Error)`", line)) and cells[0] != "error":
            status = cells[0] if cells[0].isdecimal() else cells[1]
            listed[name[1]] = int(status)
            assert len(cells[3]) > 10, f"{name[1]} has no way out"
    classes = {
        name: value.exit_code
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, XclipDeployError)
    }
    assert listed == classes


def test_every_public_name_has_its_reference() -> None:
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    names = {line.rpartition(".")[2] for line in page.splitlines() if line.startswith(":::")}
    assert names == set(xclip_deploy.__all__)


def test_every_extra_is_explained() -> None:
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    section = project.split("[project.optional-dependencies]")[1].split("\n[")[0]
    extras = set(re.findall(r"^(\w+) = \[", section, re.M))
    table = (DOCS / "install.md").read_text(encoding="utf-8").split("## What it weighs")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == extras


def test_links_lead_to_files() -> None:
    """On GitHub, where nothing builds the site."""
    for page in (*pages(), REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "CHANGELOG.md"):
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    if find_spec("mkdocs") is None:
        pytest.skip("MkDocs is not installed (extra: docs)")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    start = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "From your checkpoint to production" in start
    assert "def search" not in start
    reference = (tmp_path / "api.html").read_text(encoding="utf-8")
    assert "search_by_video" in reference
    # No page asks another host for anything.
    for page in tmp_path.glob("*.html"):
        found = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"?(https?://[^\s\">]+)",
                           page.read_text(encoding="utf-8"))  # fmt: skip
        assert not [url for url in found if "xclip-deploy" not in url], f"{page.name}: {found}"
