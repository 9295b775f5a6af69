"""docs/json.md lists the keys and types of what commands print as JSON."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from command_line import Run, runner
from gallery_samples import make_unchecked

from xclip_deploy import Bundle
from xclip_deploy.cli.gallery import command as gallery_group
from xclip_deploy.cli.program import cli
from xclip_deploy.runtime.cluster import create_shards

PAGE = Path(__file__).resolve().parents[1] / "docs" / "json.md"
ARCHITECTURE = {
    "embed_dim": 64,
    "vision": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1, "heads": 1},
    "text": {"width": 64, "layers": 1, "heads": 1},
    "temporal_head": "meanP",
    "max_words": 8,
    "max_frames": 3,
}
"""The least model that trains, exports and builds."""
SETTINGS = {
    "start.architecture": ARCHITECTURE,
    "data.annotations": "training.jsonl",
    "data.videos": ".",
    "data.workers": 0,
    "optimization.batch_size": 2,
    "optimization.epochs": 1,
    "optimization.freeze_layers": -1,
}
SIZES = ("--video-batch", "1:2:4", "--text-batch", "1:2:4", "--scored-texts", "1:2:4",
         "--scored-videos", "1:4:8", "--flavor", "rtx")  # fmt: skip
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
    shutil.copytree(bundle_path, place / "own-bundle")
    shutil.copy(clips / "mdn_frog.webm", place / "frog.webm")
    shutil.copy(clips / "intel_asl_walk.mkv", place / "walk.mkv")
    (place / "captions.jsonl").write_text(
        '{"file": "frog.webm", "caption": "a frog"}\n{"file": "walk.mkv", "caption": "a man"}\n'
    )
    lines = [
        {"file": file, "caption": text, "split": split}
        for file, text in (("frog.webm", "a frog"), ("walk.mkv", "a man"))
        for split in ("train", "val")
    ]
    (place / "training.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    moment = {"file": "walk.mkv", "caption": "a man walks", "start_s": 0.5, "end_s": 2.0}
    (place / "moments.jsonl").write_text(json.dumps(moment) + "\n")
    make_unchecked(place / "old-gallery")
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
    "explain of two videos": ["explain", "a frog", "frog.webm", "walk.mkv"],
    "gallery list": ["gallery", "list"],
    "gallery show": ["gallery", "show", "frog.webm"],
    "gallery stats": ["gallery", "stats"],
    "gallery remove": ["gallery", "remove", "--where", "duration_s > 0", "--dry-run"],
    "gallery verify": ["gallery", "verify"],
    "gallery optimize": ["gallery", "optimize"],
    "gallery rescue": ["gallery", "rescue", "--output", "rescued"],
    "gallery upgrade": ["gallery", "upgrade", "--gallery", "old-gallery"],
    "cut": ["cut", "frog.webm", "--from", "0", "--to", "0.5", "-o", "cut.mp4"],
    "inspect": ["inspect"],
    "evaluate": ["evaluate", "xclip-bundle", "--dataset", "folder", "--annotations",
                 "captions.jsonl", "--videos", "."],
    "evaluate --task moments": ["evaluate", "xclip-bundle", "--task", "moments", "--dataset",
                                "folder", "--annotations", "moments.jsonl", "--videos", "."],
    "verify": ["verify", "--videos", "frog.webm", "-o", "verification", "--no-report"],
    "bench": ["bench", "--seconds", "0.01", "--rounds", "1", "--warmup", "0", "--graph",
              "text_encoder", "--text-batches", "1"],
    "export-triton": ["export-triton", "-o", "triton"],
    "train": ["train", "-o", "run", *(word for name, value in SETTINGS.items()
                                      for word in ("--set", f"{name}={json.dumps(value)}"))],
    "build-trt --dry-run": ["build-trt", "own-bundle", "--dry-run", "--flavor", "rtx"],
    "build-trt": ["build-trt", "own-bundle", *SIZES],
    "shards": ["shards", "sharded"],
}  # fmt: skip
OPEN = {"export-triton"}
"""Commands of which the page lists the main keys alone, and says so."""


def test_what_commands_print_is_documented(run: Run) -> None:
    for name, words in CALLS.items():
        if name.startswith("build-trt") and find_spec("tensorrt_rtx") is None:
            continue
        outcome = run(*words, "--json")
        assert outcome.status == 0, (name, outcome.err)
        faults = check(outcome.json(), SCHEMAS[name], name)
        if name == "explain of two videos":
            for part in ("first", "second"):
                faults += check(outcome.json()[part], SCHEMAS["explain"], part)
        if name in OPEN:
            faults = [fault for fault in faults if "is not documented" not in fault]
        assert faults == []


@pytest.mark.slow
def test_what_export_prints_is_documented(run: Run, checkpoint_path: Path) -> None:
    outcome = run("export", checkpoint_path, "-o", "exported", "--json")
    assert outcome.status == 0
    assert check(outcome.json(), SCHEMAS["export"], "export") == []


def test_what_serve_prints_is_documented(place: Path) -> None:
    program = "from xclip_deploy.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "serve", "--json", "--port", "0", "--gallery", "served"],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with process:
        assert process.stdout is not None
        try:
            text = b""
            while (line := process.stdout.readline()) != b"}\n":
                assert line, "the service ended"
                text += line
            assert check(json.loads(text + b"}"), SCHEMAS["serve"], "serve") == []
        finally:
            process.terminate()


def test_every_command_has_a_section() -> None:
    names = set(SCHEMAS)
    for name in cli.list_commands(None):  # type: ignore[arg-type]
        if name != "gallery":
            assert name in names
    for name in gallery_group.list_commands(None):  # type: ignore[arg-type]
        assert f"gallery {name}" in names
    # Tests of their own run `build-scan`, which takes long, and `serve-shards`, which needs Ray.
    assert names == {*CALLS, "export", "serve", "build-scan", "serve-shards"}


def test_the_comparison_finds_what_differs() -> None:
    """Its own check: a key too many, one too few, and another type."""
    stats = dict.fromkeys(SCHEMAS["gallery remove"].keys)
    faults = check({**stats, "more": 1}, SCHEMAS["gallery remove"], "x")
    assert "x.more is not documented" in faults
    assert "x.removed is null, documented as integer" in faults
    assert "x.ids is documented, and absent" in check({}, SCHEMAS["gallery remove"], "x")
