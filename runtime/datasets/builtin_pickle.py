"""Read pickles of built-in containers without running anything in them."""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xclip_deploy.errors import AnnotationError
from xclip_deploy.runtime.datasets.annotation_files import read_bytes
from xclip_deploy.runtime.presentation import cut

MAX_OPERATIONS = 20_000_000
"""Most opcodes of a pickle. MSVD's captions take some 2 million."""
_MAX_RARE_KEYS = 10_000
"""Most keys that are floats or large integers: their hashes can be made to collide."""


_PLAIN, _RARE, _OTHER, _MARK = range(4)
"""Kinds of values on the stack: good keys, keys to count, values that are no keys, and marks."""

_KINDS = {
    **dict.fromkeys(("str", "bytes", "bytes_or_str", "int", "int_or_bool", "bool", "None"), _PLAIN),
    "float": _RARE,
    "mark": _MARK,
}


class _HostileError(pickle.UnpicklingError):
    """Error of a pickle that asks for more time or memory than its captions take."""


class _GlobalRefusedError(pickle.UnpicklingError):
    """Error of a pickle that names a class or function."""


class _ContainersOnly(pickle.Unpickler):
    """Unpickler of dicts, lists, tuples, sets, texts, bytes, numbers, truth values and None.

    These have opcodes of their own. Everything else, and all that runs code, needs a class or
    function by name. ``find_class`` looks that name up, and refuses it.
    """

    def find_class(self, module_name: str, global_name: str, /) -> object:
        raise _GlobalRefusedError(f"{module_name}.{global_name}")


class _Scan:
    """Walk through a pickle's opcodes that keeps kinds of values in place of values.

    ``pickle`` bounds nothing: a few shared tuples make a key whose hash takes 2^n steps, and
    one number of the memo makes it allocate gigabytes.
    """

    def __init__(self) -> None:
        self._stack: list[int] = []
        self._memo: dict[int, int] = {}
        self._rare_keys = 0

    def run(self, content: bytes) -> None:
        """Refuse what takes much, by ``_HostileError``; damaged pickles raise almost anything."""
        stack, memo = self._stack, self._memo
        for count, (opcode, argument) in enumerate(_operations(content), 1):
            if count > MAX_OPERATIONS:
                raise _HostileError(f"more than {MAX_OPERATIONS} operations")
            name = opcode.name
            if name in _PUTS:
                if argument > count:
                    raise _HostileError(f"the memo entry {argument:.6g} at operation {count}")
                memo[argument] = stack[-1]
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name in _GETS:
                stack.append(memo[argument])
            elif name == "DUP":
                stack.append(stack[-1])
            else:
                self._apply(opcode, argument)

    def _apply(self, opcode: pickletools.OpcodeInfo, argument: object) -> None:
        stack = self._stack
        name = opcode.name
        if name in _KEYED:
            self._check_keys(name)
        num_before, has_mark, after = _EFFECTS[name]
        if has_mark:
            while stack.pop() != _MARK:
                pass
        if num_before:
            del stack[-num_before:]
        stack += after
        # Integers of up to 30 bits have hashes of their own.
        if after == _ONE_PLAIN and isinstance(argument, int) and argument.bit_length() > 30:
            stack[-1] = _RARE

    def _check_keys(self, name: str) -> None:
        stack = self._stack
        if name == "SETITEM":
            keys = stack[-2:-1]
        else:
            start = len(stack) - stack[::-1].index(_MARK)
            keys = stack[start :: 1 if name in _SETS else 2]
        if _OTHER in keys:
            raise _HostileError("a container as a key or member of a set, not a text or number")
        self._rare_keys += keys.count(_RARE)
        if self._rare_keys > _MAX_RARE_KEYS:
            raise _HostileError(f"more than {_MAX_RARE_KEYS} keys that are no texts")


def _operations(content: bytes) -> Iterator[tuple[pickletools.OpcodeInfo, Any]]:
    """Iterate over opcodes and arguments, up to the end of the first pickle.

    ``pickletools.genops`` takes no text of Python 2 that is not ASCII.
    """
    file = io.BytesIO(content)
    while True:
        opcode = _OPCODES[file.read(1).decode("latin-1")]
        if opcode.name == "STRING":
            yield opcode, file.readline()
        else:
            yield opcode, opcode.arg.reader(file) if opcode.arg is not None else None
        if opcode.name == "STOP":
            return


def _effect(opcode: pickletools.OpcodeInfo) -> tuple[int, bool, list[int]]:
    """Return what an opcode takes below its mark, whether it takes a mark, and what it leaves."""
    before = [each.name for each in opcode.stack_before]
    has_mark = "mark" in before
    num_before = before.index("mark") if has_mark else len(before)
    return num_before, has_mark, [_KINDS.get(each.name, _OTHER) for each in opcode.stack_after]


_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
_SETS = frozenset({"ADDITEMS", "FROZENSET"})
_KEYED = frozenset({"SETITEM", "SETITEMS", "DICT", *_SETS})
_ONE_PLAIN = [_PLAIN]
_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
_EFFECTS = {opcode.name: _effect(opcode) for opcode in pickletools.opcodes}


def read_builtin_pickle(path: Path) -> object:
    """Read a pickle that holds nothing but built-in containers and values.

    Texts that Python 2 wrote come back as bytes; ``text_of_pickle`` decodes them.

    Args:
        path: A pickle of any protocol.

    Raises:
        AnnotationError: The file is unreadable or no pickle, or it names a class or function.
            None of them is looked up or called. Or it asks for too much time or memory.
    """
    content = read_bytes(path)
    try:
        _Scan().run(content)
        # Python 2 wrote UTF-8 or Latin-1. Only text_of_pickle can tell, for each text.
        value: object = _ContainersOnly(io.BytesIO(content), encoding="bytes").load()
    except _HostileError as error:
        raise AnnotationError(f"{path}: the pickle has {error}; refused as hostile") from error
    except _GlobalRefusedError as error:
        raise AnnotationError(
            f"{path}: the pickle wants {cut(str(error))}; expected nothing but dicts, lists and "
            "texts, since a pickle that names code can run it"
        ) from error
    except Exception as error:  # damaged pickles raise almost anything
        raise AnnotationError(
            f"{path}: not a usable pickle ({type(error).__name__}: {cut(str(error))}); "
            "expected a dict of captions"
        ) from error
    return value


def text_of_pickle(value: object, place: str) -> str:
    """Return a value of a pickle as text.

    Bytes come from a ``str`` of Python 2. They are decoded as UTF-8, or else as Latin-1.

    Args:
        value: Value from the pickle.
        place: Its place in the file. Messages name it.

    Raises:
        AnnotationError: The value is neither text nor bytes.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value.decode("latin-1")
    raise AnnotationError(f"{place}: {type(value).__name__}; expected text")
