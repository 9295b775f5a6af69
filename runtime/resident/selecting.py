"""The best of a scan's scores: chosen on the GPU, ordered on the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import SessionError
from xclip_deploy.runtime.arrays import AnyArray, Float32Array, Int64Array
from xclip_deploy.runtime.cuda.memory import DeviceMemory
from xclip_deploy.runtime.cuda.runtime_api import Cuda, Stream
from xclip_deploy.runtime.resident.kernel_set import Kernel
from xclip_deploy.runtime.resident.scan import Best
from xclip_deploy.runtime.resident.scratch import Results
from xclip_deploy.runtime.resident.shape import ScanShape

_PLACES, _DIGITS = 8, 256
"""Digits of a sort key, and values of a digit."""
_FIRST_PLACES = 3
"""Digits that are counted at first. They hold 14 bits of a score's mantissa."""
_SPARE = 256
"""Hits beyond those asked for that find room. Few scores share so many digits."""

Launch = Callable[[Kernel, Mapping[str, int | float]], None]
"""Enqueues a kernel with arguments by name."""


class Selection:
    """Memory for choosing the best of several texts. For one thread at a time."""

    def __init__(self, shape: ScanShape, memory: DeviceMemory) -> None:
        self._names = [grain.value for grain in shape.grains]
        self._cuda: Cuda = memory.cuda
        self._counts = Results(memory, "the selection of a search")
        self._found = Results(memory, "the hits of a search")

    def best(
        self,
        num_texts: int,
        count: int,
        launch: Launch,
        values: Mapping[str, int | float],
        stream: Stream,
    ) -> list[Best]:
        """Return the ``count`` best of each text, best first.

        ``values``: the kernels' other arguments. Sort keys of the best mostly differ from those of
        the rest in their first digits, so that counting these suffices. Where too many keys share
        them, all digits are counted. Raises SessionError for slots of equal rank.
        """
        sizes = {"counts": 4 * num_texts * _PLACES * _DIGITS, "taken": 4 * num_texts}
        counters = self._counts.hold(sizes)
        for name, nbytes in sizes.items():
            self._cuda.clear(counters[name], nbytes, stream)
        room = count + _SPARE
        columns = 1 + len(self._names)
        hits = {
            "best_keys": 8 * num_texts * room,
            "best_slots": 4 * num_texts * room,
            "best_values": 4 * num_texts * columns * room,
        }
        places = self._found.hold(hits)
        for name, nbytes in hits.items():  # they are fetched whole, and may not be filled
            self._cuda.clear(places[name], nbytes, stream)
        values = {**values, **counters, **places, "count": count, "room": room}
        taken: npt.NDArray[np.int32] = np.empty(num_texts, np.int32)
        slots: npt.NDArray[np.int32] = np.empty((num_texts, room), np.int32)
        keys: Int64Array = np.empty((num_texts, room), np.int64)
        numbers: Float32Array = np.empty((num_texts, columns, room), np.float32)
        wanted: list[tuple[int, AnyArray]] = [
            (counters["taken"], taken),
            (places["best_slots"], slots),
            (places["best_keys"], keys),
            (places["best_values"], numbers),
        ]
        start = 0
        for stop in (_FIRST_PLACES, _PLACES):
            for place in range(start, stop):
                launch(Kernel.DIGIT, {**values, "place": place})
            launch(Kernel.COLLECT, {**values, "places": stop})
            self._found.fetch(wanted, stream)
            if (taken <= room).all():
                break
            self._cuda.clear(counters["taken"], sizes["taken"], stream)
            start = stop
        found = zip(taken.tolist(), slots, keys, numbers, strict=True)
        return [self._ordered(count, *one) for one in found]

    def close(self) -> None:
        """Free the memory. Raises SessionError."""
        try:
            self._counts.close()
        finally:
            self._found.close()

    def _ordered(
        self,
        count: int,
        taken: int,
        slots: npt.NDArray[np.int32],
        keys: Int64Array,
        numbers: Float32Array,
    ) -> Best:
        """Put the hits of one text in order, and cut them to the count."""
        order = np.argsort(-keys[:taken], kind="stable")
        first = keys[order[: count + 1]]
        if taken > len(keys) or (first[1:] == first[:-1]).any():
            raise SessionError(
                f"the scan cannot put {taken} videos in order where {count} were asked for: two "
                "videos of the gallery on the GPU have the same rank"
            )
        order = order[:count]
        require_numbers(numbers[0, order])  # the keys of others would be the largest
        # Slots that are not allowed come last, where fewer than the count are.
        order = order[numbers[0, order] > -np.inf]
        grains = {name: numbers[1 + i, order] for i, name in enumerate(self._names)}
        return Best(slots[order].astype(np.int64), numbers[0, order], grains)


def require_numbers(scores: Float32Array) -> None:
    """Refuse scores that are no numbers. Raises SessionError."""
    if np.isnan(scores).any():
        raise SessionError(
            "the scan has scores that are no numbers: features are beyond the range of FP16; "
            "normalise them, or search with resident_gallery=False"
        )
