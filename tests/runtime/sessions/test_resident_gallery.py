"""The gallery on the device: the same results, and nothing copied twice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from xclip_deploy import DeployedModel, GalleryVideo, Retriever
from xclip_deploy.errors import DeviceMemoryError
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.model_config import ModelConfig
from xclip_deploy.runtime.sessions.onnx_runtime import OnnxRuntimeLoader

TEXTS = ["a dog on a leash", "a man is driving a car", "two cats"]


def gallery(config: ModelConfig, count: int, seed: int = 0) -> VideoFeatures:
    """As a gallery keeps it: unit vectors in FP16."""
    random = np.random.default_rng(seed)

    def unit(*shape: int) -> npt.NDArray[Any]:
        vectors = random.standard_normal((*shape, config.embed_dim))
        lengths: npt.NDArray[np.float64] = np.linalg.norm(vectors, axis=-1, keepdims=True)
        return (vectors / lengths).astype(np.float16)

    counts = random.integers(1, config.max_frames + 1, count).astype(np.int32)
    return VideoFeatures(unit(count), unit(count, config.max_frames), counts)


@pytest.mark.parametrize("count", [1, 64, 65, 300])
def test_scores(machine: Any, reference: DeployedModel, count: int) -> None:
    videos = gallery(reference.config, count)
    for texts in (reference.encode_texts(TEXTS), reference.encode_texts(TEXTS * 4)):
        expected = reference.score_by_graph(texts, videos)
        with machine.model() as model:
            for _ in range(4):
                found = model.score_gallery(texts, videos)
                machine.assert_same(found.logits, expected.logits)
                for name, array in expected.grains.items():
                    machine.assert_same(found.grains[name], array)


def test_a_gallery_is_copied_once(stand_in: Any, reference: DeployedModel) -> None:
    device = stand_in.device
    videos = gallery(reference.config, 1000)
    size = videos.video_features.nbytes + videos.frame_features.nbytes
    texts = reference.encode_texts(TEXTS)
    with stand_in.model() as model:
        model.score_gallery(texts, videos)
        first = device.bytes_to_device
        assert first > size
        model.score_gallery(texts, videos)
        text_size = texts.word_features.nbytes + texts.sentence_features.nbytes
        assert device.bytes_to_device - first == text_size
        model.score_gallery(texts, gallery(reference.config, 1000, seed=1))
        assert device.bytes_to_device - first > size
    # FP16 as it is kept, and nothing twice.
    assert device.most_used_bytes < size + (4 << 20)


def test_a_gallery_that_changes(stand_in: Any, reference: DeployedModel) -> None:
    texts = reference.encode_texts(TEXTS)
    with stand_in.model() as model:
        for seed, count in enumerate((10, 200, 50, 201, 400)):
            videos = gallery(reference.config, count, seed)
            found = model.score_gallery(texts, videos).logits
            np.testing.assert_array_equal(found, reference.score_by_graph(texts, videos).logits)


def test_threads_with_galleries_of_their_own(stand_in: Any, reference: DeployedModel) -> None:
    texts = reference.encode_texts(TEXTS)
    galleries = [gallery(reference.config, 30 + n, n) for n in range(3)]
    expected = [reference.score_by_graph(texts, videos).logits for videos in galleries]
    with stand_in.model() as model, ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(model.score_gallery, texts, galleries[n % 3]) for n in range(24)]
        for n, job in enumerate(jobs):
            np.testing.assert_array_equal(job.result().logits, expected[n % 3])


def test_a_gallery_that_does_not_fit(
    stand_in: Any, reference: DeployedModel, caplog: pytest.LogCaptureFixture
) -> None:
    """Said with the numbers; it can be searched without being kept."""
    texts = reference.encode_texts(TEXTS)
    large, small = gallery(reference.config, 3000), gallery(reference.config, 100)
    limit = 5 << 20
    with stand_in.model(device_memory_bytes=limit, resident_gallery=True) as model:
        with pytest.raises(DeviceMemoryError) as caught:
            model.score_gallery(texts, large)
        assert "the gallery (frame_features) needs 4.4 MiB of GPU memory" in str(caught.value)
        assert "resident_gallery=False" in str(caught.value)
        found = model.score_gallery(texts, small).logits
        np.testing.assert_array_equal(found, reference.score_by_graph(texts, small).logits)
    with stand_in.model(device_memory_bytes=limit) as model:
        for _ in range(3):
            found = model.score_gallery(texts, large).logits
            np.testing.assert_array_equal(found, reference.score_by_graph(texts, large).logits)
    said = [record for record in caplog.records if "at every search" in record.message]
    assert len(said) == 1
    with stand_in.model(device_memory_bytes=limit, resident_gallery=False) as model:
        found = model.score_gallery(texts, large).logits
        np.testing.assert_array_equal(found, reference.score_by_graph(texts, large).logits)
    assert stand_in.device.most_used_bytes <= limit


def test_a_retriever(machine: Any, golden: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Videos in, hits out: by engines as by ONNX Runtime."""
    # A CPU would score by graphs of its own, which round otherwise.
    monkeypatch.setattr(OnnxRuntimeLoader, "open_block_scorer", lambda _: None)
    monkeypatch.setattr(OnnxRuntimeLoader, "runs_video_parts", False)
    from xclip_deploy.runtime.sessions import SessionOptions

    videos = [
        GalleryVideo(id=f"v{n}", frame_times_s=tuple(float(t) for t in range(count)))
        for n, count in enumerate(golden["num_frames"])
    ]
    cpu = SessionOptions(device="cpu", precision="fp16", threads=1)
    found = {}
    for name, options in (("engines", machine.options()), ("cpu", cpu)):
        with Retriever(machine.bundle, session=options, max_batch=8) as retriever:
            for _ in range(2):  # a gallery that grows between searches
                frames = retriever.encode_frames(golden["frames_uint8"], golden["num_frames"])
                part, videos_now = (slice(0, 3), videos[:3])
                if len(retriever):
                    part, videos_now = (slice(3, 6), videos[3:])
                retriever.add_features(videos_now, frames[part])
                results = retriever.search_batch(TEXTS, k=6)
            found[name] = results
    if machine.device is not None:
        assert found["engines"] == found["cpu"]
    else:
        for ours, theirs in zip(found["engines"], found["cpu"], strict=True):
            scores = {hit.id: hit.score for hit in theirs}
            assert {hit.id for hit in ours} == set(scores)
            assert all(abs(hit.score - scores[hit.id]) < 0.5 for hit in ours)
