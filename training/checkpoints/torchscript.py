"""Read the weights of a TorchScript archive without running any of it.

OpenAI published CLIP's ViT-*.pt as such archives. ``torch.jit.load`` compiles the code in an
archive, and ``pickle`` may call what it names. This module does neither. Its own machine
interprets ``data.pkl``. It knows only the opcodes of torch's own writer
(torch/csrc/jit/serialization/pickler.cpp), and builds containers, inert objects and tensors.
"""

from __future__ import annotations

import pickletools
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xclip_deploy.errors import CheckpointReadError

_DTYPES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
_REBUILD_TENSOR = "torch._utils._rebuild_tensor_v2"
# Each tells TorchScript a static type, and takes the value itself as first argument.
_TYPED_CONTAINERS = {
    "torch.jit._pickle.build_intlist",
    "torch.jit._pickle.build_doublelist",
    "torch.jit._pickle.build_boollist",
    "torch.jit._pickle.build_tensorlist",
    "torch.jit._pickle.restore_type_tag",
}
_INERT = {"collections.OrderedDict", "torch.device"}

# The object tree of ViT-L/14 takes 0.3 MB and some 600 tensors.
_MAX_PICKLE_BYTES = 32 << 20
_MAX_NAMES = 100_000


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass
class _ScriptObject:
    """Instance of a class that the archive defines: it has attributes and no behaviour."""

    state: dict[Any, Any] = field(default_factory=dict)


class _Mark:
    pass


def read_torchscript(archive: zipfile.ZipFile, root: str, path: Path) -> dict[str, Tensor]:
    """Read every parameter and buffer, named as in the module's ``state_dict()``.

    ``root``: the archive's top folder with its slash. ``path``: the file, for messages.

    Raises:
        CheckpointReadError: the archive names something to call other than torch's own
            tensor and list constructors, or its records do not fit its tensors.
        Exception: nearly any other, where the archive is damaged.
    """
    names = set(archive.namelist())
    if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
        raise CheckpointReadError(f"{path}: written on a big-endian machine; save it on another")
    pickle_bytes = archive.getinfo(f"{root}data.pkl").file_size
    if pickle_bytes > _MAX_PICKLE_BYTES:
        raise CheckpointReadError(f"{path}: data.pkl has {pickle_bytes} bytes; refused as hostile")
    machine = _Machine(archive, root, path)
    return _flatten(machine.run(archive.read(f"{root}data.pkl")), path)


