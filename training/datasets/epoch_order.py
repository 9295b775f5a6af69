"""Order of the pairs in an epoch: a pure function, so that training can be resumed."""

from __future__ import annotations

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
) -> npt.NDArray[np.int64]:
    """Shuffle the pairs of an epoch and deal them into batches of equal size.

    The same arguments give the same order, in any process and with any version of NumPy. All
    ranks share a batch, and each takes its rows in the order of ranks: two ranks with 4 pairs
    each see together what one rank with 8 sees. Pairs that fill no batch are left out, others
    in each epoch: a smaller batch would have fewer negatives. Two captions of one video can
    meet in a batch, as in the authors' training.

    Args:
        num_pairs: Number of pairs.
        batch_size: Pairs in a batch of all ranks together, a multiple of ``world_size``.
        seed: Seed of the whole training, at least 0.
        epoch: Number of the epoch, from 0.
        rank: Part of every batch that is taken, from 0 to ``world_size`` - 1.
        world_size: Number of ranks.

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
    num_batches = num_pairs // batch_size
    if not num_batches:
        raise InvalidArgumentError(
            f"{num_pairs} pairs give no batch of {batch_size}; use a smaller batch_size"
        )
    batches = shuffled[: num_batches * batch_size].reshape(num_batches, batch_size)
    rows = batch_size // world_size
    return batches[:, rank * rows : (rank + 1) * rows]
