"""A program that indexes into shards on a real Ray cluster of this machine, for tests.

It is a process of its own, as ``cluster_program.py`` is. It prints one line of JSON at the end.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from xclip_deploy.runtime.cluster.connecting import connect


def workers() -> list[int]:
    """Return the processes of encoders on this machine that descend from this one's cluster."""
    import psutil

    own = os.environ.get("RAY_TEST_SESSION", "")
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        words = process.info["cmdline"] or []
        environ = process.info["environ"] or {}
        is_own = environ.get("RAY_TEST_SESSION") == own
        if is_own and words and words[0].startswith("ray::EncoderActor.encode"):
            found.append(process.pid)
    return found


def kill_some(stop: threading.Event, killed: list[int], most: int, how: int) -> None:
    """Kill or stop encoders, each once it reads."""
    while len(killed) < most and not stop.wait(0.2):
        for pid in sorted(set(workers()) - set(killed))[:1]:
            os.kill(pid, how)
            killed.append(pid)


def deadly_kind(log: Path) -> Any:
    """Make a kind of encoder that dies over files of one name, and logs it."""
    from xclip_deploy.runtime.cluster.encoding import EncoderActor

    class DeadlyEncoder(EncoderActor):
        def encode(self, paths: Any, *rest: Any, **keywords: Any) -> Any:
            if any(path.endswith("deadly.mp4") for path in paths):
                with log.open("a") as file:
                    file.write(f"{len(paths)}\n")
                os.kill(os.getpid(), signal.SIGKILL)
            return super().encode(paths, *rest, **keywords)

    return DeadlyEncoder


def run(
    bundle: str,
    gallery: str,
    folder: str,
    *,
    kills: int,
    address: str,
    stops: bool,
    deadly: bool,
) -> dict[str, Any]:
    """Index; on a cluster that runs already, with several actors and many small commits.

    ``stops``: whether encoders hang, in place of dying. ``deadly``: whether they die over files
    that are named ``deadly.mp4``.
    """
    os.environ["RAY_TEST_SESSION"] = f"{os.getpid()}-{time.time()}"
    connect(address)
    # After Ray has started: LanceDB's threads do not survive a fork.
    from xclip_deploy.runtime.cluster import ActorOptions, index_shards, indexing, routing

    is_local = address == "local"
    if not is_local:
        indexing._COMMIT_FILES, indexing._FILES_PER_PART = 1, 2

    if stops:
        routing._WATCH_S, routing._HUNG_S = 1.0, 5.0
    deaths = Path(f"{gallery}-deaths.txt")
    deaths.touch()
    if deadly:
        indexing.EncoderActor = deadly_kind(deaths)  # type: ignore[attr-defined]
    how = signal.SIGSTOP if stops else signal.SIGKILL
    # The files whose features reach this process, which are those that were decoded.
    encoded: list[str] = []
    receive = indexing._Run._receive

    def noted(self: Any, part: Any, dispatcher: Any) -> None:
        encoded.extend(found.file.path for found in part.files if found.encoded is not None)
        receive(self, part, dispatcher)

    indexing._Run._receive = noted  # type: ignore[method-assign]
    stop, killed = threading.Event(), []  # type: tuple[threading.Event, list[int]]
    killer = threading.Thread(target=kill_some, args=(stop, killed, kills, how))
    killer.start()
    try:
        report = index_shards(
            bundle,
            gallery,
            [folder],
            shards=3,
            address=address,
            num_actors=1 if is_local else 3,
            actors=ActorOptions(num_cpus=1),
            prune=True,
            segment="4s",
            thumbnails=True,
        )
    finally:
        stop.set()
        killer.join()
    return {
        **report.to_dict(),
        "killed": len(killed),
        "deaths": deaths.read_text().split(),
        "encoded": sorted(encoded),
    }


if __name__ == "__main__":
    outcome = run(
        *sys.argv[1:4],
        kills=int(sys.argv[4]),
        address=sys.argv[5],
        stops="--stop" in sys.argv,
        deadly="--deadly" in sys.argv,
    )
    sys.stdout.write(json.dumps(outcome) + "\n")
    sys.stdout.flush()
