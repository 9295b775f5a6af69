"""Scans of a gallery on the stand-in device by NumPy and the model's own scorer on the CPU.

They read the device's memory as kernels do: memory that nothing wrote, or that was freed, is a
violation. What they compute is exact, so that tests see what the gallery on the device does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from stand_in_device import Device
from xclip_deploy.errors import DeviceMemoryError, SessionError
from xclip_deploy.runtime.arrays import BoolArray, Float32Array
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.cuda.memory import DeviceArray, DeviceMemory
from xclip_deploy.runtime.deployed_model import DeployedModel
from xclip_deploy.runtime.features import TextFeatures, VideoFeatures
from xclip_deploy.runtime.resident.residence import OpenScan
from xclip_deploy.runtime.resident.scan import MAX_COUNT, Best, GalleryScan, ScanArrays
from xclip_deploy.runtime.results import SearchResults
from xclip_deploy.runtime.search.planner import Planner, ScanSize

Score = Callable[[TextFeatures, VideoFeatures], dict[str, Float32Array]]


class NumpyScan:
    """A :class:`GalleryScan` by a function that scores features on the CPU."""

    def __init__(self, device: Device, score: Score, max_frames: int) -> None:
        self._device, self._score, self._max_frames = device, score, max_frames
        self.num_scans = 0
        self.is_closed = False

    def best(
        self, texts: TextFeatures, arrays: ScanArrays, count: int, allowed: BoolArray | None
    ) -> list[Best]:
        assert 1 <= count <= MAX_COUNT
        scores = self._scan(texts, arrays, allowed)
        ranks = np.arange(arrays.num_slots)
        if arrays.ranks is not None:
            ranks = self._read(arrays.ranks)
            assert len(np.unique(ranks)) == len(ranks)
        found: list[Best] = []
        for logits in scores["logits"]:
            n = len(found)
            order = np.lexsort((ranks, -logits))[:count]
            order = order[logits[order] > -np.inf]
            grains = {name: values[n, order] for name, values in scores.items()}
            found.append(Best(order.astype(np.int64), grains.pop("logits"), grains))
        return found

    def all(
        self, texts: TextFeatures, arrays: ScanArrays, allowed: BoolArray | None
    ) -> dict[str, Float32Array]:
        return self._scan(texts, arrays, allowed)

    def close(self) -> None:
        self.is_closed = True

    def __enter__(self) -> NumpyScan:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _scan(
        self, texts: TextFeatures, arrays: ScanArrays, allowed: BoolArray | None
    ) -> dict[str, Float32Array]:
        assert not self.is_closed
        if allowed is not None:
            assert (allowed.shape, allowed.dtype) == ((arrays.num_slots,), np.dtype(np.bool_))
        self.num_scans += 1
        status = self._device.fault("scan")
        if status == "cudaErrorMemoryAllocation":
            raise DeviceMemoryError("the scores of a search need more than is free")
        if status is not None:
            raise SessionError(f"cuLaunchKernel failed with {status}")
        videos = self._read(arrays.video_features)
        shape = (len(videos), self._max_frames)
        frames, counts = np.zeros((*shape, videos.shape[1]), np.float16), np.full(*shape, np.int32)
        if arrays.frame_features is not None:
            frames = self._read(arrays.frame_features)
        if arrays.num_frames is not None:
            counts = self._read(arrays.num_frames)
        scores = self._score(texts, VideoFeatures(videos, frames, counts))
        if allowed is not None:
            for values in scores.values():
                values[:, ~allowed] = -np.inf
        return scores

    def _read(self, array: DeviceArray) -> npt.NDArray[Any]:
        raw = self._device.read(array.address, array.nbytes, "a scan")
        return raw.view(array.dtype.value).reshape(array.shape)


def open_scans(device: Device, model: DeployedModel) -> tuple[OpenScan, OpenScan]:
    """Functions that open the scan by a model's scorer, and the one by inner products."""

    def scored(texts: TextFeatures, videos: VideoFeatures) -> dict[str, Float32Array]:
        found = model.score(texts, videos)
        return {"logits": found.logits.copy()} | {
            name: values.copy() for name, values in found.grains.items()
        }

    def multiplied(texts: TextFeatures, videos: VideoFeatures) -> dict[str, Float32Array]:
        products = texts.sentence_features @ videos.video_features.astype(np.float32).T
        return {"logits": products, "video_sentence": products.copy()}

    def opener(score: Score) -> OpenScan:
        def opened(bundle: Bundle, memory: DeviceMemory) -> GalleryScan:
            del memory
            return NumpyScan(device, score, bundle.manifest.model.max_frames)

        return opened

    return opener(scored), opener(multiplied)


class Unlearned(Planner):
    """A planner that keeps its guesses: the device is always worth it."""

    def learn(self, num_pairs: int, seconds: float) -> None:
        """Learn nothing."""

    def learn_scan(self, scan: ScanSize, num_passes: int, seconds: float) -> None:
        """Learn nothing."""


def assert_same(found: Sequence[SearchResults], expected: Sequence[SearchResults]) -> None:
    """Equal hits in every respect; scores within the error of a scan."""
    for ours, theirs in zip(found, expected, strict=True):
        assert [(hit.id, hit.segment) for hit in ours] == [(hit.id, hit.segment) for hit in theirs]
        assert ours.num_videos == theirs.num_videos
        assert ours.num_segments == theirs.num_segments
        assert ours.note == theirs.note
        for hit, other in zip(ours, theirs, strict=True):
            assert hit.score == pytest.approx(other.score, abs=3e-4)
            assert hit.confidence == pytest.approx(other.confidence, abs=1e-3)
            assert (hit.rank, hit.near_identical) == (other.rank, other.near_identical)
            assert (hit.best_frame_time_s, hit.range) == (other.best_frame_time_s, other.range)
            assert (hit.grains is None) == (other.grains is None)
            if hit.grains is not None and other.grains is not None:
                assert dict(hit.grains) == pytest.approx(dict(other.grains), abs=3e-4)
            assert [m.segment for m in hit.moments] == [m.segment for m in other.moments]
