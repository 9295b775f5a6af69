"""Every error that xclip-deploy raises on purpose.

The whole tree, with the exit status that the command line gives each branch::

    XclipDeployError                      1
    ├── InvalidArgumentError              2   (also a ValueError)
    ├── MissingExtraError                 3   (also an ImportError)
    ├── CheckpointError                   4
    │   ├── CheckpointReadError               missing, empty, truncated, unsafe to open
    │   ├── UnknownLayoutError                weights of no known model family
    │   └── CheckpointMismatchError           known family, inconsistent weights
    ├── ExportError                       5
    │   └── ParityError                       a graph does not reproduce PyTorch
    ├── BundleError                       6
    │   ├── BundleNotFoundError
    │   ├── BundleVersionError                written by another schema version
    │   └── BundleIntegrityError              missing, truncated or altered file
    ├── EngineError                       7
    │   └── EngineBuildError
    ├── VideoError                        8
    │   ├── VideoNotFoundError
    │   ├── VideoReadError                    no frame could be decoded
    │   └── MomentSourceError                 gone or changed since it was indexed
    ├── SessionError                      9   (device, provider or precision unavailable)
    │   ├── DriverError                       no NVIDIA driver, or one too old
    │   ├── BackendUnavailableError           an installed backend whose libraries do not load
    │   ├── ClosedError                       a model, gallery or retriever used after close()
    │   └── DeviceMemoryError                 does not fit into the GPU's memory, or its bound
    ├── GalleryError                     10
    │   ├── GalleryNotFoundError
    │   ├── GalleryIntegrityError             missing, truncated or altered file
    │   ├── GalleryVersionError               written by another schema version
    │   ├── GalleryModelError                 features of another model
    │   ├── GallerySegmentationError          videos that are cut in another way
    │   ├── MetadataError                 names or types that the gallery cannot hold
    │   └── DuplicateIdError
    ├── DatasetError                     11
    │   ├── AnnotationError                   missing, unreadable or malformed annotations
    │   ├── AmbiguousVideoError               several files for one id, or one for several
    │   └── MissingVideosError                more annotated videos without a file than allowed
    ├── TrainingError                    12   (a run that cannot go on)
    ├── VerificationError                13   (a graph or engine differs from its model)
    ├── OutputError                      14   (standard output cannot be written)
    ├── ServiceError                     15   (a service that fails, refuses, or is another)
    │   ├── ServiceConnectionError            no connection, or one that broke
    │   ├── ServiceTimeoutError               no answer in time
    │   ├── ServiceBusyError                  too many requests, or a service that shuts down
    │   └── ServiceAccessError                a token that is missing or wrong, or no permission
    └── ClusterError                     16   (a cluster that cannot be reached or used)
        └── ShardError                        shards that did not answer in time, or died

A message is one line. It says what was found, what was expected and, where one exists, the
command that mends it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MAX_MESSAGE = 1000
"""Longest message of an error, in characters."""


class XclipDeployError(Exception):
    """Base class of every error that xclip-deploy raises on purpose."""

    exit_code = 1

    def __str__(self) -> str:
        """Return the message in 1,000 characters at most, cut in the middle.

        Messages quote names and values of files, which nothing bounds. The end stays, since it
        says what to do.
        """
        text = super().__str__()
        if len(text) <= MAX_MESSAGE:
            return text
        start = MAX_MESSAGE // 2
        return f"{text[:start]}…{text[start + 1 - MAX_MESSAGE :]}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the message and the attributes, whatever the constructor of a subclass takes."""
        return _restore, (type(self), self.args, self.__dict__)


def _restore(
    kind: type[XclipDeployError], args: tuple[object, ...], attributes: dict[str, Any]
) -> XclipDeployError:
    """Rebuild an error from its message and attributes, without its class's constructor."""
    error = kind.__new__(kind, *args)
    super(XclipDeployError, error).__init__(*args)  # ImportError keeps its message there
    error.__dict__.update(attributes)
    return error


class InvalidArgumentError(XclipDeployError, ValueError):
    """An argument has a value that the function or command cannot take."""

    exit_code = 2


class MissingExtraError(XclipDeployError, ImportError):
    """An optional dependency is not installed; the message names the ``pip install``."""

    exit_code = 3

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs {package}, which is not installed; "
            f"run: pip install 'xclip-deploy[{extra}]'"
        )
        self.package = package
        self.extra = extra


class CheckpointError(XclipDeployError):
    """A checkpoint cannot be used."""

    exit_code = 4


class CheckpointReadError(CheckpointError):
    """A checkpoint file is missing, empty, truncated or unsafe to open."""


class UnknownLayoutError(CheckpointError):
    """The weights belong to no model family that xclip-deploy knows."""


class CheckpointMismatchError(CheckpointError):
    """The model family is known, but its weights are incomplete or inconsistent."""


class ExportError(XclipDeployError):
    """A bundle could not be written."""

    exit_code = 5


