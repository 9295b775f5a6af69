"""The scan is the scorer: on the stand-in, whose kernels run by Triton's interpreter."""

from __future__ import annotations

import copy
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stand_in_device import Device
from xclip_deploy.errors import (
    ClosedError,
    DeviceMemoryError,
    DriverError,
    InvalidArgumentError,
    SessionError,
)
from xclip_deploy.runtime.arrays import BoolArray
from xclip_deploy.runtime.cuda.driver_api import DriverCallError
from xclip_deploy.runtime.cuda.runtime_api import Stream
from xclip_deploy.runtime.grains import CLIP_GRAINS, PUBLISHED_GRAINS, Grain
from xclip_deploy.runtime.resident import gpu_scan, scratch
from xclip_deploy.runtime.resident.scan import Best

Scores = dict[str, npt.NDArray[np.float32]]


def check(
    case: Any,
    open_scan: Any,
    count: int,
    allowed: BoolArray | None = None,
    ranks: npt.NDArray[np.integer[Any]] | None = None,
    tolerance: float = 3e-6,
    **options: Any,
) -> list[Best]:
    """Compare both answers of a scan with the scorer, and return the best.

    ``tolerance``: largest error of a grain; a hundredth of what is allowed.
    """
    with open_scan(case, ranks, **options) as on:
        best: list[Best] = on.scan.best(case.queries, on.arrays, count, allowed)
        scores: Scores = on.scan.all(case.queries, on.arrays, allowed)
    for name, expected in case.expected().items():
        if allowed is not None:
            expected[:, ~allowed] = -np.inf
        # Logits are 14 times a mean of grains.
        atol = tolerance * (14.3 if name == "logits" else 1.0)
        np.testing.assert_allclose(scores[name], expected, rtol=0, atol=atol, err_msg=name)
    for text, found in enumerate(best):
        # The order must be exactly that of the scan's own scores, ties by rank.
        logits = scores["logits"][text]
        by_rank = np.arange(len(logits)) if ranks is None else ranks
        order = np.lexsort((by_rank, -logits))[:count]
        order = order[logits[order] > -np.inf]
        assert found.slots.tolist() == order.tolist()
        np.testing.assert_array_equal(found.scores, logits[order])
        assert list(found.grains) == [grain.value for grain in case.grains]
        for name, values in found.grains.items():
            np.testing.assert_array_equal(values, scores[name][text, order])
    return best


def test_it_is_the_scorer(device: Device, make_case: Any, open_scan: Any) -> None:
    case = make_case(frames=5, words=6, texts=2, videos=11, mask_padding=True)
    check(case, open_scan, 5, np.arange(11) % 4 != 1)
    kernels = ["query_kernel", "frames_kernel", "video_kernel"]
    assert device.kernel_launches == [*kernels, *["digit_kernel"] * 3, "collect_kernel", *kernels]


@pytest.mark.parametrize(
    "grains",
    [CLIP_GRAINS, (Grain.FRAME_WORD,), (Grain.FRAME_SENTENCE, Grain.VIDEO_WORD)],
    ids=lambda grains: "+".join(g.value for g in grains),
)
def test_models_of_other_grains(
    device: Device, make_case: Any, open_scan: Any, grains: tuple[Grain, ...]
) -> None:
    check(make_case(grains=grains, videos=5), open_scan, 3)


def test_equal_scores_are_in_the_order_of_the_ranks(
    device: Device, make_case: Any, open_scan: Any
) -> None:
    case = make_case(grains=CLIP_GRAINS, videos=4, repeats=6)
    ranks = np.random.default_rng(0).permutation(1000)[:24]
    (best,) = check(case, open_scan, 9, ranks=ranks)
    assert len({*best.scores.tolist()}) == 2, "the best are copies of two videos"


def test_fewer_than_asked_for(device: Device, make_case: Any, open_scan: Any) -> None:
    case = make_case(grains=CLIP_GRAINS, videos=40)
    allowed = np.zeros(40, bool)
    (best,) = check(case, open_scan, 3, allowed)
    assert len(best) == 0
    allowed[[7, 33]] = True
    (best,) = check(case, open_scan, 1000, allowed)
    assert sorted(best.slots.tolist()) == [7, 33]


