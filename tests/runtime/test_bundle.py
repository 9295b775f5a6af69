from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from xclip_deploy import Bundle, Retriever
from xclip_deploy.errors import (
    BundleError,
    BundleIntegrityError,
    BundleNotFoundError,
    BundleVersionError,
    InvalidArgumentError,
)
from xclip_deploy.runtime.files import sha256_of
from xclip_deploy.runtime.manifest import Graph, Precision, checksum

GRAPH_FILES = [
    f"{precision}/{graph.value}.onnx" for precision in ("fp32", "fp16") for graph in Graph
]
HALF_FILES = [
    f"{precision}/{name}"
    for precision in ("fp32", "fp16")
    for name in ("frame_encoder.onnx", "temporal_head.onnx", "video_encoder.onnx.data")
]
FUSED_FILES = ["fp32/text_encoder.onnx.data", "fp16/text_encoder.onnx.data"]
FUSED_FILES += [
    f"{precision}/{name}.fused.onnx"
    for precision in ("fp32", "fp16")
    for name in ("video_encoder", "text_encoder", "frame_encoder", "temporal_head")
]
FILES = ["tokenizer.json", "scorer.npz", *GRAPH_FILES, *HALF_FILES, *FUSED_FILES]
DEEP = (900, 980, 985, 990, 992, 994, 998, 1000, 5000, 100_000)
"""About the interpreter's recursion limit, where reading and writing JSON give up in turn."""


def refusal(path: Path, kind: type[BundleError]) -> str:
    """Message of the error that opening raises, held to the documented form."""
    with pytest.raises(BundleError) as caught:
        Bundle.open(path).verify()
    message = str(caught.value)
    assert type(caught.value) is kind, message
    assert "\n" not in message
    assert str(path) in message
    assert "run: " in message
    return message


