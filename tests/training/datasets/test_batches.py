from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from coloured_clips import write_clip

from xclip_deploy.errors import InvalidArgumentError, TrainingError, VideoNotFoundError
from xclip_deploy.runtime.datasets import Split, SplitVideo
from xclip_deploy.runtime.tokenizer import Tokenizer
from xclip_deploy.runtime.video import FrameSampling, VideoReading, read_video
from xclip_deploy.training.datasets.batches import Batch, BatchLoader
from xclip_deploy.training.datasets.epoch_order import epoch_order
from xclip_deploy.training.datasets.frame_cache import FrameCache
from xclip_deploy.training.datasets.frames import FrameSource
from xclip_deploy.training.datasets.pairs import PairDataset

SAMPLING = FrameSampling(max_frames=4)
VIDEO_OF_CAPTION = np.array([0, 0, 1, 1, 1, 2, 3, 3, 4, 4, 5], dtype=np.int64)


def make_pairs(folder: Path) -> PairDataset:
    """Eleven captions of six videos of 1 to 6 seconds, with a cache."""
    folder.mkdir(exist_ok=True)
    split = Split(
        name="made/train",
        videos=tuple(
            SplitVideo(f"v{number}", write_clip(folder / f"v{number}.mp4", number, 1 + number))
            for number in range(6)
        ),
        captions=tuple(f"caption number {number}" for number in range(11)),
        video_of_caption=VIDEO_OF_CAPTION,
    )
    cache = FrameCache(folder / "cache", 10_000_000)
    return PairDataset(
        split, Tokenizer.default(), FrameSource(VideoReading(SAMPLING, 32), cache), max_words=8
    )


@pytest.fixture
def pairs(tmp_path: Path) -> PairDataset:
    return make_pairs(tmp_path)


@pytest.fixture(scope="module")
def shared_pairs(tmp_path_factory: pytest.TempPathFactory) -> PairDataset:
    return make_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def workers(shared_pairs: PairDataset) -> Iterator[BatchLoader]:
    """One loader for several tests, as starting workers takes long."""
    with BatchLoader(shared_pairs, num_workers=2) as loader:
        yield loader


def order_of(epoch: int) -> npt.NDArray[np.int64]:
    return epoch_order(11, 3, seed=0, epoch=epoch)


