"""Score pairs on a CPU in blocks that stay in its caches, one thread a block.

Each thread runs whole blocks by sessions without threads of their own. Such sessions have no pool
that waits for work by spinning, which would take the cores from the encoders' sessions. Threads
never wait for each other within a block.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import SessionError
from xclip_deploy.runtime.arrays import AnyArray, BoolArray, slices
from xclip_deploy.runtime.features import TextFeatures, VideoFeatures
from xclip_deploy.runtime.manifest import DType
from xclip_deploy.runtime.model_config import ModelConfig
from xclip_deploy.runtime.presentation import cut
from xclip_deploy.runtime.resources import usable_cores
from xclip_deploy.runtime.scorer_weights import ScorerWeights
from xclip_deploy.runtime.sessions.scorer_graphs import (
    IS_FRAME,
    IS_WORD,
    LEAST_SUM,
    SAFE_SUM,
    WORDS_SIDE,
    block_graph,
    text_graph,
)

_BLOCK_PAIRS = 2048
"""Pairs of a block: at 12 frames and 32 words, 3 MiB of similarities."""
_MOST_VIDEOS = 128
_MOST_TEXTS = 32
_ROWS = 16
"""Videos of a block of several a thread are a multiple of this, so that scores keep their bits."""
_MAX_REASON = 350

Feeds = dict[str, AnyArray]
Item = TypeVar("Item")
Result = TypeVar("Result")
OpenGraph = Callable[[bytes], Any]
"""Load a graph's bytes as an ONNX Runtime session without threads of its own."""


class CpuBlockScorer:
    """A model's scorer by the graphs of ``scorer_graphs.py``, safe to use from several threads."""

    def __init__(
        self,
        config: ModelConfig,
        weights: ScorerWeights,
        open_graph: OpenGraph,
        *,
        threads: int | None = None,
        is_half: bool = False,
    ) -> None:
        """Load the graph of texts.

        ``threads``: None takes one a core. ``is_half``: whether FP32 video features are rounded to
        FP16, as the exported graph rounds them. Raises SessionError.
        """
        self._config, self._weights = config, weights
        self._open_graph = open_graph
        self._is_half = is_half
        self._texts: Any = open_graph(text_graph(self._config, self._weights))
        self._blocks: dict[DType, Any] = {}
        self._lock = threading.Lock()
        self._threads = usable_cores() if threads is None else threads
        self._pool: ThreadPoolExecutor | None = None
        self._is_closed = False

    def score(
        self, texts: TextFeatures, videos: VideoFeatures
    ) -> tuple[dict[str, npt.NDArray[np.float32]], BoolArray]:
        """See :meth:`BlockScorer.score`."""
        is_float16 = videos.video_features.dtype == videos.frame_features.dtype == np.float16
        gallery = DType.FLOAT16 if is_float16 or self._is_half else DType.FLOAT32
        block = self._block(gallery)
        names = [output.name for output in block.get_outputs()]
        scores = {
            name: np.empty((len(texts), len(videos)), dtype=np.float32)
            for name in names
            if name != LEAST_SUM
        }
        # A block's videos are written by one thread, but by every block of texts.
        least = np.full((len(texts), len(videos)), np.inf, dtype=np.float32)
        text_step = min(len(texts), _MOST_TEXTS)
        video_step = min(_MOST_VIDEOS, _BLOCK_PAIRS // text_step)
        # Every thread gets as many blocks as any other, nearly of one size. Of 300 videos in blocks
        # of 128, one of two threads would score 172.
        rounds = -(-len(videos) // (video_step * self._threads))
        even = -(-len(videos) // (rounds * self._threads))
        # Products sum the last rows of a block in another order than whole groups of rows.
        video_step = min(video_step, even if rounds == 1 else -(-even // _ROWS) * _ROWS)
        for rows in slices(len(texts), text_step):
            feeds = self._prepare(texts[rows])

            def run(columns: slice, rows: slice = rows, feeds: Feeds = feeds) -> None:
                sides = {**feeds, **self._video_side(videos[columns], gallery)}
                for name, found in zip(names, self._run(block, names, sides), strict=True):
                    target = least if name == LEAST_SUM else scores[name]
                    target[rows, columns] = found

            self._each(run, slices(len(videos), video_step))
        is_exact = (least >= SAFE_SUM) & np.isfinite(scores["logits"])
        exact_videos: BoolArray = np.all(is_exact, axis=0)
        return scores, exact_videos

    def close(self) -> None:
        """Free the sessions and threads. Scoring afterwards raises SessionError."""
        with self._lock:
            self._is_closed = True
            self._texts = None
            self._blocks.clear()
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()

    def _prepare(self, texts: TextFeatures) -> Feeds:
        """Compute the inputs of the block that depend on the texts alone."""
        with self._lock:
            self._check_open()
            session = self._texts
        names = [output.name for output in session.get_outputs()]
        inputs = [node.name for node in session.get_inputs()]

        def run(rows: slice) -> list[AnyArray]:
            given = {
                name: np.ascontiguousarray(getattr(texts, name)[rows], dtype=np.float32)
                for name in inputs
            }
            return self._run(session, names, given)

        parts = self._each(run, slices(len(texts), -(-len(texts) // self._threads)))
        # Texts lie along the first axis of sentences, and along the second of words.
        joined = (
            np.concatenate(found, axis=int(name in WORDS_SIDE))
            for name, found in zip(names, zip(*parts, strict=True), strict=True)
        )
        feeds = dict(zip(names, joined, strict=True))
        if self._config.mask_padding:
            feeds[IS_WORD] = np.arange(self._config.max_words) < texts.num_words[:, None]
        return feeds

    def _video_side(self, videos: VideoFeatures, gallery: DType) -> Feeds:
        given = {"video_features": videos.video_features, "frame_features": videos.frame_features}
        feeds: Feeds = {}
        for name, array in given.items():
            feeds[name] = np.ascontiguousarray(array, dtype=gallery.value)
        if self._config.mask_padding:
            feeds[IS_FRAME] = np.arange(self._config.max_frames) < videos.num_frames[:, None]
        return feeds

    def _block(self, gallery: DType) -> Any:  # noqa: ANN401 - a session of ONNX Runtime
        with self._lock:
            self._check_open()
            if gallery not in self._blocks:
                graph = block_graph(self._config, self._weights, gallery)
                self._blocks[gallery] = self._open_graph(graph)
            return self._blocks[gallery]

    def _each(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Call ``function`` for every item, in the threads where there are several items."""
        jobs = list(items)
        if len(jobs) == 1 or self._threads == 1:
            return [function(job) for job in jobs]
        with self._lock:
            self._check_open()
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="xclip-scorer")
            # Submit under the lock: a closed pool takes no jobs.
            futures = [self._pool.submit(function, job) for job in jobs]
        return [future.result() for future in futures]

    def _check_open(self) -> None:
        if self._is_closed:
            raise SessionError("the scorer session is closed")

    @staticmethod
    def _run(
        session: Any,  # noqa: ANN401
        names: list[str],
        given: Mapping[str, AnyArray],
    ) -> list[AnyArray]:
        expected = {node.name for node in session.get_inputs()}
        feeds = {name: array for name, array in given.items() if name in expected}
        try:
            outputs: list[AnyArray] = session.run(names, feeds)
        except Exception as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            reason = cut(" ".join(str(error).split()), _MAX_REASON)
            raise SessionError(f"scorer failed on {shapes}: {reason}") from error
        return outputs
