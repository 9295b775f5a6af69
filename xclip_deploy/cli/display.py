"""Texts, JSON and the tables that several commands share."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xclip_deploy.cli.table import Column, echo, print_table, shortened

if TYPE_CHECKING:
    from xclip_deploy.runtime.manifest import Manifest, ParityRecord
    from xclip_deploy.runtime.opened import Opened


MAX_LINE = 1000
"""Longest line of a message, in characters."""


def say(*lines: str, err: bool = False) -> None:
    """Print lines for people, escaped, each of 1,000 characters at most.

    Everything that the command line prints goes through this function, ``print_table``,
    ``print_fields`` or ``print_json``, which escape. ``err``: whether to take standard error.
    """
    from xclip_deploy.runtime.presentation import printable

    echo("\n".join(shortened(printable(line), MAX_LINE) for line in lines), err=err)


def print_fields(rows: Iterable[tuple[str, str]], width: int) -> None:
    """Print a line for each name and value, escaped. ``width``: columns of the names."""
    from xclip_deploy.runtime.presentation import printable

    for name, value in rows:
        echo(f"{printable(name) + ':':<{width}}{printable(value)}")


def print_json(content: object) -> None:
    """Print ``content`` as JSON on standard output."""
    encoding = codecs.lookup(getattr(sys.stdout, "encoding", None) or "utf-8").name
    echo(_json_text(content, ascii_only=not encoding.startswith("utf")))


def _json_text(content: object, *, ascii_only: bool = False) -> str:
    from xclip_deploy.runtime.presentation import UNPRINTABLE

    text = json.dumps(content, indent=2, ensure_ascii=ascii_only)
    # The only newlines are those of the indentation.
    return "\n".join(
        UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", line) for line in text.split("\n")
    )


def write_json(path: Path, content: object) -> None:
    """Write ``content`` as JSON, whole or not at all. Raises InvalidArgumentError."""
    from xclip_deploy.errors import InvalidArgumentError
    from xclip_deploy.runtime.files import replace_text

    try:
        replace_text(path, _json_text(content) + "\n")
    except OSError as error:
        raise InvalidArgumentError(f"{path} cannot be written: {error.strerror}") from error


def warn_of_cuts(retriever: Opened, what: str, texts: Sequence[str]) -> None:
    """Say on standard error which texts are longer than the model reads. ``what``: names one."""
    max_words = retriever.model.config.max_words
    for text, cut in zip(texts, retriever.model.count_cut(texts), strict=True):
        if cut:
            # Without the start and end token, which nobody typed.
            say(
                f"warning: {what} {' '.join(text.split())[:40]!r}… is longer than the "
                f"{max_words - 2} tokens that the model reads; its last {cut} were not read",
                err=True,
            )


def name_of(video_id: str) -> str:
    """Return an id for people: a path below the current directory, relative to it."""
    try:
        return str(Path(video_id).relative_to(Path.cwd()))
    except ValueError:
        return video_id


def print_parity(records: Sequence[ParityRecord], *, wide: bool = False) -> None:
    """Print how far each output of each graph is from PyTorch, a table for each precision.

    The column "allowed" bounds the largest error of embeddings, and the RMS error of scores.
    """
    columns = (
        Column("graph", wide=True),
        Column("output", least=12),
        Column("min cosine", right=True),
        Column("max error", right=True),
        Column("RMS", right=True),
        Column("allowed", right=True),
        Column(""),
    )
    from xclip_deploy.runtime.manifest import VideoPart

    for precision in dict.fromkeys(record.precision for record in records):
        rows = [
            (
                record.graph.value,
                # The head gives the outputs of the whole encoder once more.
                record.tensor
                + ", halves" * (record.graph is VideoPart.TEMPORAL_HEAD)
                + ", fused" * (record.method.value == "fused"),
                "" if record.min_cosine is None else f"{record.min_cosine:.7f}",
                f"{record.max_abs_error:.1e}",
                "" if record.rms_error is None else f"{record.rms_error:.1e}",
                f"{record.tolerance:.1e}",
                "ok" if record.passed else "FAILED",
            )
            for record in records
            if record.precision is precision
        ]
        say(f"{precision.value} against PyTorch")
        print_table(columns, rows, wide=wide)
        say()
    rounded = dict.fromkeys(
        record.precision.value for record in records if record.method.value == "rounded"
    )
    if rounded:
        say(
            f"{', '.join(rounded)}: ONNX Runtime cannot run these graphs; they were computed in "
            "FP32, with each result rounded to the precision",
            "",
        )


def print_graph_sizes(manifest: Manifest) -> None:
    """Print the size of each graph in each precision, with its external weights.

    The halves of ``video_encoder`` share its weights and have no lines of their own.
    """
    rows = []
    for graph in next(iter(manifest.graphs.values())):
        whole = manifest.graph_bytes(graph, next(iter(manifest.graphs)))
        cells = []
        for precision in manifest.graphs:
            size = manifest.graph_bytes(graph, precision)
            share = f"{size / whole:.0%}"
            # A scorer computes in FP32 in every precision, so its size hardly differs.
            note = "" if share == "100%" else f" ({share})"
            cells.append((f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB") + note)
        rows.append((graph.value, *cells))
    sizes = [Column(precision.value, right=True) for precision in manifest.graphs]
    print_table((Column("size of"), *sizes), rows)
