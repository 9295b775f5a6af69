"""A resident snapshot as searches see it: rows and scores, without slots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np

from xclip_deploy.errors import SessionError
from xclip_deploy.runtime.arrays import BoolArray, Float32Array
from xclip_deploy.runtime.features import TextFeatures
from xclip_deploy.runtime.gallery.flat import best_first
from xclip_deploy.runtime.gallery.records import Rows
from xclip_deploy.runtime.gallery.store import Nearest, QueryVectors
from xclip_deploy.runtime.resident.gallery import Resident
from xclip_deploy.runtime.resident.scan import MAX_COUNT, Best, GalleryScan

_Result = TypeVar("_Result")


class ScanFailedError(Exception):
    """A search failed on the GPU; another way may do. It never leaves the package."""

    def __init__(self, error: SessionError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True, eq=False)
class Allowed:
    """The rows that a scan may find."""

    rows: Rows
    """Rows, ascending."""
    mask: BoolArray | None
    """Their slots; None where every slot is allowed."""

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class BestRows:
    """The best rows of one text, best first."""

    rows: Rows
    scores: Float32Array
    grains: dict[str, Float32Array]


@dataclass(frozen=True, eq=False)
class OnDevice:
    """A snapshot on the GPU while it is leased. Methods raise ScanFailedError."""

    resident: Resident
    scan: GalleryScan | None
    """Scan by the whole scorer; None where the frames' features did not fit."""
    products: GalleryScan | None
    """Scan by the inner product with ``video_features`` alone; None where no kernels fit."""
    device_name: str
    """Name for people: ``cuda:0``."""

    @property
    def has_products(self) -> bool:
        """Whether rows can be ranked by inner products."""
        return self.products is not None

    @property
    def num_slots(self) -> int:
        """Slots that a scan reads, tombstones included."""
        return self.resident.view.num_slots

    @cached_property
    def slot_bytes(self) -> int:
        """Bytes that a scan by the whole scorer reads of each slot."""
        arrays = self.resident.arrays
        found = [arrays.video_features, arrays.frame_features]
        return sum(each.nbytes // self.num_slots for each in found if each is not None)

    def allowed(self, rows: Rows | None, without: Rows | None = None) -> Allowed:
        """Return ``rows``, ascending, or all rows, without some."""
        view = self.resident.view
        if rows is None and without is None:
            return Allowed(view.rows, view.mask)
        found = view.rows if rows is None else rows
        if without is not None:
            found = np.setdiff1d(found, without, assume_unique=True)
        return Allowed(found, view.mask_of(view.slots_of(found)))

    def best(self, texts: TextFeatures, count: int, allowed: Allowed) -> list[BestRows]:
        """Return the ``count`` best allowed rows of each text, of at most ``MAX_COUNT``."""
        assert self.scan is not None
        return self._best(self.scan, texts, count, allowed)

    def all(self, texts: TextFeatures, allowed: Allowed) -> dict[str, Float32Array]:
        """Return ``logits`` and every grain [T, n] of the allowed rows, in their order."""
        assert self.scan is not None
        return self._all(self.scan, texts, allowed)

    def all_products(self, vectors: QueryVectors, allowed: Allowed) -> Float32Array:
        """Return the inner product [Q, n] of vectors [Q, D] with each allowed row."""
        assert self.products is not None
        return self._all(self.products, _as_texts(vectors), allowed)["logits"]

    def nearest(self, vectors: QueryVectors, limit: int, allowed: Allowed) -> list[Nearest]:
        """Return what :meth:`Snapshot.nearest` does; every allowed row is compared."""
        assert self.products is not None
        limit = min(limit, len(allowed))
        if limit <= MAX_COUNT:
            found = self._best(self.products, _as_texts(vectors), limit, allowed)
            return [Nearest(each.rows, each.scores, "flat") for each in found]
        nearest = []
        for products in self.all_products(vectors, allowed):
            best = best_first(products, limit)
            nearest.append(Nearest(allowed.rows[best], products[best], "flat"))
        return nearest

    def _best(
        self, scan: GalleryScan, texts: TextFeatures, count: int, allowed: Allowed
    ) -> list[BestRows]:
        count = min(count, len(allowed))
        if not count:
            nothing = np.empty(0, np.float32)
            return [BestRows(np.empty(0, np.int64), nothing, {})] * len(texts)
        arrays = self.resident.arrays
        found = _scanned(lambda: scan.best(texts, arrays, count, allowed.mask))
        return [self._rows_of(best, count) for best in found]

    def _rows_of(self, best: Best, count: int) -> BestRows:
        # NaN is never among the best: it would only be missing.
        if len(best) != count or not np.isfinite(best.scores).all():
            raise ScanFailedError(
                SessionError(
                    f"the scan on {self.device_name} gave {np.isfinite(best.scores).sum()} finite "
                    f"scores; expected {count}"
                )
            )
        return BestRows(self.resident.view.rows_of(best.slots), best.scores, best.grains)

    def _all(
        self, scan: GalleryScan, texts: TextFeatures, allowed: Allowed
    ) -> dict[str, Float32Array]:
        arrays = self.resident.arrays
        found = _scanned(lambda: scan.all(texts, arrays, allowed.mask))
        slots = self.resident.view.slots_of(allowed.rows)
        values = {name: array[:, slots] for name, array in found.items()}
        if not np.isfinite(values["logits"]).all():
            raise ScanFailedError(
                SessionError(f"the scan on {self.device_name} gave NaN or infinity")
            )
        return values


def _scanned(run: Callable[[], _Result]) -> _Result:
    try:
        return run()
    except SessionError as error:
        raise ScanFailedError(error) from error


def _as_texts(vectors: QueryVectors) -> TextFeatures:
    """Return texts whose video-sentence grain is the inner product with ``vectors`` [Q, D]."""
    wide = np.asarray(vectors, np.float32)
    words = np.broadcast_to(np.zeros(1, np.float32), (len(wide), 1, wide.shape[1]))
    return TextFeatures(wide, words, np.ones(len(wide), np.int32))
