"""One file of weights for several ONNX graphs, which name their parts of it.

ONNX keeps weights in a graph's own file or, as external data, in files beside it. Graphs may name
the same external file. Equal weights are written once, whatever their names. Zeros of two types can
have equal bytes, and are written twice: TensorRT refuses one place with two numbers of elements.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir

_LEAST_BYTES = 1024
"""Least size of weights that leave the graph. Shapes and scalars stay for shape inference."""
_ALIGNMENT = 64
"""Bytes that offsets are multiples of, the width of a vector register and of a cache line."""
_HASH_KEY = "weights_sha256"


class WeightsFile:
    """A file of weights that is being written, and a context manager."""

    def __init__(self, path: Path) -> None:
        """Begin a new file at ``path``, beside the graphs that will name it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("wb")
        self._places: dict[tuple[str, onnx_ir.DataType], int] = {}
        """Offset of the weights of each SHA-256 and type, bytes."""

    def take(self, model: onnx_ir.Model) -> None:
        """Move a graph's large weights here, and have the graph name their place.

        The graph's metadata get the SHA-256 of those weights. The hash of the graph's file thus
        tells two models of one architecture apart.
        """
        import onnx_ir

        total = hashlib.sha256()
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.nbytes < _LEAST_BYTES:
                continue
            content = tensor.tobytes()
            digest = hashlib.sha256(content).hexdigest()
            total.update(digest.encode())
            key = (digest, tensor.dtype)
            if key not in self._places:
                self._file.write(bytes(-self._file.tell() % _ALIGNMENT))
                self._places[key] = self._file.tell()
                self._file.write(content)
            value.const_value = onnx_ir.ExternalTensor(
                self.path.name,
                self._places[key],
                len(content),
                tensor.dtype,
                shape=onnx_ir.Shape(tensor.shape.numpy()),
                name=str(value.name),
                base_dir=self.path.parent,
            )
        model.metadata_props[_HASH_KEY] = total.hexdigest()
        self._file.flush()  # the checker and the quantisation read it next

    def __enter__(self) -> WeightsFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()


def forget_weights_file(model: onnx_ir.Model) -> None:
    """Remove the SHA-256 of external weights from a graph that is to hold its own."""
    model.metadata_props.pop(_HASH_KEY, None)
