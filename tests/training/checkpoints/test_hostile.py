"""Files that ask for much: each is refused in one line, by a count, before the work is done.

No test looks at a clock. Each file would take hours or gigabytes if its reader did not count.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from crafted_files import refusal, text

from xclip_deploy.training.checkpoints import (
    containers,
    pickles,
    read_weights,
)

Save = Callable[..., Path]


pytestmark = pytest.mark.usefixtures("little_memory")


def write_pickle(path: Path, pickled: bytes, *, is_script: bool = False) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", pickled)
        if is_script:
            archive.writestr("model/constants.pkl", b"\x80\x02).")
    return path


NESTED_TUPLES = b")" + b"q\x000h\x00h\x00\x86" * 60


@pytest.mark.parametrize("is_script", [False, True])
@pytest.mark.parametrize("set_item", [b"s", b"u"])
def test_nested_shared_tuples_as_a_key(tmp_path: Path, is_script: bool, set_item: bytes) -> None:
    # 60 tuples, each twice the one before: its hash visits 2^60 of them.
    opened = b"}" if set_item == b"s" else b"}("
    pickled = b"\x80\x02" + opened + NESTED_TUPLES + b"N" + set_item + b"."
    path = write_pickle(tmp_path / "model.pt", pickled, is_script=is_script)
    assert path.stat().st_size < 1200
    assert "has a tuple as key; refused as hostile" in refusal(path)


def test_nested_shared_tuples_in_other_places(tmp_path: Path) -> None:
    for number, pickled in enumerate(
        (
            b"\x80\x02ccollections\nOrderedDict\n]" + NESTED_TUPLES + b"N\x86a\x85R.",
            b"\x80\x02cbuiltins\nset\n]" + NESTED_TUPLES + b"a\x85R.",
            b"\x80\x02" + NESTED_TUPLES + b".",
            b"\x80\x02}X\x01\x00\x00\x00a" + NESTED_TUPLES + b"s.",
            b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
            + NESTED_TUPLES
            + b"NK\x01tQ.",
        )
    ):
        refusal(write_pickle(tmp_path / f"{number}.pt", pickled))


def test_nested_shared_tuples_in_a_file_of_the_old_format(tmp_path: Path) -> None:
    magic = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
    path = tmp_path / "model.pt"
    path.write_bytes(magic + b"\x80\x02}" + NESTED_TUPLES + b"Ns.")
    assert "has a tuple as key; refused as hostile" in refusal(path)


def test_flat_tuples_as_keys_are_read(save: Save) -> None:
    weights = {"a.weight": torch.ones(2)}
    assert read_weights(save({"state_dict": weights, "seen": {("a", 1): 2}})).tensors.keys() == {
        "a.weight"
    }


def test_numbers_whose_hashes_collide(tmp_path: Path) -> None:
    # Multiples of 2^61 - 1 have the hash 0, so that n keys take n² comparisons.
    prime = (1 << 61) - 1
    items = b"".join(
        b"\x8a\x0b" + (n * prime).to_bytes(11, "little") + b"N" for n in range(1, 20_000)
    )
    path = write_pickle(tmp_path / "model.pt", b"\x80\x02}(" + items + b"u.")
    assert "too many keys that are no names" in refusal(path)


def test_more_operations_than_weights_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MAX_OPERATIONS", 500)
    path = write_pickle(tmp_path / "model.pt", b"\x80\x02(" + b"N" * 600 + b"t.")
    assert "takes more than 500 operations; refused as hostile" in refusal(path)


def test_a_list_that_is_copied_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pickles, "MAX_OPERATIONS", 10_000)
    pairs = b"](" + b"K\x01K\x02\x86" * 1000 + b"eq\x00"
    copies = b"ccollections\nOrderedDict\nh\x00\x85R0" * 100
    path = write_pickle(tmp_path / "model.pt", b"\x80\x02" + pairs + copies + b".")
    assert "takes more than 10000 operations" in refusal(path)


@pytest.mark.parametrize("function", [b"ctorch._utils\n_rebuild_parameter\n", b"ctorch\ndevice\n"])
def test_arguments_that_are_copied_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: bytes
) -> None:
    monkeypatch.setattr(pickles, "MAX_OPERATIONS", 10_000)
    arguments = b"(" + b"N" * 1000 + b"tq\x000"
    path = write_pickle(
        tmp_path / "model.pt", b"\x80\x02" + arguments + (function + b"h\x00R0") * 100 + b"N."
    )
    assert "takes more than 10000 operations" in refusal(path)


def test_strides_of_more_dimensions_than_the_shape(tmp_path: Path) -> None:
    strides = b"(" + b"K\x01" * 70_000 + b"t"
    pickled = b"\x80\x02}" + text("weight") + TENSOR.replace(b"K\x01\x85\x89", strides + b"\x89")
    path = write_pickle(tmp_path / "model.pt", pickled + b"s.")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model/data/0", bytes(4))
    assert "a tensor without a shape" in refusal(path)


def test_long_names_are_shortened(tmp_path: Path) -> None:
    name = b"torch." + b"x" * 5000
    assert "it holds torch.xxx" in refusal(
        write_pickle(tmp_path / "name.pt", b"\x80\x02c" + name + b"\nf\n.")
    )
    key = text("k" * 5000)
    pickled = b"\x80\x02" + TENSOR.replace(text("0"), key) + b"."
    path = write_pickle(tmp_path / "key.pt", pickled)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model/data/" + "k" * 5000, bytes(8))
    message = refusal(path)
    assert "k" * 100 in message
    assert "k" * 200 not in message


@pytest.mark.parametrize("size", [4 << 30, 1 << 100])
@pytest.mark.parametrize("module", ["builtins", "__builtin__"])
def test_a_pickled_bytearray_of_4_gb(tmp_path: Path, size: int, module: str) -> None:
    length = b"\x8a\x0e" + size.to_bytes(14, "little")
    pickled = b"\x80\x02}X\x01\x00\x00\x00ac" + module.encode() + b"\nbytearray\n" + length
    message = refusal(write_pickle(tmp_path / "model.pt", pickled + b"\x85Rs."))
    assert f"a bytearray of {size if size < 1 << 64 else '2^100'} bytes" in message


def test_a_real_bytearray_is_no_weight_and_does_no_harm(save: Save) -> None:
    path = save({"state_dict": {"a.b": torch.ones(1)}, "key": bytearray(b"1234"), "raw": b"12"})
    assert read_weights(path).tensors.keys() == {"a.b"}


def test_40_000_zip_entries(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(40_000):
            archive.writestr(zipfile.ZipInfo(f"{number}/x"), b"")
    assert "has 40000 records, more than 20000; refused as hostile" in refusal(path)


def test_a_directory_of_a_zip_that_would_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "_MAX_DIRECTORY_BYTES", 1000)
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(30):
            archive.writestr(f"model/{number}", b"")
    assert "its directory has 16" in refusal(path)


def test_a_way_of_compression_that_torch_does_not_write(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("model/data.pkl", bytes(1000))
    assert "compressed by method 12" in refusal(path)


def test_a_compressed_checkpoint_is_read(tmp_path: Path, save: Save) -> None:
    weights = {"a.weight": torch.randn(5, 3), "a.bias": torch.arange(3)}
    with (
        zipfile.ZipFile(save(weights, "plain.pt")) as plain,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    found = read_weights(tmp_path / "packed.pt").tensors
    assert all(torch.equal(found[name], value) for name, value in weights.items())


def test_records_that_are_not_aligned_are_read(tmp_path: Path, save: Save) -> None:
    weights = {"a.weight": torch.randn(5, 3), "a.bias": torch.arange(3), "b.c": torch.ones(2) > 0}
    with (
        zipfile.ZipFile(save(weights, "plain.pt")) as plain,
        zipfile.ZipFile(tmp_path / "moved.pt", "w") as moved,
    ):
        for name in plain.namelist():
            moved.writestr(name, plain.read(name))
    found = read_weights(tmp_path / "moved.pt").tensors
    assert all(torch.equal(found[name], value) for name, value in weights.items())


def test_a_checkpoint_of_a_big_endian_machine(tmp_path: Path, save: Save) -> None:
    weights = {
        "a.weight": torch.randn(5, 3),
        "a.bias": torch.arange(3),
        "b.half": torch.randn(3).bfloat16(),
    }
    with (
        zipfile.ZipFile(save(weights, "little.pt")) as little,
        zipfile.ZipFile(tmp_path / "big.pt", "w") as big,
    ):
        for name in little.namelist():
            content = little.read(name)
            if name.endswith("byteorder"):
                content = b"big"
            elif "/data/" in name:
                width = {60: 4, 24: 8, 6: 2}[len(content)]
                content = b"".join(
                    content[at : at + width][::-1] for at in range(0, len(content), width)
                )
            big.writestr(name, content)
    found = read_weights(tmp_path / "big.pt").tensors
    assert all(torch.equal(found[name], value) for name, value in weights.items())


@pytest.mark.parametrize("legacy", [False, True])
def test_every_kind_of_tensor_is_read_as_torch_does(save: Save, legacy: bool) -> None:
    base = torch.randn(4, 6)
    tied = torch.nn.Parameter(torch.randn(3, 2))
    weights = {
        "view.t": base.t()[1:],
        "view.base": base,
        "tied.a": tied,
        "tied.b": tied,
        "number.a": torch.tensor(2.5, dtype=torch.float64),
        "empty.a": torch.empty(0, 3),
        **{
            f"kind.{name}": torch.arange(5).to(getattr(torch, name))
            for name in ("float16", "bfloat16", "int8", "uint8", "int16", "int32", "bool")
        },
        "kind.complex64": torch.complex(torch.ones(2), torch.zeros(2)),
    }
    path = save(
        {"state_dict": weights, "epoch": 3, "seen": {1, 2}, "size": base.shape}, legacy=legacy
    )
    expected = torch.load(path, weights_only=True)["state_dict"]
    found = read_weights(path).tensors
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("legacy", [False, True])
def test_weights_are_not_read_twice_into_memory(save: Save, legacy: bool) -> None:
    """A copy of tied weights shares memory, as in the model that was saved."""
    tied = torch.randn(3, 2)
    tensors = read_weights(save({"a.x": tied, "a.y": tied}, legacy=legacy)).tensors
    assert tensors["a.x"].data_ptr() == tensors["a.y"].data_ptr()


def test_an_old_file_that_declares_more_than_it_holds(tmp_path: Path, save: Save) -> None:
    path = save({"a.x": torch.zeros(1 << 16)}, legacy=True)
    content = path.read_bytes()
    huge = content.replace(struct.pack("<I", 1 << 16), struct.pack("<I", 1 << 30))
    assert huge != content
    path.write_bytes(huge)
    assert "refused as damaged or hostile" in refusal(path)


@pytest.mark.parametrize("leaf", [{"step": 1}, {"weight": torch.ones(2)}])
def test_shared_dicts_under_keys_of_averages(save: Save, leaf: dict[str, Any]) -> None:
    # Three levels of 2,000 keys lead to one dict: a search of each path takes 8 billion steps.
    content = leaf
    for _ in range(4):
        content = {f"ema_{n}": content for n in range(2000)}
    message = refusal(save(content))
    assert ("say which to take" in message) == ("weight" in leaf)
    assert "and 1995 more" in message


def test_keys_that_are_shared_tuples_of_long_texts(tmp_path: Path) -> None:
    # 1,000 keys of 15 times one text of 1 MB: 15 GB of text, were they spelled out.
    text = b"X" + struct.pack("<I", 1 << 20) + b"x" * (1 << 20)
    keys = b"".join(
        b"(h\x01" + b"h\x01" * 14 + b"M" + struct.pack("<H", n) + b"tN" for n in range(1000)
    )
    pickled = b"\x80\x02}(" + text + b"q\x01N" + keys + b"u."
    path = write_pickle(tmp_path / "model.pt", pickled)
    assert "holds no named weights: found a dict with xxx" in refusal(path)


def test_names_that_are_too_long(save: Save) -> None:
    name = "module." * 100_000
    assert "names of up to 700000 characters" in refusal(save({name: torch.ones(1)}))


TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQK\x00K\x01\x85K\x01\x85\x89"
    b"ccollections\nOrderedDict\n)RtR"
)
"""Opcodes of a tensor of one number, whose record is ``data/0``."""


def module(attributes: bytes) -> bytes:
    return b"c__torch__\nModule\n)\x81}(" + attributes + b"ub"


def script(path: Path, leaf: bytes, num_leaves: int) -> Path:
    """Write a TorchScript archive of one module that holds another many times."""
    leaves = b"".join(text(f"m{n}") + b"h\x05" for n in range(num_leaves))
    pickled = b"\x80\x02" + module(text("leaf") + module(leaf) + b"q\x05" + leaves) + b"."
    write_pickle(path, pickled, is_script=True)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model/data/0", bytes(4))
    return path


def test_attributes_of_a_shared_module_are_counted_each_time(tmp_path: Path) -> None:
    # 2.7 billion attributes, of which none is a weight.
    leaf = b"".join(text(f"a{n}") + b"N" for n in range(30_000))
    assert "attributes, or names" in refusal(script(tmp_path / "model.pt", leaf, 90_000))


def test_a_long_name_in_a_shared_module(tmp_path: Path) -> None:
    leaf = text("x" * (1 << 21)) + TENSOR
    path = script(tmp_path / "model.pt", leaf, 2000)
    assert "refused as hostile" in refusal(path)


def test_a_shared_module_is_read_as_often_as_it_occurs(tmp_path: Path) -> None:
    path = script(tmp_path / "model.pt", text("weight") + TENSOR + text("training") + b"N", 3)
    assert sorted(read_weights(path).tensors) == [
        *("leaf.weight", "m0.weight", "m1.weight", "m2.weight")
    ]


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    os.mkfifo(path)
    assert "no regular file" in refusal(path)
