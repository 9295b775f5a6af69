"""docs/json.md lists the keys and types of what commands print as JSON."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from command_line import Run, runner

from xclip_deploy import Bundle
from xclip_deploy.cli.program import cli
from xclip_deploy.runtime.cluster import create_shards

PAGE = Path(__file__).resolve().parents[1] / "docs" / "json.md"
TYPES = {
    dict: "object", list: "array", str: "string", bool: "boolean", int: "integer",
    float: "number", type(None): "null",
}  # fmt: skip


@dataclass
class Node:
    """What the page says of a value."""

    types: set[str] = field(default_factory=set)
    keys: dict[str, Node] = field(default_factory=dict)
    is_optional: bool = False
    item: Node | None = None


def schemas() -> dict[str, Node]:
    """Read the tables of the page: the heading of each, and its root."""
    found: dict[str, Node] = {}
    root = Node()
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            root = found[line[3:]] = Node()
        row = re.match(r"\| `([^`]+)` \| ([a-z or]+)(\??) \| .+ \|$", line)
        if row:
            node = root
            for part in re.findall(r"\[\]|[^.\[\]]+", row[1]):
                if part == "[]":
                    node.item = node.item or Node()
                    node.types |= {"array"}
                    node = node.item
                else:
                    node.types |= {"object"}
                    node = node.keys.setdefault(part, Node())
            node.types |= set(row[2].split(" or "))
            node.is_optional = bool(row[3])
    return found


def check(value: Any, node: Node, where: str) -> list[str]:
    """List where a value differs from what the page says."""
    kind = TYPES[type(value)]
    is_number = kind == "integer" and "number" in node.types
    if node.types and kind not in node.types and not is_number:
        return [f"{where} is {kind}, documented as {' or '.join(sorted(node.types))}"]
    faults = []
    if isinstance(value, dict) and node.keys:
        faults += [f"{where}.{key} is not documented" for key in value if key not in node.keys]
        for key, each in node.keys.items():
            if key in value:
                faults += check(value[key], each, f"{where}.{key}")
            elif not each.is_optional:
                faults.append(f"{where}.{key} is documented, and absent")
    if isinstance(value, list) and node.item is not None:
        for number, each in enumerate(value):
            faults += check(each, node.item, f"{where}[{number}]")
    return faults


SCHEMAS = schemas()


@pytest.fixture(scope="module")
def place(bundle_path: Path, clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("json")
    (place / "xclip-bundle").symlink_to(bundle_path)
    shutil.copy(clips / "mdn_frog.webm", place / "frog.webm")
    shutil.copy(clips / "intel_asl_walk.mkv", place / "walk.mkv")
    (place / "captions.jsonl").write_text(
        '{"file": "frog.webm", "caption": "a frog"}\n{"file": "walk.mkv", "caption": "a man"}\n'
    )
    create_shards(place / "sharded", Bundle.open(bundle_path).manifest, 2)
    return place


@pytest.fixture
def run(place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(place)
    return runner(capfd)


# The first makes the gallery of those that follow.
CALLS = {
    "index --estimate": ["index", "frog.webm", "walk.mkv", "--estimate", "--segment", "2s"],
    "index": ["index", "frog.webm", "walk.mkv", "--segment", "2s", "--stride", "1s"],
    "search": ["search", "a frog", "a man"],
    "explain": ["explain", "a frog", "frog.webm"],
    "gallery list": ["gallery", "list"],
    "gallery show": ["gallery", "show", "frog.webm"],
    "gallery stats": ["gallery", "stats"],
    "gallery remove": ["gallery", "remove", "--where", "duration_s > 0", "--dry-run"],
    "gallery verify": ["gallery", "verify"],
    "gallery optimize": ["gallery", "optimize"],
    "cut": ["cut", "frog.webm", "--from", "0", "--to", "0.5", "-o", "cut.mp4"],
    "inspect": ["inspect"],
    "evaluate": ["evaluate", "xclip-bundle", "--dataset", "folder", "--annotations",
                 "captions.jsonl", "--videos", "."],
    "verify": ["verify", "--videos", "frog.webm", "-o", "verification", "--no-report"],
    "bench": ["bench", "--seconds", "0.01", "--rounds", "1", "--warmup", "0", "--graph",
              "text_encoder", "--text-batches", "1"],
    "export-triton": ["export-triton", "-o", "triton"],
    "shards": ["shards", "sharded"],
}  # fmt: skip
OPEN = {"export-triton"}
"""Commands of which the page lists the main keys alone, and says so."""


def test_what_commands_print_is_documented(run: Run) -> None:
    for name, words in CALLS.items():
        outcome = run(*words, "--json")
        assert outcome.status == 0, (name, outcome.err)
        faults = check(outcome.json(), SCHEMAS[name], name)
        if name in OPEN:
            faults = [fault for fault in faults if "is not documented" not in fault]
        assert faults == []


def test_every_command_has_a_section() -> None:
    names = set(SCHEMAS)
    for name in cli.list_commands(None):  # type: ignore[arg-type]
        if name not in ("gallery", "export"):  # export prints what inspect prints
            assert name in names
    text = PAGE.read_text(encoding="utf-8")
    assert "`export` prints the same" in text
    for name in ("upgrade", "rescue"):
        assert f"`gallery {name}` gives" in text


def test_the_comparison_finds_what_differs() -> None:
    """Its own check: a key too many, one too few, and another type."""
    stats = dict.fromkeys(SCHEMAS["gallery remove"].keys)
    faults = check({**stats, "more": 1}, SCHEMAS["gallery remove"], "x")
    assert "x.more is not documented" in faults
    assert "x.removed is null, documented as integer" in faults
    assert "x.ids is documented, and absent" in check({}, SCHEMAS["gallery remove"], "x")