def test_what_stands_in_empty_slots_is_not_read(
    device: Device, make_case: Any, open_scan: Any
) -> None:
    """A slot that was never written is no gallery entry: the mask alone keeps it out."""
    case = make_case(videos=6, mask_padding=True)
    allowed = np.array([True, True, False, True, False, True])
    with open_scan(case) as on:
        expected = on.scan.all(case.queries, on.arrays, allowed)
        rows = slice(2 * 3 * 64 * 2, 3 * 3 * 64 * 2)
        piece = device.find(on.arrays.frame_features.address, 1, "a test")
        piece.is_written[rows] = False
        piece.data[rows] = 0x7E  # FP16 NaN
        found = on.scan.all(case.queries, on.arrays, allowed)
    np.testing.assert_array_equal(found["logits"], expected["logits"])


def test_an_empty_gallery_and_no_texts(device: Device, make_case: Any, open_scan: Any) -> None:
    case = make_case(grains=CLIP_GRAINS)
    with open_scan(case) as on:
        assert on.scan.best(case.queries[:0], on.arrays, 5, None) == []
        assert on.scan.all(case.queries[:0], on.arrays, None)["logits"].shape == (0, 9)
        empty = replace(on.arrays, video_features=on.arrays.video_features.rows(0, 0))
        (best,) = on.scan.best(case.queries, empty, 5, None)
        assert best.slots.tolist() == []
        assert device.kernel_launches == []


def test_many_texts_take_several_passes(device: Device, make_case: Any, open_scan: Any) -> None:
    case = make_case(grains=CLIP_GRAINS, texts=34, videos=7)
    with open_scan(case) as on:
        whole = on.scan.all(case.queries, on.arrays, None)
    assert device.kernel_launches == ["query_kernel", "video_kernel"] * 2  # 32 texts, then 2
    device.kernel_launches.clear()
    with open_scan(case, scratch_bytes=5 * 4 * 7 * 2) as on:  # room for five texts
        parts = on.scan.all(case.queries[:12], on.arrays, None)
    assert device.kernel_launches == ["query_kernel", "video_kernel"] * 3
    np.testing.assert_array_equal(parts["logits"], whole["logits"][:12])
    np.testing.assert_allclose(whole["logits"], case.expected()["logits"], rtol=0, atol=1e-4)


def test_scores_that_do_not_fit_take_more_passes(
    device: Device, make_case: Any, open_scan: Any
) -> None:
    """Another program may have taken the memory since the gallery came."""
    case = make_case(grains=CLIP_GRAINS, texts=5, videos=7)
    expected = case.expected()["logits"]
    with open_scan(case) as on:
        # The first allocation is the mask's, the next that of the scores.
        for after in (1, 0):
            device.fail("cudaMalloc", "cudaErrorMemoryAllocation", after=after)
        best = on.scan.best(case.queries, on.arrays, 3, None)
        assert device.kernel_launches.count("video_kernel") == 5  # one text at a time
    for text, found in enumerate(best):
        assert found.slots.tolist() == np.argsort(-expected[text])[:3].tolist()