class ParityError(ExportError):
    """An exported graph does not reproduce the PyTorch model within tolerance."""

    def __init__(self, message: str, records: Sequence[object] = ()) -> None:
        super().__init__(message)
        self.records: tuple[Any, ...] = tuple(records)
        """A ``ParityRecord`` for each compared tensor, passed or not."""


class BundleError(XclipDeployError):
    """A bundle cannot be used."""

    exit_code = 6


class BundleNotFoundError(BundleError):
    """There is no bundle at the given path."""


class BundleVersionError(BundleError):
    """The bundle was written with a schema version that this release cannot read."""


class BundleIntegrityError(BundleError):
    """A file of the bundle is missing, truncated or not the one that was exported."""


class EngineError(XclipDeployError):
    """A TensorRT engine cannot be used."""

    exit_code = 7


class EngineBuildError(EngineError):
    """TensorRT did not build an engine."""


class VideoError(XclipDeployError):
    """A video cannot be used."""

    exit_code = 8


class VideoNotFoundError(VideoError):
    """There is no video file at the given path."""


class VideoReadError(VideoError):
    """No frame of a video could be decoded."""


class MomentSourceError(VideoError):
    """The file of a moment is gone, or is no longer the one that was indexed."""


class SessionError(XclipDeployError):
    """An inference session could not be opened or run as asked."""

    exit_code = 9


class DriverError(SessionError):
    """There is no NVIDIA driver, or one that is too old for the libraries here."""


class BackendUnavailableError(SessionError):
    """A backend is installed, but libraries that it needs do not load here."""


class ClosedError(SessionError):
    """A model, gallery or retriever was used after it was closed."""


class DeviceMemoryError(SessionError):
    """Data does not fit into the GPU's memory, or into the limit that was set."""


class GalleryError(XclipDeployError):
    """A gallery cannot be used."""

    exit_code = 10


class GalleryNotFoundError(GalleryError):
    """There is no gallery at the given path."""


class GalleryIntegrityError(GalleryError):
    """A file of the gallery is missing, truncated or altered."""


class GalleryVersionError(GalleryError):
    """The gallery was written with a schema version that this release cannot read."""


class GalleryModelError(GalleryError):
    """The gallery holds features of another model than the one in use."""


class GallerySegmentationError(GalleryError):
    """The gallery's videos are cut in another way than asked for."""


class MetadataError(GalleryError):
    """Metadata has a name or a type that the gallery cannot hold."""


class DuplicateIdError(GalleryError):
    """A video id is already in the gallery."""


class DatasetError(XclipDeployError):
    """A dataset of videos and captions cannot be used."""

    exit_code = 11


class AnnotationError(DatasetError):
    """An annotation file is missing, cannot be read, or does not hold what it should."""


class AmbiguousVideoError(DatasetError):
    """Several files match one annotated video, or one file matches several."""


class MissingVideosError(DatasetError):
    """No annotated video has a file, or more lack one than is allowed."""

    def __init__(self, message: str, missing: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.missing = tuple(missing)
        """Ids of all videos that have no file, in the order of the annotations."""


class TrainingError(XclipDeployError):
    """A run cannot continue: loss or gradients are not finite, or its folder is not writable."""

    exit_code = 12


class VerificationError(XclipDeployError):
    """A graph or engine of a bundle differs from its model by more than it may."""

    exit_code = 13

    def __init__(self, message: str, certificate: object = None) -> None:
        super().__init__(message)
        self.certificate: Any = certificate
        """``Certificate`` of the whole comparison; None if the comparison did not finish."""


class OutputError(XclipDeployError):
    """Results cannot be written to standard output: it is closed, or its disk is full."""

    exit_code = 14


class ServiceError(XclipDeployError):
    """A service failed, refused a request, or gave an answer that the client does not know."""

    exit_code = 15

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        kind: str | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status of the answer; None where there was none."""
        self.kind = kind
        """The service's name of the error; None where it gave none."""
        self.request_id = request_id
        """Id of the request in the service's log."""
        self.retry_after_s = retry_after_s
        """Time after which the service asks for the request again, seconds."""


class ServiceConnectionError(ServiceError):
    """No connection to a service could be made, or it broke."""


class ServiceTimeoutError(ServiceError):
    """A service did not answer in time."""


class ServiceBusyError(ServiceError):
    """A service has too many requests, or shuts down; the request was not carried out."""


class ServiceAccessError(ServiceError):
    """A service wants another token, or does not allow the request."""


class ClusterError(XclipDeployError):
    """A cluster cannot be reached or used."""

    exit_code = 16


class ShardError(ClusterError):
    """Shards of a gallery did not answer; the message names the first one and its node."""

    def __init__(self, message: str, shards: Sequence[object] = ()) -> None:
        super().__init__(message)
        self.shards: tuple[Any, ...] = tuple(shards)
        """A ``FailedShard`` for each shard that did not answer."""
