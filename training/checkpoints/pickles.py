"""Interpret the pickles of checkpoints, and call nothing that they name.

``pickle`` may call what a file names. The machine of this module knows the opcodes of torch's
writers, and builds containers, inert objects and tensors. It counts what it does: a small file
cannot make it work long or fill the memory.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from torch import Tensor

from xclip_deploy.errors import CheckpointReadError
from xclip_deploy.training.checkpoints.pickled_names import (
    BYTEARRAY,
    DICTS,
    DTYPE_NAMES,
    DTYPES,
    INERT,
    KNOWN_NAMES,
    NOT_DENSE,
    PARAMETERS,
    SCRIPT_CLASSES,
    SUBCLASS,
    TENSORS,
    TYPED_TENSOR,
    TYPES,
    WRAPPERS,
)
from xclip_deploy.training.checkpoints.refusals import shown_name

MAX_PICKLE_BYTES = 32 << 20
"""Longest pickle that is read. X-CLIP of ViT-L/14 with its optimiser takes 0.15 MB."""
MAX_OPERATIONS = 2_000_000
"""Most opcodes, and elements that they copy. ViT-L/14 with its optimiser takes 0.05 million."""
_MAX_RARE_KEYS = 10_000
"""Most keys that are neither text nor small integers: their hashes can be made to collide."""
_MAX_KEY_PARTS = 16
_MAX_DIMENSIONS = 64


@dataclass(frozen=True)
class NotDense:
    """Tensor that is sparse, quantised or without values: it is no weight."""


@dataclass
class ScriptObject:
    """Instance of a class that an archive defines: it has attributes and no behaviour."""

    state: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Global:
    name: str


class _Inert:
    """Value that no weight needs, such as a device."""


class _Mark:
    """Start of a run of elements on the stack."""


@dataclass(frozen=True)
class StorageIdentity:
    """Reference of a pickle to values that lie outside it."""

    key: str
    dtype: torch.dtype
    count: int
    """Number of elements."""
    view: object = None
    """Part of the values, ``(name, offset, count)``; files before PyTorch 0.4 have it."""


Refusal = Callable[[str], str]
_INERT_VALUE: Final = _Inert()
_MARK: Final = _Mark()


class PickleMachine:
    """Interpreter of one file's pickles, which refuses what it does not know."""

    def __init__(
        self,
        path: Path,
        read_storage: Callable[[StorageIdentity], Tensor],
        unsafe: Refusal,
        *,
        has_scripts: bool = False,
    ) -> None:
        """Prepare to run.

        ``path``: the file, for messages. ``read_storage``: returns the values of a storage, one
        axis. ``unsafe``: words the refusal of a name. ``has_scripts``: know the classes of a
        TorchScript archive.
        """
        self._path = path
        self._read_storage = read_storage
        self._unsafe_text = unsafe
        self._has_scripts = has_scripts
        self._operations = 0
        self._rare_keys = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._actions: dict[str, Callable[[Any], None]] = {
            "TUPLE": lambda _: self._push(tuple(self._pop_to_mark())),
            "APPEND": self._append,
            "APPENDS": lambda _: self._extend(self._pop_to_mark()),
            "SETITEM": lambda _: self._set_items([self._stack.pop(-2), self._stack.pop()]),
            "SETITEMS": lambda _: self._set_items(self._pop_to_mark()),
            "GLOBAL": self._find,
            "NEWOBJ": self._make,
            "BUILD": self._build,
            "REDUCE": self._reduce,
            "BINPERSID": self._find_storage,
            "EMPTY_SET": lambda _: self._push(_INERT_VALUE),
            "ADDITEMS": lambda _: self._drop(self._pop_to_mark()),
            "POP": lambda _: self._drop([self._stack.pop()]),
            "PROTO": lambda _: None,
        }

    def run(self, pickled: BinaryIO) -> object:
        """Build the object that the next pickle of the file describes.

        Raises:
            CheckpointReadError: the pickle names something unknown, or asks for too much.
            Exception: nearly any other, where the file is damaged.
        """
        self._stack.clear()
        self._memo.clear()
        stack, memo = self._stack, self._memo
        argument: Any
        for opcode, argument, _ in pickletools.genops(pickled):
            name = opcode.name
            self._spend(1)
            if name in _LITERALS:
                stack.append(argument)
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name]())
            elif name in _TUPLES:
                count = _TUPLES[name]
                stack[-count:] = [tuple(stack[-count:])]
            elif name == "STOP":
                return stack.pop()
            elif name in self._actions:
                self._actions[name](argument)
            else:
                raise self._refused(
                    f"its pickle has the operation {name}, which no checkpoint has; refused as "
                    "damaged or unsafe"
                )
        raise EOFError("the pickle ends early")

    def _refused(self, reason: str) -> CheckpointReadError:
        return CheckpointReadError(f"{self._path}: {reason}")

    def _spend(self, operations: int) -> None:
        self._operations += operations
        if self._operations > MAX_OPERATIONS:
            raise self._refused(
                f"its pickle takes more than {MAX_OPERATIONS} operations; refused as hostile, "
                "since weights take far fewer"
            )

    def _push(self, value: object) -> None:
        self._stack.append(value)

    def _drop(self, _values: object) -> None:
        pass

    def _pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self._stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def _top(self, kind: type[Any]) -> Any:  # noqa: ANN401 - an element of a foreign pickle
        if not isinstance(self._stack[-1], kind):
            raise TypeError(f"the pickle fills a {type(self._stack[-1]).__name__}")
        return self._stack[-1]

    def _append(self, _: object) -> None:
        item = self._stack.pop()
        self._top(list).append(item)

    def _extend(self, items: list[Any]) -> None:
        self._top(list).extend(items)

    def _set_items(self, items: list[Any]) -> None:
        if isinstance(self._stack[-1], _Inert):
            return
        target = self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            self._check_key(key)
            target[key] = value

    def _check_key(self, key: object) -> None:
        """Refuse a key whose hash takes long: a few shared tuples nest without end."""
        if isinstance(key, str) or (type(key) is int and 0 <= key < 1 << 31):
            return
        self._rare_keys += 1
        parts = key if isinstance(key, tuple) else (key,)
        is_flat = len(parts) <= _MAX_KEY_PARTS and all(
            part is None or isinstance(part, (str, int, float, bytes, _Global)) for part in parts
        )
        if not is_flat or self._rare_keys > _MAX_RARE_KEYS:
            what = "too many keys that are no names" if is_flat else f"a {type(key).__name__}"
            raise self._refused(
                f"a dict in it has {what} as key; refused as hostile, since weights have names"
            )

    def _find(self, argument: object) -> None:
        name = str(argument).replace(" ", ".", 1)
        if name.startswith("__builtin__."):  # Python 2's
            name = name.replace("__builtin__", "builtins", 1)
        is_script = self._has_scripts and name.startswith(SCRIPT_CLASSES)
        if name not in KNOWN_NAMES and not is_script:
            raise self._unsafe(name)
        self._stack.append(_Global(name))

    def _unsafe(self, named: object) -> CheckpointReadError:
        name = named if isinstance(named, str) else f"a {type(named).__name__}"
        name = named.name if isinstance(named, _Global) else name
        return self._refused(self._unsafe_text(shown_name(name)))

    def _arguments(self) -> tuple[Any, ...]:
        arguments = self._stack.pop()
        if not isinstance(arguments, tuple):
            raise TypeError("the pickle has a call without arguments")
        return arguments

    def _make(self, _: object) -> None:
        self._arguments()
        kind = self._stack.pop()
        if not isinstance(kind, _Global) or not kind.name.startswith(SCRIPT_CLASSES):
            raise self._unsafe(kind)
        self._stack.append(ScriptObject())

    def _build(self, _: object) -> None:
        state = self._stack.pop()
        if isinstance(self._stack[-1], ScriptObject):
            # A class with __getstate__ keeps a state of its own, and is no module.
            self._stack[-1].state = state if isinstance(state, dict) else {}
        # Attributes of a dict or tensor are no weights.

    def _reduce(self, _: object) -> None:
        arguments = self._arguments()
        called = self._stack.pop()
        self._stack.append(self._call(called, arguments))

    def _call(self, called: object, arguments: tuple[Any, ...]) -> object:
        """Return what torch's function of this name would make; refuse other names."""
        name = called.name if isinstance(called, _Global) else ""
        self._spend(len(arguments))
        if name in TENSORS:
            return self._tensor(*arguments)
        if name == TYPED_TENSOR:
            storage, offset, size, stride, _, _, dtype, *metadata = arguments
            if not isinstance(dtype, _Global) or dtype.name not in DTYPE_NAMES:
                raise TypeError("the pickle has a tensor without a dtype")
            typed = storage.view(getattr(torch, dtype.name.removeprefix("torch.")))
            return self._tensor(typed, offset, size, stride, None, None, *metadata)
        if name in PARAMETERS or name in WRAPPERS:
            return arguments[0]
        if name in NOT_DENSE:
            return NotDense()
        if name == SUBCLASS:
            function, kind, inner = arguments[:3]
            is_plain = isinstance(kind, _Global) and kind.name in TYPES
            if not is_plain or function == called or not isinstance(inner, tuple):
                return NotDense()
            return self._call(function, inner)
        if name in DICTS:
            return self._dict(arguments)
        if name == BYTEARRAY and arguments and isinstance(arguments[0], int):
            raise self._refused(
                f"its pickle asks for a bytearray of {_number(arguments[0])} bytes; refused as "
                "hostile"
            )
        if name in INERT or name == BYTEARRAY:
            return _INERT_VALUE
        raise self._unsafe(called)

    def _dict(self, arguments: tuple[Any, ...]) -> dict[Any, Any]:
        pairs = arguments[0] if arguments else []
        self._spend(len(pairs))
        made: dict[Any, Any] = {}
        for key, value in pairs:
            self._check_key(key)
            made[key] = value
        return made

    def _find_storage(self, _: object) -> None:
        """Read the values of ``('storage', type, key, device, number of elements[, view])``."""
        identity = self._stack.pop()
        if not isinstance(identity, tuple) or len(identity) not in (5, 6):
            raise TypeError("the pickle has a storage without an identity")
        # Everything is read to the CPU, whatever the device.
        what, kind, key, _device, count, *view = identity
        dtype = DTYPES.get(kind.name) if isinstance(kind, _Global) else None
        if dtype is None:
            raise self._unsafe(kind)
        if what != "storage" or not isinstance(key, str) or type(count) is not int or count < 0:
            raise TypeError("the pickle has a storage without an identity")
        self._stack.append(self._read_storage(StorageIdentity(key, dtype, count, *view)))

    def _tensor(
        self,
        storage: object,
        offset: int,
        size: tuple[int, ...],
        stride: tuple[int, ...],
        _requires_grad: object = None,
        _hooks: object = None,
        metadata: object = None,
        *_rest: object,
    ) -> Tensor | NotDense:
        """Return a view of the storage; torch checks that it lies inside."""
        if not isinstance(storage, Tensor):
            raise TypeError("the pickle has a tensor without a storage")
        is_short = len(size) <= _MAX_DIMENSIONS and len(stride) <= _MAX_DIMENSIONS
        if not is_short or not all(type(n) is int for n in (*size, *stride)):
            raise TypeError("the pickle has a tensor without a shape")
        # Metadata says that the values are to be negated or conjugated.
        return NotDense() if metadata else storage.as_strided(size, stride, offset)


def _number(value: int) -> str:
    return str(value) if value.bit_length() < 64 else f"2^{value.bit_length() - 1}"


_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "BINUNICODE8", "SHORT_BINUNICODE", "SHORT_BINSTRING"),
}
_CONSTANTS: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "MARK": lambda: _MARK,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