def test_a_long_scan_takes_several_launches(
    device: Device, make_case: Any, open_scan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt ends it between two of them, and the next scan is right."""
    monkeypatch.setattr(gpu_scan, "LAUNCH_OPERATIONS", 1)
    case = make_case(grains=CLIP_GRAINS, texts=2, videos=2 * 64 + 3)
    check(case, open_scan, 5)
    assert device.kernel_launches.count("video_kernel") == 2 * 3
    device.kernel_launches.clear()
    case = make_case(texts=2, videos=10, mask_padding=True)
    check(case, open_scan, 5, np.arange(10) % 4 != 1)
    assert device.kernel_launches.count("frames_kernel") == 2 * 3
    with open_scan(case) as on:
        device.kernel_launches.clear()
        waits = on.scan._cuda.synchronize
        interrupts = [KeyboardInterrupt()]

        def interrupted(stream: Stream) -> None:
            waits(stream)
            if interrupts:
                raise interrupts.pop()

        monkeypatch.setattr(on.scan._cuda, "synchronize", interrupted)
        with pytest.raises(KeyboardInterrupt):
            on.scan.best(case.queries, on.arrays, 5, None)
        assert device.kernel_launches.count("frames_kernel") == 1
        best = on.scan.best(case.queries, on.arrays, 5, None)
    for text, found in enumerate(best):
        expected = np.argsort(-case.expected()["logits"][text])[:5]
        assert found.slots.tolist() == expected.tolist()


def test_more_slots_than_kernels_count(
    device: Device, make_case: Any, open_scan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "MAX_SLOTS", 8)
    case = make_case(grains=CLIP_GRAINS, videos=9)
    with (
        open_scan(case) as on,
        pytest.raises(SessionError, match="has 9 slots on the GPU, the scan counts 8; search on"),
    ):
        on.scan.best(case.queries, on.arrays, 1, None)


def test_threads_share_a_scan(device: Device, make_case: Any, open_scan: Any) -> None:
    case = make_case(grains=CLIP_GRAINS, texts=3, videos=7)
    found: dict[int, Any] = {}
    with open_scan(case) as on:

        def search(text: int) -> None:
            found[text] = on.scan.all(case.queries[text : text + 1], on.arrays, None)["logits"]

        threads = [threading.Thread(target=search, args=(text,)) for text in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        together = on.scan.all(case.queries, on.arrays, None)["logits"]
    for text, scores in found.items():
        np.testing.assert_allclose(scores[0], together[text], rtol=0, atol=1e-5)


def test_arguments_that_kernels_would_misread(
    device: Device, make_case: Any, open_scan: Any
) -> None:
    case = make_case(mask_padding=True)
    with open_scan(case) as on:
        scan, arrays, texts = on.scan, on.arrays, case.queries
        for count in (0, 1001, True):
            with pytest.raises(InvalidArgumentError, match=r"count is .* at most 1000"):
                scan.best(texts, arrays, count, None)
        with pytest.raises(InvalidArgumentError, match=r"allowed is bool \[8\]; expected bool"):
            scan.best(texts, arrays, 1, np.ones(8, bool))
        with pytest.raises(InvalidArgumentError, match=r"allowed is int64 \[9\]; expected bool"):
            scan.all(texts, arrays, np.ones(9, np.int64))
        with pytest.raises(InvalidArgumentError, match="num_frames is missing; this model's scan"):
            scan.all(texts, replace(arrays, num_frames=None), None)
        frames = arrays.frame_features
        for wrong in (
            replace(frames, shape=(9, 4, 64)),
            replace(frames, dtype=arrays.num_frames.dtype),
            replace(frames, address=frames.address + 128),
        ):
            expected = r"frame_features is .*; expected float16 \[9, 3, 64\] on the GPU, aligned"
            with pytest.raises(InvalidArgumentError, match=expected):
                scan.all(texts, replace(arrays, frame_features=wrong), None)
        assert device.kernel_launches == []


def test_ranks_that_are_equal_are_refused(device: Device, make_case: Any, open_scan: Any) -> None:
    case = make_case(grains=CLIP_GRAINS, videos=4, repeats=2)
    expected = "two videos of the gallery on the GPU have the same rank"
    with open_scan(case, np.zeros(8, np.int32)) as on, pytest.raises(SessionError, match=expected):
        on.scan.best(case.queries, on.arrays, 1, None)


def test_features_beyond_the_range_of_fp16(device: Device, make_case: Any, open_scan: Any) -> None:
    """Similarities up to 10,000 are exact. Beyond them there is an error, not a wrong order."""
    case = make_case(frames=2, words=3, spread=0.0)
    for size, is_exact in ((2e3, True), (1e6, False)):
        gallery = replace(
            case.gallery,
            frame_features=(case.gallery.frame_features * np.float16(64)).astype(np.float16),
        )
        words = case.queries.word_features * np.float32(size / 64)
        sentences = case.queries.sentence_features * np.float32(size / 64)
        large = copy.copy(case)
        texts = replace(case.queries, word_features=words, sentence_features=sentences)
        object.__setattr__(large, "gallery", gallery)
        object.__setattr__(large, "queries", texts)
        with open_scan(large) as on:
            if is_exact:
                (best,) = on.scan.best(texts, on.arrays, 3, None)
                expected = large.expected()["logits"][0]
                assert best.slots.tolist() == np.argsort(-expected)[:3].tolist()
                np.testing.assert_allclose(best.scores, expected[best.slots], rtol=1e-5)
            else:
                expected = "scores that are no numbers: features are"
                with pytest.raises(SessionError, match=expected):
                    on.scan.best(texts, on.arrays, 3, None)
                with pytest.raises(SessionError, match=expected):
                    on.scan.all(texts, on.arrays, None)


def test_a_closed_scan(device: Device, make_case: Any, open_scan: Any) -> None:
    case = make_case(grains=CLIP_GRAINS)
    with open_scan(case) as on:
        on.scan.close()
        on.scan.close()
        with pytest.raises(ClosedError, match="the scan is closed"):
            on.scan.best(case.queries, on.arrays, 1, None)


@pytest.mark.parametrize("function", ["cuLaunchKernel", "cudaMemcpyAsync", "cudaMalloc"])
def test_a_failure_leaves_nothing_behind(
    device: Device, make_case: Any, open_scan: Any, function: str
) -> None:
    case = make_case(grains=CLIP_GRAINS)
    status = {"cuLaunchKernel": "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"}
    with open_scan(case) as on:
        name = status.get(function, "cudaErrorMemoryAllocation")
        device.fail(function, name, after=1)
        with pytest.raises(SessionError) as caught:
            on.scan.best(case.queries, on.arrays, 2, None)
        if function == "cuLaunchKernel":
            assert isinstance(caught.value, DriverCallError)
            assert str(caught.value).startswith(f"cuLaunchKernel failed with {name}: ")
        if function == "cudaMalloc":
            assert isinstance(caught.value, DeviceMemoryError)
        # The next search works.
        (best,) = on.scan.best(case.queries, on.arrays, 2, None)
        assert len(best) == 2


def test_a_driver_that_cannot_run_the_code(device: Device, make_case: Any, open_scan: Any) -> None:
    device.fail("cuModuleLoadData", "CUDA_ERROR_UNSUPPORTED_PTX_VERSION")
    with (
        pytest.raises(DriverError, match=r"cannot run the kernel query_kernel \(CUDA_ERROR_UNSUP"),
        open_scan(make_case(grains=CLIP_GRAINS)),
    ):
        pass


@pytest.mark.slow
@settings(
    max_examples=25,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_it_is_the_scorer_for_any_shape(
    device: Device, make_case: Any, open_scan: Any, data: st.DataObject
) -> None:
    draw = data.draw
    grains = draw(st.lists(st.sampled_from(PUBLISHED_GRAINS), min_size=1, unique=True))
    case = make_case(
        frames=draw(st.sampled_from([1, 2, 7, 12, 16, 17, 33, 64])),
        words=draw(st.sampled_from([3, 5, 16, 17, 32, 40, 64, 65, 77])),
        dim=draw(st.sampled_from([64, 128, 192])),
        grains=tuple(grain for grain in PUBLISHED_GRAINS if grain in grains),
        mask_padding=draw(st.booleans()),
        texts=draw(st.integers(1, 3)),
        videos=draw(st.integers(1, 20)),
        repeats=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 1 << 16)),
        spread=draw(st.sampled_from([0.0, 0.05, 0.2])),
    )
    slots = case.videos * case.repeats
    allowed = ranks = None
    rng = np.random.default_rng(case.seed)
    if draw(st.booleans()):
        allowed = rng.random(slots) < 0.6
    if draw(st.booleans()):
        ranks = rng.permutation(3 * slots)[:slots]
    # With matrices of large numbers, the scorer in FP32 is itself off by 1e-5.
    count = draw(st.integers(1, slots + 2))
    check(case, open_scan, count, allowed, ranks, tolerance=3e-6 if case.spread < 0.1 else 1e-4)


@pytest.mark.slow
def test_a_gallery_of_several_blocks(device: Device, make_case: Any, open_scan: Any) -> None:
    """Selection over more slots than a program covers, with as many hits as there can be."""
    case = make_case(frames=1, words=3, grains=CLIP_GRAINS, videos=4500, repeats=2, texts=2)
    (best, _) = check(case, open_scan, 1000, np.arange(9000) % 7 != 0)
    assert len(best) == 1000
