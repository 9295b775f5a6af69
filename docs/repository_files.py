"""A hook of MkDocs: files of the repository that pages link to become part of the site.

Pages are read on GitHub too, so they link to ``../benchmarks/results/serving.md``. The site has
these files below ``repository/``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_LINK = re.compile(r"\]\(\.\./([^)#\s]+)(#[^)\s]*)?\)")
_SHOWN_AS_TEXT = {".py", ".yaml", ".yml", ".service", ".sh", ".toml", ".cpu", ".gpu", ".md", ""}


def on_files(files: Files, config: Any, **_: Any) -> Files:  # noqa: ANN401 - MkDocs' own types
    """Add each file of the repository that a page links to. Raises FileNotFoundError."""
    root = Path(config.config_file_path).parent
    for page in list(files.documentation_pages()):
        for path, _anchor in _LINK.findall(page.content_string):
            name = _target(root, path)
            if files.get_file_from_path(name) is None:
                source = root / path
                source = source / "README.md" if source.is_dir() else source
                files.append(File.generated(config, name, content=source.read_bytes()))
    return files


def on_page_markdown(markdown: str, *, config: Any, **_: Any) -> str:  # noqa: ANN401
    """Let links out of ``docs/`` lead to the copies."""
    root = Path(config.config_file_path).parent
    return _LINK.sub(lambda link: f"]({_target(root, link[1])})", markdown)


def _target(root: Path, path: str) -> str:
    """Return the address of a file; Markdown and source are shown as plain text."""
    if (root / path).is_dir():
        path = f"{path.rstrip('/')}/README.md"
    as_text = Path(path).suffix in _SHOWN_AS_TEXT
    return f"repository/{path}{'.txt' if as_text else ''}"