def edit(path: Path, change: Callable[[dict[str, Any]], object], *, sign: bool = True) -> None:
    """Change a manifest; ``sign``: and make its checksum fit again."""
    file = path / "manifest.json"
    content = json.loads(file.read_bytes())
    change(content)
    if sign:
        content["checksum"] = checksum(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def test_a_whole_bundle(bundle_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    bundle.verify()
    assert bundle.precisions == (Precision.FP32, Precision.FP16)
    assert sorted(bundle.manifest.files) == sorted(FILES)
    assert bundle.tokenizer().vocab_size == 49408
    for precision in bundle.precisions:
        for graph in Graph:
            path = bundle.graph_path(graph, precision)
            assert sha256_of(path) == bundle.graph_sha256(graph, precision)


def test_a_path_can_be_a_str(bundle_path: Path) -> None:
    assert Bundle.open(str(bundle_path)).manifest == Bundle.open(bundle_path).manifest


def test_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for name in ("nothing", "file", "folder", "file/below"):
        message = refusal(tmp_path / name, BundleNotFoundError)
        assert f"run: xclip-deploy export CHECKPOINT -o {tmp_path / name}" in message


def test_a_manifest_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(BundleError, match="cannot be read"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(bundle_copy: Path, name: str) -> None:
    (bundle_copy / name).unlink()
    assert f"{name} is missing" in refusal(bundle_copy, BundleIntegrityError)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file(bundle_copy: Path, name: str) -> None:
    size = (bundle_copy / name).stat().st_size
    os.truncate(bundle_copy / name, size - 1)
    message = refusal(bundle_copy, BundleIntegrityError)
    assert f"{name} has {size - 1:,} bytes, the export wrote {size:,}" in message
    with pytest.raises(BundleIntegrityError):
        Bundle.open(bundle_copy)  # without reading the content


@pytest.mark.parametrize("name", FILES)
def test_an_altered_byte(bundle_copy: Path, name: str) -> None:
    file = bundle_copy / name
    for position in (0, file.stat().st_size // 2, file.stat().st_size - 1):
        original = file.read_bytes()
        altered = bytearray(original)
        altered[position] ^= 1
        file.write_bytes(altered)
        assert f"{name} was altered" in refusal(bundle_copy, BundleIntegrityError)
        file.write_bytes(original)
    Bundle.open(bundle_copy).verify()


def test_an_altered_file_is_not_used(bundle_copy: Path) -> None:
    """Opening does not read the graphs; the first use does."""
    for name in ("fp32/text_encoder.onnx", "tokenizer.json"):
        file = bundle_copy / name
        content = bytearray(file.read_bytes())
        content[1000] ^= 1
        file.write_bytes(content)
    bundle = Bundle.open(bundle_copy)
    with pytest.raises(BundleIntegrityError, match=r"text_encoder\.onnx was altered"):
        bundle.graph_path(Graph.TEXT_ENCODER, Precision.FP32)
    bundle.graph_path(Graph.TEXT_ENCODER, Precision.FP16)
    with pytest.raises(BundleIntegrityError, match=r"tokenizer\.json was altered"):
        bundle.tokenizer()
    with pytest.raises(BundleIntegrityError, match=r"tokenizer\.json was altered"):
        Retriever(bundle_copy)


def test_an_export_in_place_does_not_mix_with_an_open_bundle(bundle_copy: Path) -> None:
    """The old manifest must not vouch for a new graph, though the old one was checked."""
    bundle = Bundle.open(bundle_copy)
    path = bundle.graph_path(Graph.SCORER, Precision.FP32)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(BundleIntegrityError, match="was altered"):
        bundle.graph_path(Graph.SCORER, Precision.FP32)


def test_a_graph_of_another_bundle(bundle_copy: Path) -> None:
    """A fine graph in itself, but not the one that was exported here."""
    bundle = Bundle.open(bundle_copy)
    shutil.copyfile(bundle_copy / "fp16/scorer.onnx", bundle_copy / "fp32/scorer.onnx")
    refusal(bundle_copy, BundleIntegrityError)
    with pytest.raises(BundleIntegrityError, match=r"scorer\.onnx was altered"):
        bundle.graph_path(Graph.SCORER, Precision.FP32)  # opened before the swap


def test_a_graph_of_the_same_size_swapped_in(bundle_copy: Path) -> None:
    target = bundle_copy / "fp32/scorer.onnx"
    size = target.stat().st_size
    other = (bundle_copy / "fp16/scorer.onnx").read_bytes()
    target.write_bytes(other[:size].ljust(size, b"\0"))
    assert "fp32/scorer.onnx was altered" in refusal(bundle_copy, BundleIntegrityError)


@pytest.mark.parametrize(
    ("key", "value"), [("max_frames", 64), ("max_words", 77), ("embed_dim", 512)]
)
def test_a_manifest_edited_by_hand(bundle_copy: Path, key: str, value: int) -> None:
    edit(bundle_copy, lambda content: content["model"].update({key: value}), sign=False)
    assert "its checksum does not fit" in refusal(bundle_copy, BundleIntegrityError)


def test_a_manifest_without_its_checksum(bundle_copy: Path) -> None:
    edit(bundle_copy, lambda content: content.pop("checksum"), sign=False)
    assert "its checksum does not fit" in refusal(bundle_copy, BundleIntegrityError)


def test_every_altered_character_of_the_manifest_is_noticed(bundle_copy: Path) -> None:
    file = bundle_copy / "manifest.json"
    original = file.read_bytes()
    content, manifest = json.loads(original), Bundle.open(bundle_copy).manifest
    for position in range(0, len(original), 97):
        altered = bytearray(original)
        altered[position] ^= 1
        file.write_bytes(altered)
        means_the_same = False  # as white space between tokens does
        with suppress(ValueError):
            means_the_same = json.loads(altered) == content
        if means_the_same:
            assert Bundle.open(bundle_copy).manifest == manifest
            continue
        with pytest.raises(BundleError) as caught:
            Bundle.open(bundle_copy)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", [3, 99, 10**30])
def test_a_newer_schema(bundle_copy: Path, version: int) -> None:
    # A newer release may compute its checksum in another way: the version is looked at first.
    edit(bundle_copy, lambda content: content.update(schema_version=version), sign=False)
    message = refusal(bundle_copy, BundleVersionError)
    assert f"schema version {version}, this release reads 2" in message
    assert "run: pip install --upgrade xclip-deploy" in message


@pytest.mark.parametrize("version", [1, 0, -1, "2", None, [1], 0.5])
def test_an_older_or_odd_schema(bundle_copy: Path, version: object) -> None:
    edit(bundle_copy, lambda content: content.update(schema_version=version))
    message = refusal(bundle_copy, BundleVersionError)
    assert f"run: xclip-deploy export CHECKPOINT -o {bundle_copy}" in message


def test_a_manifest_without_a_schema(bundle_copy: Path) -> None:
    edit(bundle_copy, lambda content: content.pop("schema_version"))
    refusal(bundle_copy, BundleVersionError)


HEAD = '{"format": "xclip-bundle", "schema_version": 2, "x": '


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not JSON",
        b"[]",
        b"3",
        b"null",
        b'"text"',
        b"{}",
        b'{"format": "xclip-gallery"}',
        b'{"format": ["xclip-bundle"]}',
        b"\xff\xfe\x00",
        b'{"format": "caf\xe9"}',
        (HEAD + '"\\ud800"}').encode(),
        (HEAD + "9" * 5000 + "}").encode(),
        (HEAD + "NaN}").encode(),
        (HEAD + "1}").encode(),
        *((HEAD + "[" * depth + "]" * depth + "}").encode() for depth in DEEP),
        *((HEAD + '{"x":' * depth + "1" + "}" * depth + "}").encode() for depth in DEEP),
    ],
    ids=lambda content: f"{content[-12:]!r}-{len(content)}",
)
def test_a_manifest_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    refusal(tmp_path, BundleIntegrityError)


def test_a_huge_manifest_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "manifest.json"
    file.touch()
    os.truncate(file, 1 << 30)  # sparse: 1 GiB that takes no room
    assert "is over 16 MiB" in refusal(tmp_path, BundleIntegrityError)


def use_everything(path: Path) -> None:
    bundle = Bundle.open(path)
    bundle.verify()
    bundle.tokenizer()
    bundle.graph_path(Graph.SCORER, Precision.FP32)


def test_a_signed_manifest_is_checked_all_the_same(bundle_copy: Path) -> None:
    """Who alters the manifest can make the checksum fit: it is validated nonetheless."""
    original = (bundle_copy / "manifest.json").read_bytes()
    changes: list[Callable[[dict[str, Any]], object]] = [
        lambda content: content["files"].update({"../x": content["files"]["tokenizer.json"]}),
        lambda content: content["files"].update({"/etc/passwd": {}}),
        lambda content: content["files"].update({"a\0b": content["files"]["tokenizer.json"]}),
        lambda content: content["files"].update({"a" * 5000: content["files"]["tokenizer.json"]}),
        lambda content: content["files"].pop("tokenizer.json"),
        lambda content: content["files"].pop("fp32/scorer.onnx"),
        lambda content: content["graphs"]["fp32"].pop("scorer"),
        lambda content: content.update(more=1),
        lambda content: content["model"].update(max_frames=0),
        lambda content: content["model"].update(max_frames=1000),
        lambda content: content.update(frames_per_second=float("inf")),
        lambda content: content.update(tokenizer="../../etc/passwd"),
        lambda content: content["graphs"]["fp32"]["scorer"].update(file="/etc/passwd"),
    ]
    for change in changes:
        (bundle_copy / "manifest.json").write_bytes(original)
        edit(bundle_copy, change)
        with pytest.raises(BundleIntegrityError) as caught:
            use_everything(bundle_copy)
        assert "\n" not in str(caught.value)
        assert f"run: xclip-deploy export CHECKPOINT -o {bundle_copy}" in str(caught.value)


def test_a_precision_that_is_not_there(bundle_copy: Path) -> None:
    def remove(content: dict[str, Any]) -> None:
        for kind in ("graphs", "video_parts", "fused_graphs"):
            content[kind].pop("fp16")

    edit(bundle_copy, remove)
    bundle = Bundle.open(bundle_copy)
    assert bundle.precisions == (Precision.FP32,)
    with pytest.raises(InvalidArgumentError, match="has no fp16 graphs, only fp32"):
        bundle.graph_path(Graph.SCORER, Precision.FP16)


def test_a_tokenizer_with_more_ids_than_the_model(bundle_copy: Path) -> None:
    edit(bundle_copy, lambda content: content["model"]["text"].update(vocab_size=100))
    with pytest.raises(BundleIntegrityError, match="49408 ids, the model 100 embeddings"):
        Bundle.open(bundle_copy).tokenizer()


def test_a_bundle_can_be_moved(bundle_copy: Path, tmp_path: Path) -> None:
    moved = tmp_path / "an odd “näme”"
    bundle_copy.rename(moved)
    Bundle.open(moved).verify()
    assert not Retriever(moved, device="cpu").search("a dog")


@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json", "fp32/scorer.onnx"])
@pytest.mark.parametrize("kind", ["pipe", "link to a device"])
def test_what_is_no_regular_file_is_not_read(
    bundle_path: Path, tmp_path: Path, name: str, kind: str
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(bundle_path, bundle)

    def put(file: Path) -> None:
        file.unlink()
        if kind == "pipe":
            os.mkfifo(file)
        else:
            file.symlink_to("/dev/zero")

    if name != "manifest.json":  # which says a size that a pipe has
        edit(bundle, lambda content: content["files"][name].update(size_bytes=0))
    put(bundle / name)
    with pytest.raises(BundleIntegrityError, match=f"{name} is no regular file; copy the bundle"):
        Bundle.open(bundle)


def test_a_file_that_becomes_a_pipe_is_not_read(bundle_path: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle_path, tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "bundle")
    (bundle.path / "tokenizer.json").unlink()
    os.mkfifo(bundle.path / "tokenizer.json")
    with pytest.raises(BundleIntegrityError, match=r"tokenizer.json is no regular file"):
        bundle.tokenizer()
