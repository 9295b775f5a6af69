"""Sessions of a model, opened when first needed."""

from __future__ import annotations

import threading

from xclip_deploy.errors import ClosedError
from xclip_deploy.runtime.manifest import Graph
from xclip_deploy.runtime.sessions import GalleryScorer, GraphLoader, Session
from xclip_deploy.runtime.sessions.backend import BlockScorer, Closable, close_all
from xclip_deploy.runtime.valid_frames import open_video_encoder


class ModelSessions:
    """A session a graph, the backend's block scorer and its scorer of resident galleries.

    It is safe to use from several threads. After :meth:`close`, every method but that raises
    ClosedError.
    """

    def __init__(self, loader: GraphLoader) -> None:
        """Open no session yet."""
        self._loader = loader
        self._opened: dict[Graph, Session] = {}
        self._block_scorer: BlockScorer | None = None
        self._has_block_scorer = True  # until the backend says otherwise
        self._gallery_scorer: GalleryScorer | None = None
        self._is_closed = False
        self._lock = threading.Lock()

    @property
    def is_closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._is_closed

    @property
    def opened(self) -> tuple[Graph, ...]:
        """The graphs whose sessions are open, in the order of their opening."""
        return tuple(self._opened)

    def check_open(self) -> None:
        """Raise ClosedError after :meth:`close`."""
        if self._is_closed:
            raise ClosedError(f"this model of {self._loader.bundle.path} is closed; open another")

    def of(self, graph: Graph) -> Session:
        """Return the session of a graph. Raises what the backend raises when it opens one."""
        with self._lock:
            return self._open(graph)

    def block_scorer(self) -> BlockScorer | None:
        """Return the backend's faster scorer; None where it has none."""
        with self._lock:
            self.check_open()
            if self._block_scorer is None and self._has_block_scorer:
                self._block_scorer = self._loader.open_block_scorer()
                self._has_block_scorer = self._block_scorer is not None
            return self._block_scorer

    def gallery_scorer(self) -> GalleryScorer:
        """Return the scorer that keeps a gallery on the backend's device."""
        with self._lock:
            self.check_open()
            if self._gallery_scorer is None:
                self._gallery_scorer = self._loader.keep_gallery(self._open(Graph.SCORER))
            return self._gallery_scorer

    def close(self) -> None:
        """Free every session.

        If one session cannot be freed, the others still are, and its SessionError is raised.
        """
        with self._lock:
            self._is_closed = True
            parts: list[Closable] = []
            if self._gallery_scorer is not None:
                parts.append(self._gallery_scorer)
            parts += self._opened.values()
            if self._block_scorer is not None:
                parts.append(self._block_scorer)
            self._opened.clear()
            self._gallery_scorer, self._block_scorer = None, None
            self._has_block_scorer = True
        failure = close_all(parts)
        if failure is not None:
            raise failure

    def _open(self, graph: Graph) -> Session:
        """Return the session of a graph; the caller must hold the lock."""
        self.check_open()
        if graph not in self._opened:
            is_video = graph is Graph.VIDEO_ENCODER
            self._opened[graph] = (
                open_video_encoder(self._loader) if is_video else self._loader.open(graph)
            )
        return self._opened[graph]
