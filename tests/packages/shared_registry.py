"""PyTorch's table of ONNX functions, built once a process for all exports of tests.

``torch.onnx.export`` builds the same table for every graph, which takes 0.6 s. The table of a
release of PyTorch depends on the opset alone. ``bundle_path`` is exported without this, by the
README's command.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from torch.onnx._internal.exporter import _registration


@contextmanager
def shared_registry() -> Iterator[None]:
    """Share the table among the exports of this block."""
    table = functools.cache(_registration.ONNXRegistry.from_torchlib)
    with patch.object(_registration.ONNXRegistry, "from_torchlib", staticmethod(table)):
        yield


def main() -> None:
    """Run the command line on this process's arguments."""
    from xclip_deploy.cli import main as run

    with shared_registry():
        run()


if __name__ == "__main__":
    main()
