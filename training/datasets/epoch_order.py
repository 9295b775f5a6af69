"""Order of the pairs in an epoch: a pure function, so that training can be resumed."""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import InvalidArgumentError


def epoch_order(
    num_pairs: int,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    rank: int = 0,
    world_size: int = 1,
    keep_apart: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.int64]:
    """Shuffle the pairs of an epoch and deal them into batches of equal size.

    The same arguments give the same order, in any process and with any version of NumPy. All
    ranks share a batch, and each takes its rows in the order of ranks: two ranks with 4 pairs
    each see together what one rank with 8 sees. Pairs that fill no batch are left out, others
    in each epoch: a smaller batch would have fewer negatives.

    The authors let two captions of one video meet in a batch, where each is a wrong negative
    of the other. ``keep_apart`` avoids that. Pairs are then dealt in the shuffled order. A pair
    waits where its video is in the batch already, and waiting pairs come first in the next
    batch, one a video. Pairs that still wait at the end are left out too, so that the number
    of batches can differ between epochs.

    Args:
        num_pairs: Number of pairs.
        batch_size: Pairs in a batch of all ranks together, a multiple of ``world_size``.
        seed: Seed of the whole training, at least 0.
        epoch: Number of the epoch, from 0.
        rank: Part of every batch that is taken, from 0 to ``world_size`` - 1.
        world_size: Number of ranks.
        keep_apart: Video of every pair, [num_pairs] (``Split.video_of_caption``): no batch
            holds two pairs of one video. None lets them meet.

    Returns:
        Pair indices, int64 [batches, batch_size / world_size].

    Raises:
        InvalidArgumentError: a number is out of range, or there is no batch.
    """
    if batch_size < 1 or world_size < 1 or batch_size % world_size:
        raise InvalidArgumentError(
            f"batch_size is {batch_size} for {world_size} ranks; expected a multiple, at least 1"
        )
    if not 0 <= rank < world_size:
        raise InvalidArgumentError(f"rank is {rank}; expected 0 to {world_size - 1}")
    if seed < 0 or epoch < 0:
        raise InvalidArgumentError(f"seed is {seed} and epoch {epoch}; expected at least 0 each")
    # Sort raw numbers: NumPy promises the same stream of a bit generator in all versions, and
    # not of `Generator.permutation`. A resumed run may have another version.
    numbers = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(num_pairs)
    shuffled = np.argsort(numbers, kind="stable").astype(np.int64)
    if keep_apart is None:
        num_batches = num_pairs // batch_size
        batches = shuffled[: num_batches * batch_size].reshape(num_batches, batch_size)
    else:
        if keep_apart.shape != (num_pairs,):
            raise InvalidArgumentError(
                f"keep_apart has shape {keep_apart.shape}; expected ({num_pairs},)"
            )
        batches = _deal_apart(shuffled, batch_size, keep_apart)
    if not len(batches):
        different = "" if keep_apart is None else " of different videos"
        raise InvalidArgumentError(
            f"{num_pairs} pairs give no batch of {batch_size}{different}; use a smaller batch_size"
        )
    rows = batch_size // world_size
    return batches[:, rank * rows : (rank + 1) * rows]


def _deal_apart(
    shuffled: npt.NDArray[np.int64], batch_size: int, video_of_pair: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Deal batches [batches, batch_size] without two pairs of one video, in linear time."""
    videos: list[int] = video_of_pair[shuffled].tolist()
    stream = iter(zip(shuffled.tolist(), videos, strict=True))
    waiting: dict[int, deque[int]] = {}
    """Waiting pairs by video, the video that has waited longest first."""
    batches: list[list[int]] = []
    while True:
        batch: dict[int, int] = {}  # pair by video
        for video in list(waiting)[:batch_size]:
            pairs = waiting.pop(video)
            batch[video] = pairs.popleft()
            if pairs:
                waiting[video] = pairs
        while len(batch) < batch_size and (drawn := next(stream, None)) is not None:
            pair, video = drawn
            if video in batch:
                waiting.setdefault(video, deque()).append(pair)
            else:
                batch[video] = pair
        if len(batch) < batch_size:
            return np.array(batches, dtype=np.int64).reshape(-1, batch_size)
        batches.append(list(batch.values()))
