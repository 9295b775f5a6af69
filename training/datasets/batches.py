"""Batches of caption-video pairs, read and decoded in worker processes."""

from __future__ import annotations

import logging
import signal
import time
import warnings
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from xclip_deploy.errors import InvalidArgumentError, TrainingError, XclipDeployError
from xclip_deploy.training.datasets.pairs import PairDataset

logger = logging.getLogger(__name__)

_PlannedBatch = tuple[list[int], int]
"""Indices of a batch's pairs, and its epoch."""


class Batch(NamedTuple):
    """Batch of B pairs. It is a tuple so that a DataLoader can pin its memory."""

    token_ids: Tensor
    """int32 [B, W]."""
    frames: Tensor
    """uint8 RGB [B, F, S, S, 3], zeros from ``num_frames`` on."""
    num_frames: Tensor
    """int64 [B]."""
    pair_indices: Tensor
    """int64 [B], into ``Split.captions``."""
    video_indices: Tensor
    """int64 [B], into ``Split.videos``."""


class BatchLoader:
    """Reader of batches in a given order, whose worker processes stay between epochs.

    Workers start as new interpreters ("spawn"): a forked copy of a process that runs CUDA or
    threads can fail or hang. Hence a script must keep its work under
    ``if __name__ == "__main__"``. PyTorch gives each worker one thread, and the video readers
    take one. Every worker holds up to ``prefetch`` batches in shared memory (``/dev/shm``): 128
    pairs of 12 frames of 224x224 are 231 MB.

    Reading draws no random number and leaves PyTorch's global generator alone. For the same
    order, a run that begins at batch k reads the same batches as one that began at the first.
    """

    def __init__(
        self,
        pairs: PairDataset,
        *,
        num_workers: int = 0,
        prefetch: int = 2,
        pin_memory: bool = False,
    ) -> None:
        """Prepare to read; workers start with the first batch.

        Args:
            pairs: Pairs to read.
            num_workers: Processes that read; 0 reads in this one, when a batch is requested.
            prefetch: Batches that each worker reads ahead.
            pin_memory: Give batches in page-locked memory, from which copies to a GPU are
                faster. Needs a GPU.

        Raises:
            InvalidArgumentError: a number is out of range.
        """
        if num_workers < 0 or prefetch < 1:
            raise InvalidArgumentError(
                f"num_workers is {num_workers} and prefetch {prefetch}; expected at least 0 and 1"
            )
        self._plan = _Plan()
        self._turn = 0
        self._running: Generator[Batch, None, None] | None = None
        options: dict[str, Any] = {}
        if num_workers:
            options = {
                "multiprocessing_context": "spawn",
                "persistent_workers": True,
                "prefetch_factor": prefetch,
                "worker_init_fn": _start_worker,
            }
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self._loader: DataLoader[Any] | None = DataLoader(
                _Batches(pairs),
                batch_size=None,  # a whole batch is one item of the dataset
                sampler=self._plan,
                num_workers=num_workers,
                collate_fn=_as_it_is,
                pin_memory=pin_memory,
                # The default draws from the global generator whenever an epoch begins, also
                # after a kill, and a resumed run would differ.
                generator=torch.Generator(),
                **options,
            )
        for warning in caught:  # such as more workers than cores
            logger.warning("%s", warning.message)

    def batches(
        self, order: npt.NDArray[np.int64], start: int = 0, *, epoch: int = 0
    ) -> Generator[Batch, None, None]:
        """Read the batches of an epoch.

        Args:
            order: Pair indices, int64 [batches, B], as ``epoch_order`` gives them.
            start: The first batch to read; those before it are not decoded.
            epoch: Number of the epoch, from 0, for the dataset's random choices.

        Returns:
            An iterator over the batches from ``start`` on. It ends an earlier one of this
            loader, whose next batch raises InvalidArgumentError.

        Raises:
            InvalidArgumentError: ``start`` is not in ``order``, or the loader is closed.
            VideoError: from the iterator, at the batch of a video that cannot be read (any
                more); names the video. The loader can be used again.
            TrainingError: from the iterator: a worker process died. The loader is closed.
        """
        if not 0 <= start <= len(order):
            raise InvalidArgumentError(f"start is {start}; expected 0 to {len(order)}")
        if self._loader is None:
            raise InvalidArgumentError("the batch loader is closed; open another")
        self._turn += 1
        plan = [(indices, epoch) for indices in order[start:].tolist()]
        running = self._running = self._iterate(self._loader, plan, self._turn)
        return running

    def close(self) -> None:
        """End the worker processes."""
        # PyTorch ends them only when nothing refers to the loader any more.
        if self._running is not None:
            self._running.close()
        self._loader = self._running = None

    def __enter__(self) -> BatchLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _iterate(
        self, loader: DataLoader[Any], plan: list[_PlannedBatch], turn: int
    ) -> Generator[Batch, None, None]:
        if not plan:
            return
        self._check_turn(turn)
        self._plan.batches = plan
        try:
            for batch in loader:
                if isinstance(batch, _Failure):
                    raise batch.error()
                yield batch
                self._check_turn(turn)
        except (RuntimeError, EOFError, OSError) as error:
            if not _is_of_dead_worker(error, loader):
                raise
            self._loader = None  # the other workers would wait for the dead one
            reason = str(error).strip() or "it sent no more"
            raise TrainingError(
                f"a process that read videos died: {reason.splitlines()[0]}; out of memory, of "
                f"shared memory (/dev/shm: fewer workers or a smaller prefetch), or by a crash of "
                f"the decoder (num_workers=0 shows where)"
            ) from error

    def _check_turn(self, turn: int) -> None:
        if turn != self._turn:
            raise InvalidArgumentError("another iteration of this batch loader has begun")


