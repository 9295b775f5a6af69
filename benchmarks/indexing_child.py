"""Process that indexes videos once, and prints what it took as one line of JSON.

    python -m benchmarks.indexing_child '{"bundle": ..., "gallery": ..., "videos": [...]}'

It uses the public classes alone, so that it runs older code too.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil

from xclip_deploy import Retriever, SessionOptions
from xclip_deploy.runtime.resources import forget_peak, peak_resident_bytes, resident_bytes


def main() -> None:
    """Index as the first argument asks."""
    request = json.loads(sys.argv[1])
    session = SessionOptions(**request.get("session", {}))
    with Retriever(
        request["bundle"], request["gallery"], create=True, session=session
    ) as retriever:
        encoder = Stopwatch()
        for name in dir(type(retriever.model)):
            # The indexer looks these up on the object.
            if name.startswith(("encode_", "embed_", "combine_")):
                vars(retriever.model)[name] = encoder.watching(getattr(retriever.model, name))
        # Opens the session, which is not indexing: an index run of hours does it once.
        retriever.encode_videos([retriever.read_video(request["videos"][0])])
        encoder.seconds = 0.0
        model_bytes, model_pss_bytes = resident_bytes(), shared_fairly_bytes()
        forget_peak()
        before = cpu_seconds()
        began_s = time.perf_counter()
        report = retriever.add(request["videos"], **request.get("how", {}))
        seconds = time.perf_counter() - began_s
        after = cpu_seconds()
        if report.added and not encoder.seconds:
            sys.exit("the indexer encodes by methods that indexing_child.py does not watch")
        answer = {
            "seconds": seconds,
            "encoding_s": encoder.seconds,
            "own_cpu_s": after[0] - before[0],
            "decoders_cpu_s": after[1] - before[1],
            "model_bytes": model_bytes,
            "model_pss_bytes": model_pss_bytes,
            "peak_bytes": peak_resident_bytes(),
            "added": len(report.added),
            "failed": len(report.failed),
            "session": retriever.model.placement.summary,
        }
    print(json.dumps(answer))


def cpu_seconds() -> tuple[float, float]:
    """Return CPU seconds of this process, and of its children, the living and the ended ones."""
    times = os.times()
    children = times.children_user + times.children_system
    # Decoders wait for the next run before they end.
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            used = child.cpu_times()
            children += used.user + used.system + used.children_user + used.children_system
    return times.user + times.system, children


def shared_fairly_bytes() -> int | None:
    """Return the memory of this process, where shared pages count in parts (PSS); None: unknown."""
    return getattr(psutil.Process().memory_full_info(), "pss", None)


class Stopwatch:
    """Sum of the time within functions; calls within calls count once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0

    def watching(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same and is timed."""

        def run(*arguments: Any, **keywords: Any) -> Any:  # noqa: ANN401 - those of the function
            self._depth += 1
            began_s = time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.perf_counter() - began_s

        return run


if __name__ == "__main__":
    main()
