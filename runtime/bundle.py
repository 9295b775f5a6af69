"""Open a bundle, and refuse one that differs from what was exported."""

from __future__ import annotations

import json
import stat
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from xclip_deploy.errors import (
    BundleError,
    BundleIntegrityError,
    BundleNotFoundError,
    BundleVersionError,
    InvalidArgumentError,
)
from xclip_deploy.runtime.arguments import PathName, as_member, as_path, as_truth
from xclip_deploy.runtime.files import sha256_of
from xclip_deploy.runtime.manifest import (
    FORMAT,
    MANIFEST_NAME,
    SCHEMA_VERSION,
    AnyGraph,
    Graph,
    Manifest,
    Precision,
    VideoPart,
    checksum,
)
from xclip_deploy.runtime.scorer_weights import SCORER_WEIGHTS_NAME, ScorerWeights
from xclip_deploy.runtime.tokenizer import Tokenizer

_MAX_MANIFEST_BYTES = 16 << 20
_EXPORT = "xclip-deploy export CHECKPOINT -o {path}"


@dataclass(frozen=True)
class Bundle:
    """An exported model in a directory. :meth:`open` makes one."""

    path: Path
    manifest: Manifest
    _verified: dict[str, tuple[int, ...]] = field(default_factory=dict, repr=False, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @classmethod
    def open(cls, path: PathName) -> Bundle:
        """Open a bundle. Check its manifest, and that every file has its full size.

        The SHA-256 of a file is checked when the file is first used. :meth:`verify` checks all
        files at once.

        Raises BundleNotFoundError, BundleVersionError or BundleIntegrityError.
        """
        path = as_path("bundle", path)
        manifest = _read_manifest(path)
        bundle = cls(path, manifest)
        for name, record in manifest.files.items():
            try:
                status = (path / name).stat()
            except OSError as error:
                raise bundle._damaged(f"{name} is missing ({error.strerror})") from error
            if not stat.S_ISREG(status.st_mode):  # reading a pipe or device could wait for ever
                raise bundle._damaged(f"{name} is no regular file")
            size = status.st_size
            if size != record.size_bytes:
                raise bundle._damaged(
                    f"{name} has {size:,} bytes, the export wrote {record.size_bytes:,}"
                )
        return bundle

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Precisions of the bundle's graphs."""
        return tuple(self.manifest.graphs)

    def verify(self) -> None:
        """Check every file against its SHA-256. Raises BundleIntegrityError."""
        for name in self.manifest.files:
            self._checked(name)

    def graph_path(self, graph: AnyGraph, precision: Precision, *, is_fused: bool = False) -> Path:
        """Return the path of an ONNX graph, after a check of its content and its weights.

        ``is_fused``: whether to return the graph of fused operators, which the bundle must have.
        Raises InvalidArgumentError for a precision or a part that the bundle lacks and
        BundleIntegrityError for an altered file.
        """
        graph, precision = self._check_graph(graph, precision)
        as_truth("is_fused", is_fused)
        if is_fused and not self.has_fused(graph, precision):
            raise InvalidArgumentError(
                f"{self.path} has no fused {graph.value} in {precision.value}; "
                f"run: {_EXPORT.format(path=self.path)}"
            )
        names = self.manifest.files_of(graph, precision, is_fused=is_fused)
        return [self._checked(name) for name in names][0]  # noqa: RUF015 - all are checked

    def has_fused(self, graph: AnyGraph, precision: Precision) -> bool:
        """Return whether the bundle has a graph in ONNX Runtime's fused operators.

        Raises InvalidArgumentError for a precision or a part that the bundle lacks.
        """
        graph, precision = self._check_graph(graph, precision)
        return graph in self.manifest.fused_graphs.get(precision, {})

    def graph_sha256(self, graph: AnyGraph, precision: Precision) -> str:
        """Return the SHA-256 that the manifest records for an ONNX graph.

        A graph names the SHA-256 of weights beside it, so that it differs where they do. Raises
        InvalidArgumentError for a precision or a part that the bundle lacks.
        """
        graph, precision = self._check_graph(graph, precision)
        return self.manifest.files[self.manifest.spec(graph, precision).file].sha256

    def without_video_parts(self) -> Bundle:
        """Return the same bundle as runtimes see it that encode videos by ``video_encoder``."""
        fused = {
            precision: {graph: spec for graph, spec in specs.items() if isinstance(graph, Graph)}
            for precision, specs in self.manifest.fused_graphs.items()
        }
        without = {"video_parts": {}, "fused_graphs": fused}
        return Bundle(self.path, self.manifest.model_copy(update=without))

    def tokenizer(self) -> Tokenizer:
        """Open the model's tokenizer. Raises BundleIntegrityError."""
        tokenizer = Tokenizer.open(self._checked(self.manifest.tokenizer))
        vocab_size = self.manifest.model.text.vocab_size
        if tokenizer.vocab_size > vocab_size:
            raise self._damaged(
                f"the tokenizer has {tokenizer.vocab_size} ids, the model {vocab_size} embeddings"
            )
        return tokenizer

    def scorer_weights(self) -> ScorerWeights:
        """Read the scorer's learned matrices. Raises BundleIntegrityError."""
        return ScorerWeights.open(self._checked(self.manifest.scorer_weights), self.manifest.model)

    def _check_graph(self, graph: AnyGraph, precision: Precision) -> tuple[AnyGraph, Precision]:
        """Refuse a graph that the bundle lacks, and return the arguments as enumerations."""
        is_part = isinstance(graph, VideoPart)
        checked: AnyGraph = graph if is_part else as_member("graph", graph, Graph)
        precision = as_member("precision", precision, Precision)
        if precision not in self.manifest.graphs:
            raise InvalidArgumentError(
                f"{self.path} has no {precision.value} graphs, only "
                f"{', '.join(p.value for p in self.precisions)}"
            )
        if is_part and precision not in self.manifest.video_parts:
            raise InvalidArgumentError(
                f"{self.path} has no {checked.value} in {precision.value}; "
                f"run: {_EXPORT.format(path=self.path)}"
            )
        return checked, precision

    def _checked(self, name: str) -> Path:
        """Return the path of a file. Check its hash the first time."""
        path = self.path / name
        with self._lock:
            try:
                status = path.stat()
                if not stat.S_ISREG(status.st_mode):
                    raise self._damaged(f"{name} is no regular file")
                # A later export may have replaced the file. That one is checked again.
                identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
                if self._verified.get(name) == identity:
                    return path
                found = sha256_of(path)
            except OSError as error:
                raise self._damaged(f"{name} cannot be read ({error.strerror})") from error
            expected = self.manifest.files[name].sha256
            if found != expected:
                raise self._damaged(
                    f"{name} was altered: its SHA-256 is {found[:12]}…, "
                    f"the export wrote {expected[:12]}…"
                )
            self._verified[name] = identity
        return path

    def _damaged(self, what: str) -> BundleIntegrityError:
        return _damaged(self.path, what)


def _damaged(path: Path, what: str) -> BundleIntegrityError:
    return BundleIntegrityError(
        f"bundle {path}: {what}; copy the bundle again or run: {_EXPORT.format(path=path)}"
    )


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST_NAME
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise _damaged(path, f"it cannot be read: {MANIFEST_NAME} is no regular file")
        if status.st_size > _MAX_MANIFEST_BYTES:
            raise _damaged(path, f"{MANIFEST_NAME} is over {_MAX_MANIFEST_BYTES >> 20} MiB")
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleNotFoundError(
            f"no bundle at {path} (no {MANIFEST_NAME}); run: {_EXPORT.format(path=path)}"
        ) from error
    except UnicodeDecodeError as error:
        raise _damaged(path, f"{MANIFEST_NAME} is not UTF-8 text") from error
    except OSError as error:
        raise BundleError(f"bundle {path}: cannot be read ({error.strerror})") from error
    try:
        content: Any = json.loads(text)
        # Too deep nesting and lone surrogates only fail in the checksum.
        found = checksum(content) if isinstance(content, dict) else None
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"{MANIFEST_NAME} is not JSON ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise _damaged(path, f"{MANIFEST_NAME} does not describe an {FORMAT}")
    _check_version(path, content.get("schema_version"))
    if content.get("checksum") != found:
        raise _damaged(path, f"{MANIFEST_NAME} was altered: its checksum does not fit")
    if content.get("scorer_weights") is None:  # early exports of this very schema version
        raise BundleVersionError(
            f"bundle {path} was exported without its scorer's matrices ({SCORER_WEIGHTS_NAME}), "
            f"which this release needs; run: {_EXPORT.format(path=path)}"
        )
    del content["checksum"]
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _damaged(path, f"{MANIFEST_NAME}: {where}: {first['msg']}") from error


def _check_version(path: Path, version: object) -> None:
    if version == SCHEMA_VERSION:
        return
    found = f"bundle {path} has schema version {version!r}, this release reads {SCHEMA_VERSION}"
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise BundleVersionError(f"{found}; run: pip install --upgrade xclip-deploy")
    raise BundleVersionError(f"{found}; run: {_EXPORT.format(path=path)}")
