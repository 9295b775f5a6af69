"""A program that searches shards by coroutines, for tests of :class:`AsyncRetriever`.

It prints one line of JSON at the end. Arguments: bundle, gallery in shards, address.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from contextlib import suppress
from typing import Any

from cluster_program import page

from xclip_deploy import AsyncRetriever
from xclip_deploy.errors import XclipDeployError
from xclip_deploy.runtime.cluster import ActorOptions, ShardedRetriever

TEXTS = ["a dog on a leash", "two people talk", "red", "a car in the rain at night"]
LIMIT_S = 2.0


async def error_of(waiting: Any) -> str:
    """Return the error of a coroutine."""
    try:
        await waiting
    except XclipDeployError as error:
        return f"{type(error).__name__}: {error}"
    return ""


async def searched(retriever: ShardedRetriever) -> dict[str, Any]:
    """Search while all shards answer, and while one hangs."""
    ray, searches = retriever._ray, retriever.searches
    expected = [page(retriever.search(text, 4)) for text in TEXTS]
    found: dict[str, Any] = {}
    async with AsyncRetriever(retriever, max_concurrency=2) as served:
        pages = await asyncio.gather(*(served.search(text, 4) for text in TEXTS))
        found["same"] = [page(each) for each in pages] == expected
        found["length"] = len(served)
        found["explained"] = str(await served.explain(TEXTS[0], pages[0][0]))
        found["writing"] = await error_of(served.add("videos"))
        version = retriever.shards.versions[0]
        actor = searches.replicas.shards[0][0].handle
        pid = ray.get(actor.open.remote(version)).pid
        searches.timeout_s = LIMIT_S
        os.kill(pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(served.search(TEXTS[0]), 0.2)
            found["cancelled_s"] = time.monotonic() - started
            found["lost"] = await error_of(served.search(TEXTS[1]))
            searches.allow_partial = True
            part = await served.search(TEXTS[2])
            found["partial"] = [len(part.answered_shards), len(part.failed_shards)]
        finally:
            os.kill(pid, signal.SIGCONT)
        searches.timeout_s = 60.0
        await served.refresh()
        found["whole"] = (await served.search(TEXTS[3])).answered_shards
    return found


if __name__ == "__main__":
    opened = ShardedRetriever(
        *sys.argv[1:3], address=sys.argv[3], timeout=60, actors=ActorOptions(num_cpus=0.2)
    )
    sys.stdout.write(json.dumps(asyncio.run(searched(opened))) + "\n")
