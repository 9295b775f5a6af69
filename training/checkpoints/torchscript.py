"""Read the weights of a TorchScript archive without running any of it.

OpenAI published CLIP's ViT-*.pt as such archives. ``torch.jit.load`` compiles the code in an
archive. This module reads its ``data.pkl`` alone, through a machine that calls nothing. Torch's
writer of such pickles is torch/csrc/jit/serialization/pickler.cpp.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from xclip_deploy.errors import CheckpointReadError
from xclip_deploy.training.checkpoints.pickles import ScriptObject

MAX_NAMES = 100_000
"""Most tensors and modules of a file. ViT-L/14 has some 600."""
MAX_NAME_LENGTH = 1000
"""Most characters of a tensor's name."""
_MAX_ENTRIES = 10 * MAX_NAMES
"""Most attributes of an archive's modules, each as often as its module occurs."""


def unsafe_script(name: str) -> str:
    """Say that an archive names something to call."""
    return (
        f"unsafe to open: this TorchScript archive asks to call {name}; where you trust the "
        "file, save its weights alone: torch.save(model.state_dict(), path)"
    )


def flatten(module: object, path: Path) -> dict[str, Tensor]:
    """Return every parameter and buffer, named as in the module's ``state_dict()``.

    ``path``: the file, for messages.

    Raises:
        CheckpointReadError: the tree of modules has too many or too long names.
    """
    tensors: dict[str, Tensor] = {}
    pending: list[tuple[str, object]] = [("", module)]
    named = entries = 0
    hostile = CheckpointReadError(
        f"{path}: more than {MAX_NAMES} modules and tensors, more than {_MAX_ENTRIES} attributes, "
        f"or names longer than {MAX_NAME_LENGTH} characters; refused as hostile"
    )
    while pending:
        prefix, owner = pending.pop()
        for name, value in owner.state.items() if isinstance(owner, ScriptObject) else ():
            # A few shared objects can make a tree without end, or names that fill the memory.
            entries += 1
            if entries > _MAX_ENTRIES:
                raise hostile
            if not isinstance(name, str) or not isinstance(value, (Tensor, ScriptObject)):
                continue
            named += 1
            if named >= MAX_NAMES or len(prefix) + len(name) > MAX_NAME_LENGTH:
                raise hostile
            if isinstance(value, Tensor):
                tensors[f"{prefix}{name}"] = value
            else:
                pending.append((f"{prefix}{name}.", value))
    return tensors
