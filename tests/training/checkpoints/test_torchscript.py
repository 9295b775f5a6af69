"""TorchScript archives are opened for their weights alone."""

from __future__ import annotations

import contextlib
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from xclip_deploy.errors import CheckpointError, CheckpointReadError
from xclip_deploy.training.checkpoints import load_checkpoint, read_weights

StateDict = dict[str, Tensor]
AssertSame = Callable[[StateDict, StateDict], None]


class Node(nn.Module):
    """A module tree that has exactly the tensors of a state dict."""

    def __init__(self, state_dict: StateDict) -> None:
        super().__init__()
        children: dict[str, StateDict] = {}
        for name, tensor in state_dict.items():
            head, dot, rest = name.partition(".")
            if dot:
                children.setdefault(head, {})[rest] = tensor
            elif tensor.is_floating_point():
                self.register_parameter(head, nn.Parameter(tensor.clone()))
            else:
                self.register_buffer(head, tensor)
        for name, content in children.items():
            self.add_module(name, Node(content))

    def forward(self, x: Tensor) -> Tensor:
        return x + 1


class Scripted(nn.Module):
    """Attributes of every kind that TorchScript writes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(12.0).reshape(3, 4))
        self.tied = self.weight
        self.register_buffer("halves", torch.ones(3).half())
        self.register_buffer("counts", torch.arange(4))
        self.register_buffer("empty", torch.zeros(0))
        self.view: Tensor  # TorchScript would read an annotation of the class
        self.register_buffer("view", torch.arange(12.0).reshape(3, 4).t()[1:])
        self.layers = nn.Sequential(nn.Linear(4, 2), nn.LayerNorm(2))
        self.sizes = [1, 2, 3]
        self.ratios = [0.5, -1.5]
        self.table = {"a": 1 << 40}
        self.pair = (1, "two", None)
        self.name = "naïve"

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x) + self.view.sum()
        return found


def save_script(module: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.save(torch.jit.script(module), str(path))
    return path


def save_trace(module: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        traced = torch.jit.trace(module, torch.zeros(2))  # type: ignore[no-untyped-call]
        torch.jit.save(traced, str(path))
    return path


@pytest.fixture
def no_jit_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("an archive was executed")

    monkeypatch.setattr(torch.jit, "load", refuse)
    monkeypatch.setattr(torch._C, "import_ir_module", refuse)


def test_every_parameter_and_buffer(
    tmp_path: Path, assert_same: AssertSame, no_jit_load: None
) -> None:
    module = Scripted()
    raw = read_weights(save_script(module, tmp_path / "model.pt"))
    assert raw.container == "torchscript"
    expected = dict(module.state_dict())
    assert_same(raw.tensors, expected)


def test_openai_archive(
    tmp_path: Path,
    layouts: Any,
    clip_weights: StateDict,
    assert_same: AssertSame,
    no_jit_load: None,
) -> None:
    content = layouts.openai(clip_weights)
    content = {n: t.half() if t.ndim > 1 else t for n, t in content.items()}
    content |= {n: torch.tensor(24) for n in ("input_resolution", "context_length", "vocab_size")}
    checkpoint = load_checkpoint(save_trace(Node(content), tmp_path / "ViT-B-32.pt"))
    assert checkpoint.layout == "OpenAI CLIP"
    assert checkpoint.config == layouts.config()
    assert not any("activation" in note for note in checkpoint.notes)
    expected = {n: t.half().float() if t.ndim > 1 else t for n, t in clip_weights.items()}
    assert_same(checkpoint.state_dict, expected)


def test_resnet_archive_is_refused_by_name(tmp_path: Path) -> None:
    module = Node({"visual.layer1.0.conv1.weight": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="ResNet"):
        load_checkpoint(save_trace(module, tmp_path / "RN50.pt"))


def write_archive(
    path: Path,
    data_pkl: bytes,
    records: Sequence[tuple[str, bytes]] = (),
    *,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("model/data.pkl", data_pkl)
        archive.writestr("model/constants.pkl", pickle.dumps((), protocol=2))
        archive.writestr("model/version", "3\n")
        for name, record in records:
            archive.writestr(f"model/data/{name}", record)
    return path


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.marker}",))


@pytest.mark.parametrize("protocol", range(5))
def test_a_malicious_archive_is_refused_and_not_executed(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "executed"
    pickled = pickle.dumps({"weight": Payload(marker)}, protocol=protocol)
    with pytest.raises(CheckpointReadError) as caught:
        load_checkpoint(write_archive(tmp_path / "model.pt", pickled))
    assert not marker.exists()
    assert "\n" not in str(caught.value)
    if protocol == 2:
        assert f"unsafe to open: this TorchScript archive asks to call {os.system.__module__}" in (
            str(caught.value)
        )


def script_object(attributes: bytes) -> bytes:
    """Pickle of one module with the given (name, value) opcodes as its attributes."""
    return b"\x80\x02c__torch__\nM\n)\x81}(" + attributes + b"ub."


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def tensor(
    key: str = "0",
    count: int = 4,
    size: int = 4,
    stride: int = 1,
    offset: int = 0,
    kind: str = "FloatStorage",
) -> bytes:
    def integer(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    identity = b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n"
    identity += text(key) + text("cpu") + integer(count) + b"tQ"
    shape = b"(" + integer(size) + b"t(" + integer(stride) + b"t"
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + identity + integer(offset) + shape + hooks + b"tR"
    )


def test_the_hand_written_archive_is_valid(tmp_path: Path) -> None:
    pickled = script_object(text("weight") + tensor())
    raw = read_weights(write_archive(tmp_path / "model.pt", pickled, [("0", bytes(16))]))
    assert torch.equal(raw.tensors["weight"], torch.zeros(4))


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": 5},
        {"count": 1 << 30},
        {"count": -1},
        {"key": "../0"},
        {"key": "absent"},
        {"size": 5},
        {"size": -1},
        {"stride": -1},
        {"offset": 1},
        {"offset": -1},
        {"size": 1 << 30, "stride": 0},
        {"kind": "DoubleStorage"},
        {"kind": "load"},
    ],
)
def test_tensors_that_do_not_fit_their_records(tmp_path: Path, wrong: dict[str, Any]) -> None:
    pickled = script_object(text("weight") + tensor(**wrong))
    with pytest.raises(CheckpointReadError):
        read_weights(write_archive(tmp_path / "model.pt", pickled, [("0", bytes(16))]))


def test_one_record_declared_in_two_ways(tmp_path: Path) -> None:
    halves = tensor(kind="HalfStorage", count=8, size=8)
    pickled = script_object(text("a") + tensor() + text("b") + halves)
    with pytest.raises(CheckpointReadError, match="two ways"):
        read_weights(write_archive(tmp_path / "model.pt", pickled, [("0", bytes(16))]))


def test_a_module_that_contains_itself(tmp_path: Path) -> None:
    loop = b"\x80\x02c__torch__\nM\n)\x81q\x00}(" + text("child") + b"h\x00ub."
    with pytest.raises(CheckpointReadError, match="hostile"):
        read_weights(write_archive(tmp_path / "model.pt", loop))


def test_a_huge_pickle_is_not_unpacked(tmp_path: Path) -> None:
    path = write_archive(
        tmp_path / "model.pt", b"N" * (64 << 20) + b".", compression=zipfile.ZIP_DEFLATED
    )
    with pytest.raises(CheckpointReadError, match="hostile"):
        read_weights(path)


def test_truncated_anywhere(tmp_path: Path) -> None:
    path = save_script(Scripted(), tmp_path / "model.pt")
    whole = path.read_bytes()
    for size in range(0, len(whole), 211):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointReadError):
            read_weights(path)


VALID = script_object(text("weight") + tensor() + text("b") + tensor())


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_damaged_pickles_raise_nothing_else(tmp_path: Path, data: st.DataObject) -> None:
    damaged = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = write_archive(tmp_path / "model.pt", bytes(damaged), [("0", bytes(16))])
    with contextlib.suppress(CheckpointError):
        read_weights(path)
