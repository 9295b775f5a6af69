"""Containers: what is read, what is refused, and that nothing is ever executed."""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from xclip_deploy.errors import CheckpointError, CheckpointReadError
from xclip_deploy.training.checkpoints import load_checkpoint, read_weights

StateDict = dict[str, Tensor]
Save = Callable[..., Path]
AssertSame = Callable[[StateDict, StateDict], None]


class Payload:
    """Creates a file when it is unpickled by a reader that executes what it reads."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.marker}",))


TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(2.5).half()}


@pytest.mark.parametrize(("legacy", "container"), [(False, "torch-zip"), (True, "torch-legacy")])
def test_torch_files(save: Save, assert_same: AssertSame, legacy: bool, container: str) -> None:
    path = save(TENSORS, legacy=legacy)
    raw = read_weights(path)
    assert raw.container == container
    assert raw.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert_same(raw.tensors, TENSORS)


def test_safetensors_whatever_it_is_called(tmp_path: Path, assert_same: AssertSame) -> None:
    for name in ("weights.safetensors", "weights.bin"):
        save_file(TENSORS, tmp_path / name)
        raw = read_weights(tmp_path / name)
        assert raw.container == "safetensors"
        assert_same(raw.tensors, TENSORS)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda sd: {"state_dict": sd, "epoch": 3, "optimizer": {"state": {0: torch.zeros(2)}}},
        lambda sd: {"model": sd},
        lambda sd: {"model_state_dict": sd, "args": {"lr": 0.1}},
        lambda sd: {"module": sd},
        lambda sd: {"model": {"state_dict": sd}},
        lambda sd: {f"module.{name}": value for name, value in sd.items()},
        lambda sd: {f"_orig_mod.{name}": value for name, value in sd.items()},
        lambda sd: {f"module._orig_mod.{name}": value for name, value in sd.items()},
        lambda sd: {"state_dict": {f"model.module.{name}": value for name, value in sd.items()}},
        lambda sd: {**sd, "_extra_state": None},
    ],
)
def test_wrappers_of_training_scripts(
    save: Save, assert_same: AssertSame, wrap: Callable[[StateDict], object]
) -> None:
    assert_same(read_weights(save(wrap(TENSORS))).tensors, TENSORS)


def test_a_prefix_that_not_all_have_stays(save: Save) -> None:
    content = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    assert read_weights(save(content)).tensors.keys() == content.keys()


@pytest.mark.parametrize(
    "content", [{}, {"epoch": 3}, [torch.zeros(2)], torch.zeros(2), {"state_dict": {}}, {1: 2}]
)
def test_files_without_named_weights(save: Save, content: Any) -> None:
    with pytest.raises(CheckpointReadError, match="no named weights"):
        read_weights(save(content))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"lr: 0.001\nepochs: 5\n", "text file that begins 'lr: 0.001"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 60, "PNG image"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 60, "JPEG image"),
        # Without its time, or two test workers would collect tests of different names.
        (gzip.compress(b"weights", mtime=0), "gzip"),
        (bytes(range(200, 250)), "not a checkpoint"),
        (b"\0", "not a checkpoint"),
        (pickle.dumps({"a": 1}, protocol=4), "plain pickle"),
        (pickle.dumps({"a": 1}, protocol=2), "damaged"),
    ],
)
@pytest.mark.parametrize("name", ["model.pt", "noname"])
def test_files_that_are_no_checkpoint(tmp_path: Path, content: Any, reason: str, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointReadError, match=reason) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_other_zip_archives(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<xml/>")
    with pytest.raises(CheckpointReadError, match=r"no data\.pkl"):
        read_weights(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointReadError, match="no such file"):
        read_weights(tmp_path / "absent.pt")


def test_file_without_permission(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(TENSORS)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointReadError, match=r"cannot be read.*Permission denied"):
        read_weights(path)


def files_of_each_kind(tmp_path: Path) -> list[Path]:
    torch.save(TENSORS, tmp_path / "zip.pt")
    torch.save(TENSORS, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file(TENSORS, tmp_path / "file.safetensors")
    return [tmp_path / name for name in ("zip.pt", "legacy.pt", "file.safetensors")]


@pytest.mark.parametrize("kind", range(3))
def test_truncated_anywhere(tmp_path: Path, kind: int) -> None:
    path = files_of_each_kind(tmp_path)[kind]
    whole = path.read_bytes()
    for size in sorted({*range(80), *range(80, len(whole), 37), len(whole) - 1}):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointReadError):
            read_weights(path)


@pytest.mark.parametrize("kind", range(3))
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_damaged_bytes_raise_nothing_else(tmp_path: Path, kind: int, data: st.DataObject) -> None:
    path = files_of_each_kind(tmp_path)[kind]
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    with contextlib.suppress(CheckpointError):
        read_weights(path)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_malicious_pickle_is_refused_and_not_executed(
    tmp_path: Path, save: Save, legacy: bool
) -> None:
    marker = tmp_path / "executed"
    path = save({**TENSORS, "payload": Payload(marker)}, legacy=legacy)
    with pytest.raises(CheckpointReadError, match="unsafe to open") as caught:
        load_checkpoint(path)
    assert f"{os.system.__module__}.system" in str(caught.value)
    assert "torch.save(model.state_dict(), path)" in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"args": argparse.Namespace(lr=1), **TENSORS}, "argparse.Namespace"),
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ],
)
def test_other_objects_are_refused_by_name(save: Save, content: Any, named: str) -> None:
    with pytest.raises(CheckpointReadError, match=named):
        load_checkpoint(save(content))


def test_tensors_larger_than_their_file(save: Save) -> None:
    huge = torch.zeros(1).expand(1 << 20, 1 << 20)
    with pytest.raises(CheckpointReadError, match="hostile"):
        read_weights(save({"a": huge}))


def test_zip_bomb(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(4_000_000)}, buffer)
    path = tmp_path / "bomb.pt"
    with (
        zipfile.ZipFile(buffer) as plain,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(CheckpointReadError, match="hostile"):
        read_weights(path)


def test_sparse_tensors_are_refused(save: Save) -> None:
    with pytest.raises(CheckpointReadError, match="dense"):
        read_weights(save({"a": torch.eye(3).to_sparse()}))


def write_shards(folder: Path, weight_map: dict[str, str]) -> Path:
    for shard in set(weight_map.values()):
        names = [name for name, owner in weight_map.items() if owner == shard]
        save_file({name: TENSORS[name] for name in names}, folder / shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


SHARDS = {"a.weight": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}


def test_sharded_folder(tmp_path: Path, assert_same: AssertSame) -> None:
    write_shards(tmp_path, SHARDS)
    raw = read_weights(tmp_path)
    assert_same(raw.tensors, TENSORS)
    lines = "".join(
        f"{hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}  {name}\n"
        for name in sorted(SHARDS.values())
    )
    assert raw.sha256 == hashlib.sha256(lines.encode()).hexdigest()


def test_missing_shard(tmp_path: Path) -> None:
    write_shards(tmp_path, SHARDS)
    (tmp_path / SHARDS["b"]).unlink()
    with pytest.raises(CheckpointReadError, match="1 of 2 shards are missing: model-2"):
        read_weights(tmp_path)


def test_tensor_that_no_shard_has(tmp_path: Path) -> None:
    index = write_shards(tmp_path, SHARDS)
    index.write_text(json.dumps({"weight_map": {**SHARDS, "c": SHARDS["b"]}}))
    with pytest.raises(CheckpointReadError, match="no shard has: c"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    "shard", ["../outside.safetensors", "/etc/passwd", "a/b.safetensors", "..", "C:\\x", ""]
)
def test_shard_outside_the_folder(tmp_path: Path, shard: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(TENSORS, tmp_path / "outside.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(CheckpointReadError, match="outside its folder"):
        read_weights(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 1}}', "{}"])
def test_broken_index(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointReadError, match=r"index\.json"):
        read_weights(tmp_path)


def test_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(CheckpointReadError, match=r"without weights: found notes\.txt"):
        read_weights(tmp_path)


def test_folder_of_a_training_run(tmp_path: Path, assert_same: AssertSame) -> None:
    torch.save(TENSORS, tmp_path / "pytorch_model.bin.0")
    assert_same(read_weights(tmp_path).tensors, TENSORS)
    torch.save(TENSORS, tmp_path / "pytorch_model.bin.1")
    with pytest.raises(CheckpointReadError, match="holds 2 checkpoints"):
        read_weights(tmp_path)


def test_safetensors_go_before_pickles(tmp_path: Path, assert_same: AssertSame) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    torch.save({"other": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert_same(read_weights(tmp_path).tensors, TENSORS)
