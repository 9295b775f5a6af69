"""Score pairs on a CPU in blocks that stay in its caches, one thread a block.

Each thread runs whole blocks by sessions without threads of their own. Such sessions have no pool
that waits for work by spinning, which would take the cores from the encoders' sessions. Threads
never wait for each other within a block. The calling thread works too. Each further thread is
woken once a call, and takes blocks until none is left.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
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
OpenGraph = Callable[[bytes], Any]
"""Load a graph's bytes as an ONNX Runtime session without threads of its own."""


class _Graph:
    """An opened graph with its names, for which no run has to ask ONNX Runtime again."""

    def __init__(self, session: Any) -> None:  # noqa: ANN401 - a session of ONNX Runtime
        self._session = session
        self.inputs = [node.name for node in session.get_inputs()]
        self.outputs = [node.name for node in session.get_outputs()]

    def run(self, given: Mapping[str, AnyArray]) -> list[AnyArray]:
        """Return the outputs. Arrays that the graph does not read are ignored."""
        feeds = {name: given[name] for name in self.inputs}
        try:
            outputs: list[AnyArray] = self._session.run(self.outputs, feeds)
        except Exception as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            reason = cut(" ".join(str(error).split()), _MAX_REASON)
            raise SessionError(f"scorer failed on {shapes}: {reason}") from error
        return outputs


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
        self._texts: _Graph | None = _Graph(open_graph(text_graph(config, weights)))
        self._blocks: dict[DType, _Graph] = {}
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
        shape = (len(texts), len(videos))
        # A block's videos are written by one thread, but by every block of texts.
        found = {name: np.empty(shape, dtype=np.float32) for name in block.outputs}
        text_step = min(len(texts), _MOST_TEXTS)
        blocks = self._cut(len(videos), min(_MOST_VIDEOS, _BLOCK_PAIRS // text_step))
        for rows in slices(len(texts), text_step):
            feeds = self._prepare(texts[rows])

            def run(columns: slice, rows: slice = rows, feeds: Feeds = feeds) -> None:
                outputs = block.run({**feeds, **self._video_side(videos[columns], gallery)})
                for name, output in zip(block.outputs, outputs, strict=True):
                    found[name][rows, columns] = output

            self._each(run, blocks)
        is_exact = np.isfinite(found["logits"])
        least = found.pop(LEAST_SUM, None)
        if least is not None:
            is_exact &= least >= SAFE_SUM
        exact_videos: BoolArray = np.all(is_exact, axis=0)
        return found, exact_videos

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
            graph = self._texts
        assert graph is not None, "an open scorer has it"
        jobs = self._cut(len(texts), len(texts))
        parts: list[list[AnyArray]] = [[]] * len(jobs)

        def run(job: tuple[int, slice]) -> None:
            number, rows = job
            parts[number] = graph.run(
                {
                    name: np.ascontiguousarray(getattr(texts, name)[rows], dtype=np.float32)
                    for name in graph.inputs
                }
            )

        self._each(run, list(enumerate(jobs)))
        # Texts lie along the first axis of sentences, and along the second of words.
        feeds = {
            name: np.concatenate(found, axis=int(name in WORDS_SIDE))
            for name, found in zip(graph.outputs, zip(*parts, strict=True), strict=True)
        }
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

    def _block(self, gallery: DType) -> _Graph:
        with self._lock:
            self._check_open()
            if gallery not in self._blocks:
                graph = block_graph(self._config, self._weights, gallery)
                self._blocks[gallery] = _Graph(self._open_graph(graph))
            return self._blocks[gallery]

    def _cut(self, total: int, most: int) -> list[slice]:
        """Cut ``range(total)`` into slices of ``most`` at most, the same number for each thread.

        Of 300 videos in blocks of 128, one of two threads would score 172.
        """
        rounds = -(-total // (most * self._threads))
        even = -(-total // (rounds * self._threads))
        # Products sum the last rows of a block in another order than whole groups of rows.
        return list(slices(total, min(most, even if rounds == 1 else -(-even // _ROWS) * _ROWS)))

    def _each(self, function: Callable[[Item], None], items: Sequence[Item]) -> None:
        """Call ``function`` for every item, in the threads where there are several items."""
        left: queue.SimpleQueue[Item] = queue.SimpleQueue()
        for item in items:
            left.put(item)

        def work() -> None:
            with suppress(queue.Empty):
                while True:
                    function(left.get_nowait())

        helpers: list[Future[None]] = []
        if len(items) > 1 and self._threads > 1:
            with self._lock:
                self._check_open()
                if self._pool is None:
                    name = "xclip-scorer"
                    self._pool = ThreadPoolExecutor(self._threads - 1, thread_name_prefix=name)
                # Submit under the lock: a closed pool takes no jobs.
                count = min(self._threads, len(items)) - 1
                helpers = [self._pool.submit(work) for _ in range(count)]
        try:
            work()
        finally:
            # A helper that has not begun has nothing left to do. Others still write.
            begun = [helper for helper in helpers if not helper.cancel()]
            wait(begun)
        for helper in begun:
            helper.result()

    def _check_open(self) -> None:
        if self._is_closed:
            raise SessionError("the scorer session is closed")
