"""``shards.json``: the shards of a gallery, and the version of each that searches read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from xclip_deploy.errors import (
    GalleryError,
    GalleryIntegrityError,
    GalleryModelError,
    GalleryNotFoundError,
    GallerySegmentationError,
)
from xclip_deploy.runtime.arguments import PathName, as_path, as_whole_number
from xclip_deploy.runtime.files import replace_text
from xclip_deploy.runtime.gallery import Gallery
from xclip_deploy.runtime.gallery.records import TYPE_NAMES, merged_types
from xclip_deploy.runtime.manifest import Manifest
from xclip_deploy.runtime.model_config import FrozenModel
from xclip_deploy.runtime.search.numbering import MAX_SHARDS

SHARDS_FILE = "shards.json"
_TYPES = {kind.__name__: kind for kind in TYPE_NAMES}


class ShardEntry(FrozenModel):
    """One shard at its published version."""

    path: Annotated[str, Field(min_length=1)]
    """Directory of the shard's gallery, relative to that of ``shards.json``."""
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


def is_sharded(gallery: PathName) -> bool:
    """Tell whether a directory holds a gallery in shards."""
    return "://" not in str(gallery) and (as_path("gallery", gallery) / SHARDS_FILE).is_file()


def read_shards(gallery: PathName) -> ShardFile:
    """Read ``shards.json``.

    Raises GalleryNotFoundError if there is none, GalleryIntegrityError for one that is damaged.
    """
    path = as_path("gallery", gallery) / SHARDS_FILE
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
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        count = len(list(path.parent.glob("shard-*")))
        raise GalleryIntegrityError(
            f"{path} is damaged ({where}: {first['msg']}); delete it, and run: "
            f"xclip-deploy index VIDEOS --gallery {gallery} --cluster auto --shards {count}"
        ) from error


def create_shards(gallery: PathName, manifest: Manifest, count: int) -> ShardFile:
    """Make an empty gallery in ``count`` shards, or return the one that is there.

    Raises GalleryError for another number of shards or another model.
    """
    count = as_whole_number("shards", count, 1, MAX_SHARDS)
    path = as_path("gallery", gallery)
    if (path / SHARDS_FILE).is_file():
        found = read_shards(path)
        check_shards(path, found, manifest.fingerprint)
        if len(found.shards) != count:
            raise GalleryError(
                f"gallery {path} has {len(found.shards)} shards, expected {count}; "
                f"pass --shards {len(found.shards)}, or another gallery"
            )
        return found
    if path.is_dir() and any(not each.name.startswith("shard-") for each in path.iterdir()):
        raise GalleryNotFoundError(
            f"{path} is no gallery in shards and not empty; choose another path"
        )
    path.mkdir(parents=True, exist_ok=True)
    names = [f"shard-{number:03d}" for number in range(count)]
    for name in names:
        Gallery.open(path / name, manifest, create=True).close()
    return _publish(path, names, manifest.fingerprint, 1)


def publish_shards(gallery: PathName) -> ShardFile:
    """Publish the newest version of every shard, which searches read after a refresh.

    Every shard gets the metadata fields of all, so that filters mean the same everywhere. Raises
    GalleryError, MetadataError for a field of two types, and GallerySegmentationError for shards
    that are cut in different ways.
    """
    path = as_path("gallery", gallery)
    known = read_shards(path)
    names = [shard.path for shard in known.shards]
    return _publish(path, names, known.fingerprint, known.published + 1)


def check_shards(gallery: PathName, shards: ShardFile, fingerprint: str) -> None:
    """Raise GalleryModelError unless the shards hold features of this model."""
    if shards.fingerprint != fingerprint:
        raise GalleryModelError(
            f"gallery {gallery} holds features of model {shards.fingerprint[:12]}…, the bundle is "
            f"model {fingerprint[:12]}…; run: xclip-deploy index VIDEOS --gallery NEW_GALLERY "
            "--cluster auto --shards 8"
        )


def _publish(path: Path, names: list[str], fingerprint: str, number: int) -> ShardFile:
    galleries = [Gallery.open(path / name) for name in names]
    try:
        types: dict[str, type] = {}
        for opened in galleries:
            examples = {name: kind() for name, kind in opened.fields.items()}
            types = merged_types(types, [examples])
        entries: list[ShardEntry] = []
        policies: set[str] = set()
        for name, opened in zip(names, galleries, strict=True):
            if opened.fields != types:
                opened.declare(types)
            snapshot, version = opened.snapshot(), opened.version
            assert version is not None
            if snapshot.segmentation is not None:
                policies.add(snapshot.segmentation)
            entries.append(
                ShardEntry(
                    path=name,
                    version=version,
                    num_videos=snapshot.num_videos,
                    num_segments=len(snapshot),
                )
            )
    finally:
        for opened in galleries:
            opened.close()
    if len(policies) > 1:
        found = ", ".join(sorted(policies))
        raise GallerySegmentationError(
            f"the shards of {path} are cut in {len(policies)} ways ({found}); "
            "expected one policy: index into a new gallery"
        )
    shards = ShardFile(
        fingerprint=fingerprint,
        segmentation=next(iter(policies), None),
        published=number,
        shards=tuple(entries),
    )
    replace_text(path / SHARDS_FILE, shards.model_dump_json(indent=1) + "\n")
    return shards
