"""The gallery that a service serves: one in this process, or one in shards on a cluster.

The parts of the service ask a :class:`ServedGallery` for what differs between the two. All else
reads :class:`VideoRecords`.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from xclip_deploy.runtime.deployed_model import DeployedModel
from xclip_deploy.runtime.failures import FailedShard
from xclip_deploy.runtime.gallery.reports import GalleryStats
from xclip_deploy.runtime.opened import Opened
from xclip_deploy.runtime.results import SearchResults
from xclip_deploy.runtime.retriever import Retriever
from xclip_deploy.runtime.search import Query, Searcher, SearchOptions
from xclip_deploy.runtime.search.planner import Planner
from xclip_deploy.runtime.sessions import SessionOptions
from xclip_deploy.service.records import VideoRecords
from xclip_deploy.service.settings import ServiceSettings

_EXACT_BUDGET_S = 0.004
"""Longest time to score a whole gallery for one text, seconds: searches of others wait for it."""


class ServedGallery(ABC):
    """A gallery that a service serves, with the model that encodes and scores.

    It is safe to use from several threads.
    """

    num_shards: int | None = None
    """Number of shards; None for one gallery."""
    allow_partial: bool = False
    """Whether searches go on without shards that do not answer."""
    is_writable: bool = True
    """Whether this process adds and removes videos."""

    def __init__(self, retriever: Opened, settings: ServiceSettings) -> None:
        """Serve what ``retriever`` has opened, and close it at the end."""
        self.retriever: Opened = retriever
        self.model = _search_model(retriever, settings)
        """Model that embeds texts for searches, explains and scores."""
        self.weights = cache(retriever.bundle.scorer_weights)

    @abstractmethod
    def check_writable(self) -> None:
        """Raise Refusal unless this process adds and removes videos."""

    @property
    @abstractmethod
    def writer(self) -> Retriever:
        """Retriever that adds and removes videos. Raises Refusal as :meth:`check_writable`."""

    @property
    @abstractmethod
    def placement(self) -> str:
        """Place of the gallery's features in words; empty where there is nothing to say."""

    @abstractmethod
    def records(self) -> VideoRecords:
        """Return the videos as they are now: the same object as long as nothing changes."""

    @abstractmethod
    def refresh(self) -> None:
        """Load what other processes wrote. Raises GalleryError, ShardError."""

    @abstractmethod
    def search(
        self, queries: Sequence[Query], records: VideoRecords, options: SearchOptions
    ) -> list[SearchResults]:
        """Search these records; all queries have a text, or none has.

        Raises InvalidArgumentError, GalleryError, ShardError.
        """

    @abstractmethod
    def warm_up(self, records: VideoRecords) -> bool:
        """Load what searches would wait for; return whether a GPU then holds all features."""

    @abstractmethod
    def stats(self) -> GalleryStats:
        """Summarize the gallery in one pass."""

    @abstractmethod
    def look_for_lost_shards(self) -> tuple[FailedShard, ...]:
        """Ask all shards whether they answer, and return those that do not."""

    def close(self) -> None:
        """Free the sessions and the gallery."""
        if self.model is not self.retriever.model:
            self.model.close()
        self.retriever.close()


class OneGallery(ServedGallery):
    """A gallery that this process reads, searches and writes."""

    def __init__(self, settings: ServiceSettings) -> None:
        """Open the bundle and the gallery. Raises as :class:`Retriever` does."""
        self._retriever = Retriever(
            settings.bundle,
            settings.gallery,
            create=not settings.read_only,
            max_batch=settings.max_batch,
            session=settings.session,
        )
        super().__init__(self._retriever, settings)
        gallery = self._retriever.gallery
        self._residence = self._retriever.residence
        self._searcher = Searcher(
            self.model,
            self.weights,
            gallery.thumbnails,
            Planner(_EXACT_BUDGET_S),
            self._residence,
        )
        self._known: VideoRecords | None = None
        self._lock = threading.Lock()

    def check_writable(self) -> None:
        """Do nothing."""

    @property
    def writer(self) -> Retriever:
        """Retriever that adds and removes videos."""
        return self._retriever

    @property
    def placement(self) -> str:
        """What became of a copy on the GPU."""
        return self._residence.describe()

    def records(self) -> VideoRecords:
        """Return the videos as they are now."""
        gallery = self._retriever.gallery
        snapshot = gallery.snapshot()
        with self._lock:
            known = self._known
            if known is None or known.parts[0] is not snapshot:
                self._known = known = VideoRecords([snapshot], [gallery.thumbnails])
            return known

    def refresh(self) -> None:
        """Load what other processes wrote."""
        self._retriever.refresh()

    def search(
        self, queries: Sequence[Query], records: VideoRecords, options: SearchOptions
    ) -> list[SearchResults]:
        """Search in this process."""
        return self._searcher.search(queries, records.parts[0], options)

    def warm_up(self, records: VideoRecords) -> bool:
        """Load features into memory, and to the GPU where they stay there."""
        (snapshot,) = records.parts
        snapshot.warm_up()
        if not len(snapshot):
            return False
        self._residence.warm_up(snapshot)
        return self._residence.holds_all(snapshot)

    def stats(self) -> GalleryStats:
        """Summarize the gallery in one pass."""
        return self._retriever.gallery.stats()

    def look_for_lost_shards(self) -> tuple[FailedShard, ...]:
        """Return no shards."""
        return ()

    def close(self) -> None:
        """Free the sessions and the gallery."""
        self._known = None
        super().close()


def _search_model(retriever: Opened, settings: ServiceSettings) -> DeployedModel:
    """Return a model whose sessions have one thread; the retriever's own on a GPU.

    Several searches at a time use the cores better than one search on all of them. A session with
    ``threads`` in its options is used as it is.
    """
    placement = retriever.model.placement
    asked = settings.session or SessionOptions()
    if placement.device != "cpu" or placement.backend != "onnxruntime" or asked.threads is not None:
        return retriever.model
    options = replace(asked, device="cpu", device_id=0, threads=1)
    return DeployedModel(retriever.bundle, options, settings.max_batch)
