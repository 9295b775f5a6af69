"""Files that clients send: streamed to the data folder, and stored once for each content.

A file grows in ``uploads/partial``, reaches ``uploads/<SHA-256>/<name>`` by a rename once every
byte is on the disk, and belongs to the ledger of jobs from then on. Whatever is in neither place at
the next start was never acknowledged, and is removed. Nothing waits in memory but one buffer.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import threading
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.gallery import VideoFile
from xclip_deploy.service.errors import Refusal
from xclip_deploy.service.file_names import safe_name
from xclip_deploy.service.jobs.ledger import Ledger
from xclip_deploy.service.jobs.records import UploadedFile
from xclip_deploy.service.multipart import MultipartForm, PartData, PartEnd, PartStart
from xclip_deploy.service.partial_files import PartialFile
from xclip_deploy.service.settings import ServiceSettings

P = ParamSpec("P")
T = TypeVar("T")
RESERVED_BYTES = 64 << 20
"""Room on the disk that uploads leave to the gallery and the ledger."""
MAX_AT_ONCE = 16
"""Most uploads that run at the same time."""
MAX_OPTIONS_BYTES = 1 << 18
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Received:
    """An upload whose bytes have all arrived and are on the disk, not yet stored."""

    def __init__(self) -> None:
        self.options = b""
        """Content of the part ``options``."""
        self.files: list[PartialFile] = []
        """The files, with the names that the client gave."""

    def discard(self) -> None:
        """Remove what was not stored."""
        for file in self.files:
            file.discard()


class Uploads:
    """The uploaded files of a service. It is safe to use from several threads."""

    def __init__(self, settings: ServiceSettings, ledger: Ledger) -> None:
        """Open the store, and remove what an earlier start left unfinished. Raises OSError."""
        self._settings = settings
        self._ledger = ledger
        self.folder = (settings.data / "uploads").absolute()
        self._partial = self.folder / "partial"
        self._partial.mkdir(parents=True, exist_ok=True)
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="upload")
        self._lock = threading.RLock()
        # Taken within the other, and within those of files; nothing is locked within this one.
        self._room = threading.Lock()
        self._stored = 0
        self._claims: Counter[str] = Counter()
        self._incoming = 0  # bytes of files that are not stored yet
        self._running = 0
        self._files: dict[str, UploadedFile] = {}
        for job in ledger.unfinished():
            self._claims.update(file.content_sha256 for file in job.request.files)
        self._clean_up()

    def close(self) -> None:
        """Wait for the writes in work."""
        self._threads.shutdown(wait=True)

    @property
    def stored_bytes(self) -> int:
        """Bytes that the stored files take together."""
        with self._room:
            return self._stored

    def path_of(self, file: UploadedFile) -> Path:
        """Return the path of a stored file."""
        return self.folder / file.content_sha256 / file.name

    # -- a request ------------------------------------------------------------------------

    @asynccontextmanager
    async def receiving(
        self, content_type: str, content_length: int | None, stream: AsyncIterator[bytes]
    ) -> AsyncIterator[Received]:
        """Receive a form with the parts ``files`` and ``options``; give it once it is complete.

        What is not stored when the block ends is removed, as is everything when the client goes
        away.

        Raises:
            Refusal: Too large or too many files (413), no room (507), too many uploads (429),
                another type of content (415).
            InvalidArgumentError: The form is malformed.
        """
        if content_length is not None:
            self._check_room(content_length)
        form = MultipartForm(content_type)
        if self._running >= MAX_AT_ONCE:
            raise Refusal(
                429,
                "TooManyUploads",
                f"{MAX_AT_ONCE} uploads are running; expected fewer, so try again later",
                retry_after_s=10,
            )
        self._running += 1
        received = Received()
        try:
            await self._receive(form, stream, received)
            yield received
        finally:
            self._running -= 1
            received.discard()

    async def _receive(
        self, form: MultipartForm, stream: AsyncIterator[bytes], received: Received
    ) -> None:
        file: PartialFile | None = None
        options = bytearray()
        async for chunk in stream:
            for event in form.feed(chunk):
                if isinstance(event, PartStart):
                    file = self._begin(event, received)
                elif isinstance(event, PartData):
                    if file is None:
                        options += event.content
                        if len(options) > MAX_OPTIONS_BYTES:
                            raise _too_large("the options", f"{MAX_OPTIONS_BYTES} bytes at most")
                    elif file.add(event.content):
                        await self._on_thread(file.flush)
                elif isinstance(event, PartEnd) and file is not None:
                    await self._on_thread(file.finish)
                    if not file.size_bytes:
                        raise InvalidArgumentError(
                            f"{file.name}: is empty (0 bytes); expected a video file"
                        )
                    file = None
        form.end()
        if not received.files:
            raise InvalidArgumentError("the form holds no part 'files'; expected a video at least")
        received.options = bytes(options)

    def _begin(self, part: PartStart, received: Received) -> PartialFile | None:
        if part.name == "options":
            return None
        if part.name != "files":
            raise InvalidArgumentError(
                f"the form has a part {part.name!r:.50}; expected 'files' and 'options'"
            )
        most = self._settings.max_upload_files
        if len(received.files) == most:
            raise _too_large("the upload has more files than that", f"{most} at most")
        name = safe_name(part.filename or "video")
        received.files.append(
            PartialFile(
                self._partial / f"{uuid.uuid4().hex}.part",
                name,
                self._settings.max_upload_bytes,
                self._take_room,
                self._give_back_room,
            )
        )
        return received.files[-1]

    def _take_room(self, count: int) -> None:
        """Count bytes that are about to be written. Raises Refusal (507)."""
        self._check_room(count)
        with self._room:
            self._incoming += count

    def _give_back_room(self, count: int) -> None:
        with self._room:
            self._incoming -= count

    def _check_room(self, count: int) -> None:
        with self._room:
            stored = self._stored + self._incoming
        if stored + count > self._settings.max_stored_bytes:
            raise Refusal(
                507,
                "NoRoom",
                f"uploads take {stored} bytes of {self._settings.max_stored_bytes}; expected room "
                f"for {count} more: remove videos first",
            )
        if shutil.disk_usage(self.folder).free - count < RESERVED_BYTES:
            raise no_room()

    async def _on_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        call = partial(function, *args, **kwargs)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise no_room() from error
            raise

    # -- stored files ----------------------------------------------------------------------

    def store(self, received: Received) -> list[UploadedFile]:
        """Move received files to their places, and claim them for a job.

        Equal content is stored once, under its first name. Raises Refusal (507), OSError.
        """
        stored: list[UploadedFile] = []
        try:
            for partial_file in received.files:
                with self._lock:
                    file = self._place(partial_file)
                    self._claims[file.content_sha256] += 1
                stored.append(file)
        except BaseException as error:
            self.settle(stored, lambda _file: None)
            if isinstance(error, OSError) and error.errno in _NO_ROOM:
                raise no_room() from error
            raise
        return stored

    def _place(self, received: PartialFile) -> UploadedFile:
        known = self._files.get(received.content_sha256)
        if known is not None and _size_of(self.path_of(known)) == received.size_bytes:
            received.discard()
            return known
        name = received.name if known is None else known.name
        file = UploadedFile(received.content_sha256, name, received.size_bytes)
        path = self.path_of(file)
        path.parent.mkdir(exist_ok=True)
        received.move_to(path)
        for folder in (path.parent, self.folder):
            sync_folder(folder)
        self._note(file)
        return file

    def keep(
        self, files: Iterable[UploadedFile], is_listed: Callable[[UploadedFile], bool | None]
    ) -> None:
        """Note which files the gallery lists, before the job is recorded as ended.

        A crash between the two would else leave files that no job claims, which the next start
        removes. ``is_listed``: as :meth:`settle` takes it; what cannot be told is kept.
        """
        for file in files:
            if is_listed(file) is not False:
                self._ledger.keep_file(file.content_sha256)

    def settle(
        self, files: Iterable[UploadedFile], is_listed: Callable[[UploadedFile], bool | None]
    ) -> None:
        """End a job's claim on files. Those that no job and no video of the gallery needs go.

        ``is_listed``: whether the gallery lists a file; None where that cannot be told, which
        keeps a file that the ledger knows.
        """
        known = self._ledger.files()
        for file in files:
            content = file.content_sha256
            with self._lock:
                self._claims[content] -= 1
                if self._claims[content] > 0:
                    continue
                del self._claims[content]
                # Asked under the lock: a removal meanwhile is seen here, or forgets the file next.
                listed = is_listed(file)
                if listed:
                    self._ledger.keep_file(content)
                elif listed is False or content not in known:
                    self._remove(content)

    def forget(self, files: Iterable[VideoFile | str | os.PathLike[str]]) -> int:
        """Delete those of a removed video's files that were uploaded; return how many.

        Other files are left alone, and so are files that a job still needs.
        """
        count = 0
        for each in files:
            path = Path(each.path if isinstance(each, VideoFile) else each)
            content = path.parent.name
            with self._lock:
                known = self._files.get(content)
                if known is None or self.path_of(known) != path or self._claims[content] > 0:
                    continue
                self._remove(content)
                count += 1
        return count

    def _remove(self, content: str) -> None:
        file = self._files.pop(content, None)
        if file is not None:
            with self._room:
                self._stored -= file.size_bytes
        shutil.rmtree(self.folder / content, ignore_errors=True)
        self._ledger.drop_file(content)

    def _note(self, file: UploadedFile) -> None:
        before = self._files.get(file.content_sha256)
        self._files[file.content_sha256] = file
        with self._room:
            self._stored += file.size_bytes - (before.size_bytes if before is not None else 0)

    def _clean_up(self) -> None:
        """Remove what an earlier start left behind, and learn what there is."""
        for path in self._partial.iterdir():
            path.unlink()
        for content, (file, is_indexed) in self._ledger.files().items():
            is_there = _size_of(self.path_of(file)) == file.size_bytes
            if is_there and (is_indexed or self._claims[content] > 0):
                self._note(file)
            elif self._claims[content] == 0:
                self._ledger.drop_file(content)
        for path in self.folder.iterdir():
            if path.name not in self._files and path != self._partial:
                shutil.rmtree(path, ignore_errors=True)


def no_room() -> Refusal:
    """Return the refusal of a request for which the disk has no room."""
    return Refusal(507, "NoRoom", "the service's disk is full; expected room, so free some")


def sync_folder(folder: Path) -> None:
    """Write the names in a folder through to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _too_large(found: str, expected: str) -> Refusal:
    return Refusal(413, "TooLarge", f"{found}; expected {expected}")