def _flatten(module: object, path: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    pending: list[tuple[str, object]] = [("", module)]
    visited = 0
    while pending:
        prefix, owner = pending.pop()
        visited += 1
        # A few shared objects can make a tree without end.
        if visited + len(tensors) > _MAX_NAMES:
            raise CheckpointReadError(f"{path}: more than {_MAX_NAMES} modules; refused as hostile")
        if not isinstance(owner, _ScriptObject):
            continue
        for name, value in owner.state.items():
            if isinstance(value, Tensor):
                tensors[f"{prefix}{name}"] = value
            elif isinstance(value, _ScriptObject):
                pending.append((f"{prefix}{name}.", value))
    return tensors


class _Machine:
    """Pickle machine that calls nothing, and refuses what it does not know."""

    def __init__(self, archive: zipfile.ZipFile, root: str, path: Path) -> None:
        self._archive = archive
        self._root = root
        self._path = path
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._storages: dict[str, Tensor] = {}

    def run(self, pickled: bytes) -> object:
        """Build the object that the pickle describes."""
        stack, memo = self._stack, self._memo
        argument: Any
        for opcode, argument, _ in pickletools.genops(pickled):
            name = opcode.name
            if name in _LITERALS:
                stack.append(argument)
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name]())
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name in _TUPLES:
                count = _TUPLES[name]
                stack[-count:] = [tuple(stack[-count:])]
            elif name == "TUPLE":
                items = self._pop_to_mark()
                stack.append(tuple(items))
            elif name == "APPEND":
                item = stack.pop()
                self._top(list).append(item)
            elif name == "APPENDS":
                items = self._pop_to_mark()
                self._top(list).extend(items)
            elif name == "SETITEM":
                value, key = stack.pop(), stack.pop()
                self._top(dict)[key] = value
            elif name == "SETITEMS":
                items = self._pop_to_mark()
                self._top(dict).update(zip(items[::2], items[1::2], strict=True))
            elif name == "GLOBAL":
                stack.append(_Global(str(argument).replace(" ", ".", 1)))
            elif name == "NEWOBJ":
                self._arguments()
                self._new_object(stack.pop())
            elif name == "BUILD":
                state = stack.pop()
                # A class with __getstate__ keeps a state of its own, and is no module.
                self._top(_ScriptObject).state = state if isinstance(state, dict) else {}
            elif name == "REDUCE":
                arguments = self._arguments()
                stack.append(self._reduce(stack.pop(), arguments))
            elif name == "BINPERSID":
                stack.append(self._storage(stack.pop()))
            elif name == "STOP":
                return stack.pop()
            elif name != "PROTO":
                raise CheckpointReadError(
                    f"{self._path}: data.pkl has the pickle operation {name}, which no "
                    "TorchScript archive has; refused as damaged or unsafe"
                )
        raise EOFError("data.pkl ends early")

    def _pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while not isinstance(item := self._stack.pop(), _Mark):
            items.append(item)
        return items[::-1]

    def _top(self, kind: type[Any]) -> Any:  # noqa: ANN401 - an element of a foreign pickle
        if not isinstance(self._stack[-1], kind):
            raise TypeError(f"data.pkl fills a {type(self._stack[-1]).__name__}")
        return self._stack[-1]

    def _arguments(self) -> tuple[Any, ...]:
        arguments = self._stack.pop()
        if not isinstance(arguments, tuple):
            raise TypeError("data.pkl has a call without arguments")
        return arguments

    def _new_object(self, kind: object) -> None:
        if not isinstance(kind, _Global) or not kind.name.startswith("__torch__."):
            raise self._unsafe(kind)
        self._stack.append(_ScriptObject())

    def _reduce(self, called: object, arguments: tuple[Any, ...]) -> object:
        name = called.name if isinstance(called, _Global) else ""
        if name == _REBUILD_TENSOR:
            return self._tensor(*arguments[:4])
        if name in _TYPED_CONTAINERS:
            return arguments[0]
        if name in _INERT:
            return {}
        raise self._unsafe(called)

    def _unsafe(self, named: object) -> CheckpointReadError:
        what = named.name if isinstance(named, _Global) else type(named).__name__
        return CheckpointReadError(
            f"{self._path}: unsafe to open: this TorchScript archive asks to call {what}; where "
            "you trust the file, save its weights alone: torch.save(model.state_dict(), path)"
        )

    def _storage(self, identity: object) -> Tensor:
        """Read the record of ``('storage', type, key, device, number of elements)``."""
        if not isinstance(identity, tuple) or len(identity) != 5:
            raise TypeError("data.pkl has a storage without an identity")
        _, kind, key, _, count = identity  # everything is read to the CPU, whatever the device
        dtype = _DTYPES.get(kind.name) if isinstance(kind, _Global) else None
        if dtype is None:
            raise self._unsafe(kind)
        if not isinstance(key, str) or not isinstance(count, int):
            raise TypeError("data.pkl has a storage without an identity")
        if key not in self._storages:
            record = self._archive.read(f"{self._root}data/{key}")
            if count * dtype.itemsize != len(record):
                raise CheckpointReadError(
                    f"{self._path}: record data/{key} has {len(record)} bytes, its storage of "
                    f"{count} elements takes {count * dtype.itemsize}"
                )
            # frombuffer takes neither an empty nor, without a warning, a read-only buffer.
            buffer = bytearray(record)
            self._storages[key] = (
                torch.frombuffer(buffer, dtype=dtype) if count else torch.empty(0, dtype=dtype)
            )
        storage = self._storages[key]
        if storage.dtype != dtype or storage.numel() != count:
            raise CheckpointReadError(f"{self._path}: record data/{key} is declared in two ways")
        return storage

    def _tensor(
        self, storage: object, offset: int, size: tuple[int, ...], stride: tuple[int, ...]
    ) -> Tensor:
        """Return a view of the storage; torch checks that it lies inside."""
        if not isinstance(storage, Tensor):
            raise TypeError("data.pkl has a tensor without a storage")
        return storage.as_strided(size, stride, offset)


_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "BINUNICODE8"}
_CONSTANTS: dict[str, type[Any] | Any] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "MARK": _Mark,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