class _Plan:
    """Sampler whose content is exchanged: a DataLoader keeps its first sampler."""

    def __init__(self) -> None:
        self.batches: list[_PlannedBatch] = []

    def __iter__(self) -> Iterator[_PlannedBatch]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


@dataclass(frozen=True)
class _Failure:
    """Error on its way from a worker. PyTorch would add a traceback to one raised there."""

    kind: type[XclipDeployError]
    message: str

    def error(self) -> XclipDeployError:
        # Skip the class's own __init__, which may take other arguments than the message.
        return self.kind.__new__(self.kind, self.message)


class _Batches(Dataset[Batch | _Failure]):
    """Dataset of whole batches, by their pair indices; it runs in the workers."""

    def __init__(self, pairs: PairDataset) -> None:
        self.pairs = pairs

    def __getitem__(self, planned: _PlannedBatch) -> Batch | _Failure:
        indices, epoch = planned
        try:
            pairs = [self.pairs.read(index, epoch) for index in indices]
        except XclipDeployError as error:
            return _Failure(type(error), str(error))
        # In a worker this puts the result into shared memory at once.
        token_ids, frames, num_frames, video_indices, caption_indices = default_collate(pairs)
        return Batch(token_ids, frames, num_frames, caption_indices, video_indices)


def _is_of_dead_worker(error: Exception, loader: DataLoader[Any]) -> bool:
    """Tell whether an error of the loader itself says that a worker process died."""
    if loader.num_workers == 0 or "in DataLoader worker process" in str(error):
        return False
    if isinstance(error, RuntimeError):
        return str(error).startswith(("DataLoader worker (pid", "Pin memory thread exited"))
    if not isinstance(error, (EOFError, ConnectionError, FileNotFoundError)):
        return False
    # The worker died while its batch was taken over. A signal follows, on which PyTorch raises
    # wherever this process is by then. Wait for it here.
    with suppress(RuntimeError):
        time.sleep(1)
    return True


def _as_it_is(item: Any) -> Any:  # noqa: ANN401 - DataLoader's own type
    return item


def _start_worker(_number: int) -> None:
    # Ctrl-C reaches every process of the terminal. The trainer needs its workers to finish its
    # step and save; they end when it does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
