"""Where searches find a gallery: on the GPU, or on the CPU and why."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from xclip_deploy.errors import ClosedError, DeviceMemoryError, SessionError, XclipDeployError
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.cuda.memory import DeviceMemory
from xclip_deploy.runtime.cuda.runtime_api import open_cuda
from xclip_deploy.runtime.deployed_model import DeployedModel
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.gallery import Snapshot
from xclip_deploy.runtime.gallery.store import FeatureKeys
from xclip_deploy.runtime.resident.gallery import DeviceGallery
from xclip_deploy.runtime.resident.gpu_scan import GpuScan
from xclip_deploy.runtime.resident.kernel_set import has_kernels
from xclip_deploy.runtime.resident.layout import Layout, MemoryBound, size_text
from xclip_deploy.runtime.resident.on_device import OnDevice, ScanFailedError
from xclip_deploy.runtime.resident.scan import GalleryScan
from xclip_deploy.runtime.resident.self_test import open_tested_scan
from xclip_deploy.runtime.sessions.backend import close_all

_LOG = logging.getLogger(__name__)
AT_ONCE_BYTES = 16 << 20
"""Largest gallery that the first search uploads with ``resident_gallery="auto"``."""
AT_SEARCH_BYTES = 512 << 20
"""Largest gallery that the second search uploads. A single search is faster without an upload."""
WAIT_S = 0.25
"""Longest time that a search waits for another thread's upload before it goes on without."""
_FORKED = (
    "this process was forked from the one that opened the retriever, and CUDA does not work there; "
    "open a retriever in this process"
)
_Result = TypeVar("_Result")


OpenScan: TypeAlias = Callable[[Bundle, DeviceMemory], GalleryScan]
"""A function that loads a bundle's kernels; it raises XclipDeployError where there are none."""


@dataclass(frozen=True, eq=False)
class _Opened:
    gallery: DeviceGallery
    scan: GalleryScan
    products: GalleryScan | None
    """Scan by inner products; None where no kernels fit."""
    layout: Layout

    def close(self) -> None:
        """Free everything. Raises SessionError."""
        scans = [self.scan] if self.products is None else [self.scan, self.products]
        failure = close_all([self.gallery, *scans])
        if failure is not None:
            raise failure


