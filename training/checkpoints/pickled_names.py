"""Names that the pickles of weights hold, by what they mean. Everything else is refused."""

from __future__ import annotations

import torch

DTYPES = {
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
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.storage.UntypedStorage": torch.uint8,
    # Quantised values are read as the integers that they are, and their tensors refused.
    "torch.QInt8Storage": torch.int8,
    "torch.QUInt8Storage": torch.uint8,
    "torch.QInt32Storage": torch.int32,
}
_UTILS = "torch._utils."
TENSORS = {f"{_UTILS}_rebuild_tensor", f"{_UTILS}_rebuild_tensor_v2"}
TYPED_TENSOR = f"{_UTILS}_rebuild_tensor_v3"
SUBCLASS = "torch._tensor._rebuild_from_type_v2"
# Each takes the tensor itself as first argument.
PARAMETERS = {f"{_UTILS}_rebuild_parameter", f"{_UTILS}_rebuild_parameter_with_state"}
NOT_DENSE = {
    f"{_UTILS}_rebuild_{kind}"
    for kind in (
        "qtensor",
        "sparse_tensor",
        "meta_tensor_no_storage",
        "nested_tensor",
        "wrapper_subclass",
        "device_tensor_from_cpu_tensor",
    )
}
# Each takes the value itself as first argument: the first five tell TorchScript a static type.
WRAPPERS = {
    "torch.jit._pickle.build_intlist",
    "torch.jit._pickle.build_doublelist",
    "torch.jit._pickle.build_boollist",
    "torch.jit._pickle.build_tensorlist",
    "torch.jit._pickle.restore_type_tag",
    "torch.Size",
}
DICTS = {"collections.OrderedDict"}
BYTEARRAY = "builtins.bytearray"
INERT = {
    "builtins.complex",
    "builtins.set",
    "collections.Counter",
    "torch.device",
    "torch.serialization._get_layout",
    "_codecs.encode",
}
TYPES = {"torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"}
DTYPE_NAMES = {
    f"torch.{name}" for name, value in vars(torch).items() if isinstance(value, torch.dtype)
}
ENUMS = {
    f"torch.{name}"
    for name, value in vars(torch).items()
    if isinstance(value, (torch.qscheme, torch.layout))
}
KNOWN_NAMES = frozenset().union(
    *(DTYPES, TENSORS, PARAMETERS, NOT_DENSE, WRAPPERS, DICTS, INERT, TYPES),
    *(DTYPE_NAMES, ENUMS, {TYPED_TENSOR, SUBCLASS, BYTEARRAY}),
)
SCRIPT_CLASSES = "__torch__."
"""Prefix of the classes that a TorchScript archive defines."""
