"""Keep a gallery in GPU memory: a search copies texts there, and scores back."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.arrays import slices
from xclip_deploy.runtime.cuda.memory import (
    DeviceArray,
    DeviceBuffer,
)
from xclip_deploy.runtime.features import TextFeatures, VideoFeatures
from xclip_deploy.runtime.sessions.backend import close_all
from xclip_deploy.runtime.sessions.native.runner import NativeSession

_ALIGNED_ROWS = 64
"""Rows after which every tensor is at an aligned address again: 64 counts of 4 bytes are 256 bytes,
and embeddings are longer."""


class ResidentGallery:
    """Embeddings of one gallery on the device, in the dtype that the scorer's engine reads.

    FP16 engines read FP16, as a gallery stores them. Several threads may use it: searches run one
    after another, each on the gallery that it was given.
    """

    def __init__(self, scorer: NativeSession) -> None:
        """Begin empty. ``scorer``: session of the scorer, which must stay open longer."""
        self._scorer = scorer
        self._lock = threading.Lock()
        self._held: weakref.ref[VideoFeatures] | None = None
        self._arrays: dict[str, DeviceArray] = {}
        self._buffers = {
            name: DeviceBuffer(scorer.memory, f"the gallery ({name})")
            for name, spec in scorer.inputs.items()
            if spec.shape[0] == "videos"
        }

    @property
    def nbytes(self) -> int:
        """Device memory held, room for growth included."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def score(
        self, texts: TextFeatures, videos: VideoFeatures
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Return every output of the scorer, [T, V] each, for T > 0 texts and V > 0 videos.

        ``videos``: copied to the device unless the same object was scored last. Raises
        DeviceMemoryError where it does not fit, and SessionError.
        """
        with self._lock:
            self._hold(videos)
            wanted = {"texts": len(texts), "videos": len(videos)}
            steps = self._scorer.chunk(wanted)
            if steps["videos"] < len(videos) and steps["videos"] > _ALIGNED_ROWS:
                steps["videos"] -= steps["videos"] % _ALIGNED_ROWS
            scores: dict[str, npt.NDArray[np.float32]] = {}
            for rows in slices(len(texts), steps["texts"]):
                columns = list(slices(len(videos), steps["videos"]))
                queries = self._queries(texts[rows], stays=len(columns) > 1)
                try:
                    for part in columns:
                        chunk = {
                            name: array.rows(part.start, part.stop)
                            for name, array in self._arrays.items()
                        }
                        for name, found in self._scorer.run({**queries, **chunk}).items():
                            if name not in scores:
                                scores[name] = np.empty(tuple(wanted.values()), np.float32)
                            scores[name][rows, part] = found
                finally:
                    close_all(q for q in queries.values() if isinstance(q, DeviceArray))
            return scores

    def close(self) -> None:
        """Free the memory. Raises SessionError."""
        with self._lock:
            self._held = None
            self._arrays = {}
            failure = close_all(self._buffers.values())
        if failure is not None:
            raise failure

    def _queries(self, texts: TextFeatures, *, stays: bool) -> Mapping[str, Any]:
        """Return the texts' inputs of the scorer, on the device if several chunks read them."""
        arrays: dict[str, Any] = {
            name: getattr(texts, name) for name in self._scorer.inputs if name not in self._buffers
        }
        if not stays:
            return arrays
        queries: dict[str, DeviceArray] = {}
        try:
            for name, array in arrays.items():
                queries[name] = self._scorer.to_device(name, array)
        except BaseException:
            close_all(queries.values())
            raise
        return queries

    def _hold(self, videos: VideoFeatures) -> None:
        if self._held is not None and self._held() is videos:
            return
        self._held, self._arrays = None, {}
        arrays: dict[str, DeviceArray] = {}
        try:
            for name, buffer in self._buffers.items():
                spec, array = self._scorer.inputs[name], getattr(videos, name)
                buffer.hold(int(np.prod(array.shape)) * np.dtype(spec.dtype.value).itemsize)
                arrays[name] = DeviceArray(buffer.address, array.shape, spec.dtype)
                self._scorer.upload(arrays[name], array)
        except BaseException:
            # Half a gallery is useless, and others may need its memory.
            close_all(self._buffers.values())
            raise
        self._held, self._arrays = weakref.ref(videos), arrays