def assert_equal(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for name, value, reference in zip(Batch._fields, one, other, strict=True):
            assert value.dtype == reference.dtype, name
            assert torch.equal(value, reference), name


def test_a_pair(pairs: PairDataset) -> None:
    assert len(pairs) == 11
    pair = pairs[4]
    expected = read_video(pairs.split.videos[1].path, SAMPLING, 32).frames
    assert pair.token_ids.dtype == torch.int32
    assert (
        pair.token_ids.tolist() == Tokenizer.default().encode(["caption number 4"], 8)[0].tolist()
    )
    assert pair.frames.dtype == torch.uint8
    assert pair.frames.shape == (4, 32, 32, 3)
    np.testing.assert_array_equal(pair.frames[:2].numpy(), expected)
    assert not pair.frames[2:].any()
    assert pair[2:] == (2, 1, 4)


def test_batches_are_the_pairs_in_order(pairs: PairDataset) -> None:
    order = order_of(0)
    batches = list(BatchLoader(pairs).batches(order))
    assert len(batches) == 3
    for rows, batch in zip(order, batches, strict=True):
        assert batch.token_ids.shape == (3, 8)
        assert batch.frames.shape == (3, 4, 32, 32, 3)
        assert [value.dtype for value in batch[2:]] == [torch.int64] * 3
        assert batch.pair_indices.tolist() == rows.tolist()
        assert batch.video_indices.tolist() == VIDEO_OF_CAPTION[rows].tolist()
        for row, index in enumerate(rows):
            pair = pairs[index]
            assert torch.equal(batch.token_ids[row], pair.token_ids)
            assert torch.equal(batch.frames[row], pair.frames)
            assert batch.num_frames[row] == pair.num_frames == min(4, 1 + pair.video_index)


@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_resumed_batches_are_the_same(
    shared_pairs: PairDataset, workers: BatchLoader, start: int
) -> None:
    for epoch in range(2):
        expected = list(BatchLoader(shared_pairs).batches(order_of(epoch)))
        for loader in (BatchLoader(shared_pairs), workers):
            assert_equal(list(loader.batches(order_of(epoch), start)), expected[start:])


def test_batches_before_the_start_are_not_decoded(pairs: PairDataset) -> None:
    order = np.array([[0, 1], [2, 3], [5, 6]])
    pairs.split.videos[0].path.unlink()
    assert len(list(BatchLoader(pairs).batches(order, 1))) == 2


def test_an_epoch_that_was_given_up_leaves_nothing_behind(
    shared_pairs: PairDataset, workers: BatchLoader
) -> None:
    expected = list(BatchLoader(shared_pairs).batches(order_of(1)))
    given_up = workers.batches(order_of(0))
    next(given_up)
    assert_equal(list(workers.batches(order_of(1))), expected)
    with pytest.raises(InvalidArgumentError, match="another iteration of this batch loader"):
        next(given_up)


def test_random_numbers_of_training_are_left_alone(
    shared_pairs: PairDataset, workers: BatchLoader
) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for loader in (BatchLoader(shared_pairs), workers):
        list(loader.batches(order_of(0)))
        assert torch.equal(torch.get_rng_state(), before)


def test_workers_outlive_ctrl_c(shared_pairs: PairDataset, workers: BatchLoader) -> None:
    batches = workers.batches(order_of(0))
    found = [next(batches)]
    for child in multiprocessing.active_children():
        assert child.pid is not None
        os.kill(child.pid, signal.SIGINT)
    found += batches
    assert_equal(found, list(BatchLoader(shared_pairs).batches(order_of(0))))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_video_that_is_gone_is_named_at_its_batch(pairs: PairDataset, num_workers: int) -> None:
    others = set(multiprocessing.active_children())
    gone = pairs.split.videos[2].path
    gone.unlink()
    order = np.array([[0, 1], [4, 5], [6, 7]])
    with BatchLoader(pairs, num_workers=num_workers) as loader:
        batches = loader.batches(order)
        next(batches)
        with pytest.raises(VideoNotFoundError) as caught:
            next(batches)
        assert str(caught.value) == f"{gone}: no such file; expected a video"
        assert len(list(loader.batches(order, 2))) == 1
        if num_workers == 0:
            return
        # In the same test, to start one worker less.
        batches = loader.batches(np.tile([[0, 1]], (500, 1)))
        next(batches)
        (worker,) = set(multiprocessing.active_children()) - others
        # A busy worker may hold a lock that PyTorch's shutdown takes; a waiting one holds none.
        time.sleep(1)
        worker.kill()
        with pytest.raises(TrainingError, match="a process that read videos died") as died:
            list(batches)
        assert "\n" not in str(died.value)
        with pytest.raises(InvalidArgumentError, match="is closed"):
            loader.batches(order)


def test_closing_ends_the_workers(pairs: PairDataset) -> None:
    before = set(multiprocessing.active_children())
    with BatchLoader(pairs, num_workers=1, prefetch=1) as loader:
        batches = loader.batches(order_of(0))
        next(batches)
        (worker,) = set(multiprocessing.active_children()) - before
    worker.join(10)
    assert not worker.is_alive()
    assert list(batches) == []
    with pytest.raises(InvalidArgumentError, match="the batch loader is closed"):
        loader.batches(order_of(0))


def test_more_workers_than_cores_are_told_in_the_log(
    pairs: PairDataset, caplog: pytest.LogCaptureFixture
) -> None:
    BatchLoader(pairs, num_workers=5000)  # none starts before the first batch
    (record,) = caplog.records
    assert "5000 worker processes" in record.message


def test_wrong_arguments(pairs: PairDataset) -> None:
    with pytest.raises(InvalidArgumentError, match="num_workers is -1"):
        BatchLoader(pairs, num_workers=-1)
    with pytest.raises(InvalidArgumentError, match="prefetch 0"):
        BatchLoader(pairs, prefetch=0)
    loader = BatchLoader(pairs)
    for start in (-1, 4):
        with pytest.raises(InvalidArgumentError, match=f"start is {start}; expected 0 to 3"):
            loader.batches(order_of(0), start)
