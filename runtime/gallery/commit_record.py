"""The record of a gallery's newest commit, in a file beside its table.

LanceDB opens the newest manifest that is there. If that file is lost, it opens an older gallery
without a word. So every commit is recorded: the version, a hash of its manifest, and hashes of the
files that rows' checksums do not cover, which are deletion vectors and indices.

A writer commits first and records then, both under the gallery's lock. A record that is older than
the table tells of a writer that was killed between the two, or is just there; one that is newer
than the table tells of a lost manifest.

The files are all that are there. Which of them a version reads is known to LanceDB alone: a writer
that was killed leaves some that no version reads, under names like those of the others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from xclip_deploy.runtime.files import replace_text, sha256_of
from xclip_deploy.runtime.gallery.lance_errors import damaged, lance_errors
from xclip_deploy.runtime.model_config import FrozenModel

TABLE = "videos"
RECORD_FILE = "committed.json"
_VERSIONS = "_versions"
_DELETIONS = "_deletions"
_INDICES = "_indices"
_LARGEST = (1 << 64) - 1


class CommitRecord(FrozenModel):
    """The newest commit of a gallery in a directory."""

    version: int = Field(ge=1)
    """LanceDB's version of the table."""
    manifest: str
    """Name of the version's manifest."""
    manifest_sha256: str
    deletions: dict[str, str] = Field(default_factory=dict)
    """Deletion vectors by their path below the table, with their SHA-256."""
    indices: dict[str, str] = Field(default_factory=dict)
    """Index files by their path below the table, with their SHA-256."""
    indexed_below: int = Field(ge=0, default=0)
    """Row id below which the indices hold every row."""
    is_tidying: bool = False
    """Whether a writer deletes files that only old versions read, so that some may be gone."""

    @property
    def files(self) -> dict[str, str]:
        """Deletion vectors and index files."""
        return {**self.deletions, **self.indices}


def read_record(directory: Path) -> CommitRecord | None:
    """Read a gallery's record; None if there is none. Raises GalleryIntegrityError."""
    file = directory / RECORD_FILE
    with lance_errors(str(directory), "read"):
        try:
            text = file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except UnicodeDecodeError:
            text = ""
        try:
            content = json.loads(text)
            digest = content.pop("sha256")
            is_as_written = digest == _digest(content)
            record = CommitRecord.model_validate(content)
        except (ValueError, KeyError, AttributeError, TypeError, ValidationError):
            record = None
        if record is None or not is_as_written:
            raise damaged(str(directory), f"its record of commits, {RECORD_FILE}, is damaged")
        return record


def write_record(directory: Path, record: CommitRecord) -> None:
    """Put a record in place, whole or not at all. Raises OSError."""
    content = record.model_dump()
    content["sha256"] = _digest(content)
    replace_text(directory / RECORD_FILE, json.dumps(content, indent=1) + "\n")


def make_record(
    directory: Path,
    version: int,
    before: CommitRecord | None,
    indexed_below: int | None = None,
    *,
    is_tidying: bool = False,
) -> CommitRecord:
    """Describe the files of a version; those that ``before`` knows are not hashed again.

    ``indexed_below``: as in the record; None takes that of ``before``. ``is_tidying``: as in the
    record. Raises OSError, and GalleryIntegrityError if the version has no manifest.
    """
    manifest = find_manifest(directory, version)
    if manifest is None:
        raise damaged(str(directory), f"version {version} has no manifest")
    if indexed_below is None:
        indexed_below = 0 if before is None else before.indexed_below
    return CommitRecord(
        version=version,
        manifest=manifest.name,
        manifest_sha256=sha256_of(manifest),
        deletions=_hashes(directory, _DELETIONS, before.deletions if before else {}),
        indices=_hashes(directory, _INDICES, before.indices if before else {}),
        indexed_below=indexed_below,
        is_tidying=is_tidying,
    )


def check_manifest(directory: Path, record: CommitRecord) -> None:
    """Raise GalleryIntegrityError unless the recorded manifest is there and unchanged."""
    file = _table(directory) / _VERSIONS / record.manifest
    with lance_errors(str(directory), "read"):
        if not file.is_file():
            raise damaged(
                str(directory),
                f"version {record.version} was committed, and its manifest {record.manifest} is "
                "missing",
            )
        if sha256_of(file) != record.manifest_sha256:
            raise damaged(
                str(directory), f"the manifest of version {record.version} is damaged: {file.name}"
            )


def damaged_files(
    directory: Path, files: dict[str, str], *, verified: set[str] | None = None
) -> list[str]:
    """Name the recorded files whose content changed; LanceDB misses those that are gone.

    ``verified``: files that were whole before and are not read again; whole ones are added.
    """
    found = []
    for name, digest in files.items():
        key = f"{name} {digest}"
        if verified is not None and key in verified:
            continue
        try:
            is_whole = sha256_of(_table(directory) / name) == digest
        except FileNotFoundError:
            continue
        if not is_whole:
            found.append(name)
        elif verified is not None:
            verified.add(key)
    return found


def missing_files(directory: Path, files: Iterable[str]) -> list[str]:
    """Name the files that are gone although the newest record tells of them.

    Another process may delete files meanwhile that only old versions read. Its record says so
    before, and no longer names them afterwards. Raises GalleryIntegrityError.
    """
    gone = [name for name in files if not (_table(directory) / name).is_file()]
    record = read_record(directory) if gone else None
    if record is None or record.is_tidying:
        return []
    return [name for name in gone if name in record.files]


def find_manifest(directory: Path, version: int) -> Path | None:
    """Find the manifest of a version, under either of LanceDB's naming schemes."""
    folder = _table(directory) / _VERSIONS
    for name in (f"{_LARGEST - version:020d}.manifest", f"{version}.manifest"):
        if (folder / name).is_file():
            return folder / name
    return None


def versions_of(directory: Path) -> list[int]:
    """List the versions whose manifests are there, newest first."""
    numbers = []
    for file in (_table(directory) / _VERSIONS).glob("*.manifest"):
        if file.stem.isascii() and file.stem.isdigit():
            number = int(file.stem)
            numbers.append(_LARGEST - number if len(file.stem) == 20 else number)
    return sorted(numbers, reverse=True)


def _files(directory: Path, folder: str) -> list[str]:
    table = _table(directory)
    files = (table / folder).rglob("*")
    return sorted(str(file.relative_to(table)) for file in files if file.is_file())


def _hashes(directory: Path, folder: str, known: dict[str, str]) -> dict[str, str]:
    table = _table(directory)
    return {name: known.get(name) or sha256_of(table / name) for name in _files(directory, folder)}


def _table(directory: Path) -> Path:
    return directory / f"{TABLE}.lance"


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