class Residence:
    """The choice between the GPU and the CPU for every search. Safe to use from several threads.

    With ``resident_gallery="auto"``, whatever fails on the GPU, the search runs on the CPU and its
    reason says why. With True, a failure is an error, and searches after a lost device run on the
    CPU.
    """

    def __init__(
        self,
        model: DeployedModel,
        open_scan: OpenScan = open_tested_scan,
        open_products: OpenScan | None = GpuScan.open_products,
    ) -> None:
        """Prepare; the GPU is opened when it is first needed.

        ``open_scan``: loads the scan by the model's scorer. ``open_products``: loads the scan by
        inner products; None leaves the first stage on the CPU.
        """
        self._model = model
        self._open_scan, self._open_products = open_scan, open_products
        choice = model.options.resident_gallery
        self._must = choice is True
        self._is_wanted = self._must or (choice == "auto" and model.placement.device == "cuda")
        if not self._must and model.keeps_gallery and not has_kernels(model.bundle):
            self._is_wanted = False  # the engines' own way serves
        self._num_searches = 0
        self._lock = threading.Lock()
        self._opened: _Opened | None = None
        self._why_not = ""
        """Reason why the GPU is not used any more; empty while it is."""
        self._refused: WeakKeyDictionary[Snapshot, str] = WeakKeyDictionary()
        self._is_closed = False
        self._process = os.getpid()

    @property
    def device_name(self) -> str:
        """Name of the GPU for people: ``cuda:0``."""
        return f"cuda:{self._model.options.device_id}"

    def run(self, snapshot: Snapshot, search: Callable[[OnDevice | None, str], _Result]) -> _Result:
        """Call ``search`` with the snapshot on the GPU, or with None and the reason.

        ``search`` is called again with None if it raises ScanFailedError. The reason is empty where
        no resident gallery is wanted. Raises what ``search`` does; where ``resident_gallery`` is
        True, DeviceMemoryError and SessionError too.
        """
        if not self._is_wanted:
            return search(None, "")
        if self._is_forked:
            if self._must:
                raise SessionError(_FORKED)
            return search(None, f"not resident on {self.device_name}: {_FORKED}")
        opened, why = self._prepare(snapshot)
        if opened is not None:
            try:
                with opened.gallery.lease(snapshot) as resident:
                    if resident is not None:
                        has_all = resident.holds_frames or not opened.layout.reads_frames
                        scan = opened.scan if has_all else None
                        name = self.device_name
                        return search(OnDevice(resident, scan, opened.products, name), "")
                why = "the GPU holds a newer state of the gallery"
            except ScanFailedError as failure:
                why = self._after(failure.error)
        return search(None, f"not resident on {self.device_name}: {why}")

    def added(self, keys: FeatureKeys, features: VideoFeatures) -> None:
        """Upload rows that were just added, where a gallery is resident; see AdditionWatcher.

        A failure is left to the next search, which reads the rows from the gallery.
        """
        if self._is_forked:
            return
        with self._lock:
            opened = self._opened
        if opened is None:
            return
        try:
            opened.gallery.add(keys, features, WAIT_S)
        except SessionError as error:
            _LOG.info("added videos are uploaded by the next search: %s", error)

    def warm_up(self, snapshot: Snapshot) -> None:
        """Upload a snapshot, however large, and try again what failed before.

        Raises as :meth:`run` where ``resident_gallery`` is True.
        """
        if not self._is_wanted:
            return
        if self._is_forked:
            if self._must:
                raise SessionError(_FORKED)
            return
        with self._lock:
            self._why_not = ""
            self._refused.clear()
        self._prepare(snapshot, waits=True)

    def holds_all(self, snapshot: Snapshot) -> bool:
        """Tell whether a snapshot is on the GPU with all that the scorer reads."""
        if self._is_forked:
            return False
        with self._lock:
            opened = self._opened
        if opened is None or not opened.gallery.has(snapshot):
            return False
        return opened.gallery.holds_frames or not opened.layout.reads_frames

    def describe(self) -> str:
        """Say in one line where the gallery is; empty where no resident gallery is wanted."""
        if not self._is_wanted:
            return ""
        if self._is_forked:
            return f"not resident on {self.device_name}: {_FORKED}"
        with self._lock:
            opened, why, refused = self._opened, self._why_not, list(self._refused.values())
        if opened is None or opened.gallery.is_empty:
            why = why or (refused[-1] if refused else "nothing was uploaded yet")
            return f"not resident on {self.device_name}: {why}"
        gallery = opened.gallery
        has_all = gallery.holds_frames or not opened.layout.reads_frames
        what = "all features" if has_all else "whole videos alone, as their frames do not fit"
        return f"resident on {self.device_name}: {size_text(gallery.nbytes)}, {what}"

    def close(self) -> None:
        """Wait for searches, and free the GPU. Raises SessionError."""
        if self._is_forked:
            return  # the memory and the locks are the parent's
        with self._lock:
            self._is_closed = True
            opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()

    @property
    def _is_forked(self) -> bool:
        """Whether this process is a copy that ``fork`` made of the one that opened the GPU."""
        return os.getpid() != self._process

    # -- what may fail ---------------------------------------------------------------------

    def _prepare(self, snapshot: Snapshot, *, waits: bool = False) -> tuple[_Opened | None, str]:
        """Bring a snapshot to the GPU; return None and the reason where that fails."""
        try:
            opened = self._open()
        except XclipDeployError as error:
            if self._must or isinstance(error, ClosedError):
                raise
            self._give_up(str(error))
            return None, str(error)
        if opened is None:
            return None, self._why_not
        gallery = opened.gallery
        if gallery.has(snapshot):
            return opened, ""
        if snapshot in self._refused:
            return None, self._refused[snapshot]
        waits = waits or self._must
        if not waits and gallery.is_empty:
            self._num_searches += 1
            size = len(snapshot) * opened.layout.slot_bytes()
            if size > AT_SEARCH_BYTES:
                return None, f"its {size_text(size)} are uploaded by warm_up()"
            if size > AT_ONCE_BYTES and self._num_searches == 1:
                return None, f"its {size_text(size)} are uploaded by the next search, or warm_up()"
        try:
            if gallery.hold(snapshot, -1 if waits else WAIT_S) or gallery.was_dropped(snapshot):
                return opened, ""
        except SessionError as error:
            why = self._after(error)
            if isinstance(error, DeviceMemoryError):
                self._refused[snapshot] = why
            return None, why
        return None, "another thread is uploading it"

    def _open(self) -> _Opened | None:
        with self._lock:
            if self._is_closed:
                raise ClosedError("the resident gallery is closed; open another retriever")
            if self._opened is None and not self._why_not:
                self._opened = self._load()
            return self._opened

    def _load(self) -> _Opened:
        model, options = self._model, self._model.options
        memory = DeviceMemory(open_cuda(options.device_id, "resident"))
        scan = self._open_scan(model.bundle, memory)
        products: GalleryScan | None = None
        try:
            if self._open_products is not None:
                products = self._open_products(model.bundle, memory)
        except XclipDeployError as error:
            _LOG.info("the first stage of searches stays on the CPU: %s", error)
        except BaseException:
            close_all([scan])
            raise
        layout = Layout(model.config)
        bound = MemoryBound(options.gallery_memory_bytes)
        gallery = DeviceGallery(layout, DeviceMemory(memory.cuda), bound)
        return _Opened(gallery, scan, products, layout)

    def _after(self, error: SessionError) -> str:
        """Return the reason for searching on the CPU after a failure, or raise it.

        Too little memory may be over soon. After any other failure the GPU is given up.
        """
        if isinstance(error, ClosedError):
            if self._is_closed:
                raise error
            return self._why_not  # another thread gave it up
        if isinstance(error, DeviceMemoryError):
            if self._must:
                raise error
            _LOG.warning("searching without the GPU's copy of the gallery: %s", error)
            return str(error)
        self._give_up(f"the GPU failed: {error}")
        if self._must:
            raise error
        return self._why_not

    def _give_up(self, why: str) -> None:
        with self._lock:
            opened, self._opened = self._opened, None
            is_first, self._why_not = not self._why_not, why
        if is_first:
            _LOG.warning("no gallery is kept on %s: %s", self.device_name, why)
        if opened is not None:
            # A lost device refuses to free memory, too: the failure above says it all.
            with suppress(SessionError):
                opened.close()
