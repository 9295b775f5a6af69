"""Write small ONNX graphs without the ``onnx`` package, which a runtime does not install.

A graph is one protobuf message. Its fields have the numbers of ``onnx.proto``
(https://github.com/onnx/onnx/blob/main/onnx/onnx.proto). The tests read written graphs with
``onnx`` and have its checker accept them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from xclip_deploy.runtime.arrays import AnyArray
from xclip_deploy.runtime.manifest import DType

FLOAT = 1
"""ONNX's number of FP32, and of an attribute with a decimal number."""
_OPSET = 18
_IR_VERSION = 8
_TYPES = {"float32": FLOAT, "uint8": 2, "int32": 6, "int64": 7, "bool": 9, "float16": 10}
"""ONNX's number of each element type."""
_INT, _INTS = 2, 7
"""ONNX's numbers of attributes with one integer, and with several."""


class GraphWriter:
    """An ONNX graph under construction. Values are named by texts, as in ONNX."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[bytes] = []
        self._constants: list[bytes] = []
        self._inputs: list[bytes] = []
        self._outputs: list[bytes] = []
        self._count = 0

    def add_input(self, name: str, dtype: DType | str, *shape: int | str) -> str:
        """Add an input. A text in ``shape`` names a dynamic axis. Returns ``name``."""
        self._inputs.append(_value(name, dtype, shape))
        return name

    def add_output(self, name: str, dtype: DType | str, *shape: int | str) -> None:
        """Declare the value ``name`` of a node an output."""
        self._outputs.append(_value(name, dtype, shape))

    def constant(self, array: AnyArray) -> str:
        """Add a constant and return its name."""
        name = self._new_name()
        # A scalar has no dimension; ascontiguousarray would give it one.
        raw = array.tobytes()
        dims = _join(_number(1, size) for size in array.shape)
        kind = _number(2, _TYPES[array.dtype.name])
        self._constants.append(dims + kind + _text(8, name) + _field(9, raw))
        return name

    def integers(self, *values: int) -> str:
        """Add a constant INT64 vector, as shapes and axes are, and return its name."""
        return self.constant(np.array(values, dtype=np.int64))

    def scalar(self, value: float) -> str:
        """Add a constant FP32 scalar and return its name."""
        return self.constant(np.array(value, dtype=np.float32))

    def node(
        self,
        operator: str,
        *inputs: str,
        named: str | None = None,
        **attributes: float | Sequence[int],
    ) -> str:
        """Add a node with one output, and return the output's name: ``named``, or a new one.

        An attribute's Python type decides its ONNX type: ``int``, ``float`` or several ``int``.
        """
        name = self._new_name() if named is None else named
        self._nodes.append(_node(operator, inputs, name, attributes))
        return name

    def to_bytes(self) -> bytes:
        """Return the model as a file holds it."""
        graph = _join(
            (
                _join(_field(1, node) for node in self._nodes),
                _text(2, self._name),
                _join(_field(5, constant) for constant in self._constants),
                _join(_field(11, value) for value in self._inputs),
                _join(_field(12, value) for value in self._outputs),
            )
        )
        opset = _text(1, "") + _number(2, _OPSET)
        return _number(1, _IR_VERSION) + _field(7, graph) + _field(8, opset)

    def _new_name(self) -> str:
        self._count += 1
        return f"v{self._count}"


def _node(
    operator: str,
    inputs: Sequence[str],
    output: str,
    attributes: dict[str, float | Sequence[int]],
) -> bytes:
    return _join(
        (
            _join(_text(1, name) for name in inputs),
            _text(2, output),
            _text(3, output),  # the node's name, for ONNX Runtime's messages
            _text(4, operator),
            _join(_field(5, _attribute(name, value)) for name, value in attributes.items()),
        )
    )


def _attribute(name: str, value: float | Sequence[int]) -> bytes:
    if isinstance(value, float):
        bits: bytes = np.float32(value).tobytes()
        return _text(1, name) + _key(2, 5) + bits + _number(20, FLOAT)
    if isinstance(value, int):
        return _text(1, name) + _number(3, value) + _number(20, _INT)
    return _text(1, name) + _join(_number(8, each) for each in value) + _number(20, _INTS)


def _value(name: str, dtype: DType | str, shape: Sequence[int | str]) -> bytes:
    dims = _join(
        _field(1, _text(2, size) if isinstance(size, str) else _number(1, size)) for size in shape
    )
    kind = _TYPES[dtype.value if isinstance(dtype, DType) else dtype]
    tensor = _number(1, kind) + _field(2, dims)
    return _text(1, name) + _field(2, _field(1, tensor))


# The wire format: https://protobuf.dev/programming-guides/encoding/


def _key(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative numbers are complements of 64 bits
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def _number(number: int, value: int) -> bytes:
    return _key(number, 0) + _varint(value)


def _field(number: int, content: bytes) -> bytes:
    return _key(number, 2) + _varint(len(content)) + content


def _text(number: int, text: str) -> bytes:
    return _field(number, text.encode())


def _join(parts: Iterable[bytes]) -> bytes:
    return b"".join(parts)
