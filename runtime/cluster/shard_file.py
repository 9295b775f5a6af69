"""``shards.json``: the shards of a gallery, and the version of each that searches read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote

from pydantic import Field, ValidationError, field_validator

from xclip_deploy.errors import (
    GalleryError,
    GalleryIntegrityError,
    GalleryModelError,
    GalleryNotFoundError,
    GalleryVersionError,
)
from xclip_deploy.runtime.arguments import PathName, as_path
from xclip_deploy.runtime.model_config import FrozenModel
from xclip_deploy.runtime.search.numbering import MAX_SHARDS

SHARDS_FILE = "shards.json"
SCHEMA_VERSION = 1
_FILE_SCHEME = "file://"


class ShardEntry(FrozenModel):
    """One shard at its published version."""

    path: Annotated[str, Field(pattern=r"^shard-[0-9]{3,}$")]
    """Directory of the shard's gallery, beside ``shards.json``."""
    version: Annotated[int, Field(ge=1)]
    """Version that searches read."""
    num_videos: Annotated[int, Field(ge=0)]
    num_segments: Annotated[int, Field(ge=0)]


class ShardFile(FrozenModel):
    """Content of ``shards.json``."""

    schema_version: Literal[1] = 1
    fingerprint: Annotated[str, Field(min_length=1)]
    """Fingerprint of the model that made the embeddings."""
    segmentation: str | None = None
    """Policy by which the videos of all shards are cut; None while none is set."""
    published: Annotated[int, Field(ge=1)]
    """Number of the publication; each is larger than the one before."""
    shards: Annotated[tuple[ShardEntry, ...], Field(min_length=1, max_length=MAX_SHARDS)]

    @field_validator("shards")
    @classmethod
    def _check_paths(cls, shards: tuple[ShardEntry, ...]) -> tuple[ShardEntry, ...]:
        if len({shard.path for shard in shards}) < len(shards):
            raise ValueError("two shards have one directory")  # whose videos would count twice
        return shards

    @property
    def num_videos(self) -> int:
        """Number of videos in all shards."""
        return sum(shard.num_videos for shard in self.shards)

    @property
    def versions(self) -> list[int]:
        """Published version of each shard."""
        return [shard.version for shard in self.shards]

    def place(self, gallery: Path, number: int) -> Path:
        """Return the directory of a shard of the gallery in ``gallery``."""
        return gallery / self.shards[number].path


def directory_of(gallery: PathName) -> Path:
    """Return the absolute directory of a gallery in shards.

    A ``file://`` URI names one. Raises GalleryError for any other URI.
    """
    path, name = as_path("gallery", gallery), str(gallery)
    if name.startswith(_FILE_SCHEME):
        return Path(unquote(name.removeprefix(_FILE_SCHEME).removeprefix("localhost"))).absolute()
    if "://" in name:
        raise GalleryError(
            f"{name} is a URI; expected a directory that all machines share, as galleries in "
            "shards are not kept in object storage; pass --gallery DIRECTORY"
        )
    return path.absolute()


def is_sharded(gallery: PathName) -> bool:
    """Tell whether a directory holds a gallery in shards. Raises GalleryError for other URIs."""
    return (directory_of(gallery) / SHARDS_FILE).is_file()


def read_shards(gallery: PathName) -> ShardFile:
    """Read ``shards.json``.

    Raises GalleryNotFoundError if there is none, GalleryIntegrityError for one that is damaged,
    GalleryVersionError for one of a newer release, and GalleryError for object storage.
    """
    path = directory_of(gallery) / SHARDS_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise GalleryNotFoundError(
            f"no gallery in shards at {gallery}: {SHARDS_FILE} is missing; "
            f"run: xclip-deploy index VIDEOS --gallery {gallery} --cluster auto --shards 8"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise GalleryIntegrityError(
            f"{path} cannot be read ({error}); check its permissions"
        ) from error
    try:
        return ShardFile.model_validate_json(text)
    except ValidationError as error:
        version = _version_of(text)
        if version is not None and version > SCHEMA_VERSION:
            raise GalleryVersionError(
                f"{path} has schema version {version}, this release reads {SCHEMA_VERSION}; "
                "run: pip install --upgrade xclip-deploy"
            ) from error
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        count = max(1, len(list(path.parent.glob("shard-*"))))
        raise GalleryIntegrityError(
            f"{path} is damaged ({where}: {first['msg']}); delete it, and run: "
            f"xclip-deploy index VIDEOS --gallery {gallery} --cluster auto --shards {count}"
        ) from error


def missing_shards(gallery: Path, shards: ShardFile) -> list[int]:
    """Return the numbers of the shards whose directories are gone."""
    return [
        number for number in range(len(shards.shards)) if not shards.place(gallery, number).is_dir()
    ]


def check_shards(gallery: PathName, shards: ShardFile, fingerprint: str) -> None:
    """Check that the shards are there, and hold features of this model.

    Raises GalleryModelError, and GalleryIntegrityError for a shard whose directory is gone.
    """
    path = directory_of(gallery)
    if shards.fingerprint != fingerprint:
        raise GalleryModelError(
            f"gallery {path} holds features of model {shards.fingerprint[:12]}…, the bundle is "
            f"model {fingerprint[:12]}…; run: xclip-deploy index VIDEOS --gallery NEW_GALLERY "
            "--cluster auto --shards 8"
        )
    missing = missing_shards(path, shards)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise GalleryIntegrityError(
            f"gallery {path} has lost shard {missing[0]} of {len(shards.shards)}{more}: "
            f"{shards.place(path, missing[0])} is gone; restore it from a copy, or run: "
            "xclip-deploy index VIDEOS --gallery NEW_GALLERY --cluster auto --shards "
            f"{len(shards.shards)}"
        )


def _version_of(text: str) -> int | None:
    """Return the schema version of a file that cannot be read otherwise."""
    try:
        content: Any = json.loads(text)
    except ValueError:
        return None
    version = content.get("schema_version") if isinstance(content, dict) else None
    return version if isinstance(version, int) else None
