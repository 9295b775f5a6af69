"""What a search imports, each in a new interpreter: imports are most of a cold start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from xclip_deploy import Bundle, Retriever

LOADED = """
import json, sys
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})), file=sys.stderr)
"""
NEVER_NEEDED = {
    "av",
    "fastapi",
    "ftfy",
    "lance_namespace",
    "matplotlib",
    "onnx",
    "pandas",
    "PIL",
    "starlette",
    "torch",
    "urllib3",
}


def loaded_by(code: str, *arguments: object) -> set[str]:
    """Return the top-level modules that a program has loaded at its end."""
    command = [sys.executable, "-c", code + LOADED, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.strip().split("\n")[-1]))


@pytest.fixture
def gallery_path(bundle: Bundle, clips: Path, tmp_path: Path) -> Path:
    """A gallery of one clip."""
    path = tmp_path / "gallery"
    with Retriever(bundle, device="cpu") as retriever:
        retriever.add(clips / "mdn_frog.webm")
        retriever.save(path)
    return path


def test_a_search_on_the_command_line_loads_what_it_needs(
    bundle_path: Path, gallery_path: Path
) -> None:
    code = """
import sys
from xclip_deploy.cli import main

_, bundle, gallery = sys.argv
try:
    main(["search", "a frog", "--bundle", bundle, "--gallery", gallery, "--device", "cpu"])
except SystemExit as ended:
    assert ended.code == 0, ended.code
assert "lancedb._lancedb" in sys.modules, "the native module is not used"
assert "lancedb" not in sys.modules, "LanceDB's package is imported"
"""
    found = loaded_by(code, bundle_path, gallery_path)
    assert not found & NEVER_NEEDED
    assert "pyarrow" in found


def test_a_gallery_in_memory_loads_no_database(bundle_path: Path, clips: Path) -> None:
    code = """
import sys
from xclip_deploy import Retriever

_, bundle, clip = sys.argv
with Retriever(bundle, device="cpu") as retriever:
    retriever.add(clip)
    assert len(retriever.search("a frog")) == 1
"""
    found = loaded_by(code, bundle_path, clips / "mdn_frog.webm")
    assert not found & {"lance", "lancedb", "pandas", "pyarrow", "torch"}
