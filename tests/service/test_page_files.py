"""The page's files: everything comes from this host, and nothing stands within the page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from xclip_deploy.service.routes.page import PAGE

FILES = sorted(path for path in PAGE.iterdir() if path.is_file())
MODULES = [path for path in FILES if path.suffix == ".js"]
TYPES = {".html": "text/html", ".css": "text/css", ".js": "javascript", ".svg": "image/svg+xml"}
NAMESPACE = "http://www.w3.org/2000/svg"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_is_served_with_its_type(api: TestClient, path: Path) -> None:
    answer = api.get(f"/static/{path.name}")
    assert answer.status_code == 200
    assert TYPES[path.suffix] in answer.headers["content-type"]
    assert answer.content == path.read_bytes()


def test_the_policy_of_the_page_lets_nothing_in_from_elsewhere(api: TestClient) -> None:
    answer = api.get("/")
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert not re.search(r"https?:|\*", policy)
    text = answer.text
    assert not re.search(r"\sstyle=|\son[a-z]+=|<style|javascript:", text)
    assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", text))


def test_the_page_names_files_that_are_there() -> None:
    text = (PAGE / "index.html").read_text()
    named = re.findall(r'(?:src|href)="(/static/[^"]+)"', text)
    assert len(named) > 4
    assert all((PAGE / name.removeprefix("/static/")).is_file() for name in named)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_names_another_host(path: Path) -> None:
    text = path.read_text().replace(NAMESPACE, "")
    assert not re.search(r"""https?://|["'(]//\w""", text)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_no_module_makes_markup_or_code_of_texts(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text)
    assert not re.search(r"new Function\(|set(?:Timeout|Interval)\(\s*[\"'`]", text)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_a_module_imports_what_others_export(path: Path) -> None:
    for names, name in re.findall(r'import \{([^}]+)\} from "\./([\w.]+)";', path.read_text()):
        other = (PAGE / name).read_text()
        for each in (part.strip() for part in names.split(",")):
            pattern = rf"export (?:async )?(?:function|const|class) {re.escape(each)}\b"
            assert re.search(pattern, other), f"{path.name} imports {each}, which {name} lacks"
