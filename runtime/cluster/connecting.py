"""Connection to a Ray cluster."""

from __future__ import annotations

import os
from typing import Any

from xclip_deploy.errors import ClusterError, MissingExtraError
from xclip_deploy.runtime.arguments import as_text

NAMESPACE = "xclip-deploy"
"""Namespace of named actors."""
LOCAL = "local"
"""Address of a cluster of this machine alone, which ends with the process."""
_LOCAL_STORE_BYTES = 256 << 20
_LOCAL_HOST = "127.0.0.1"


def connect(address: str = "auto") -> Any:  # noqa: ANN401 - the module ray
    """Connect to a cluster, unless this process is connected, and return the module ``ray``.

    ``address``: ``auto`` finds the cluster that ``ray start`` or ``RAY_ADDRESS`` names; ``local``
    starts one on this machine, on the loopback interface, without a dashboard. Raises ClusterError
    if there is none, and MissingExtraError without Ray (extra ``cluster``).
    """
    as_text("address", address)
    # Ray reports how it is used unless it is told not to, and reads this when it is imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Every shard raises the error of a filter, of which the first is raised here.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingExtraError("ray", "cluster", "a gallery in shards") from error
    if ray.is_initialized():
        return ray
    keywords: dict[str, Any] = {"address": address}
    if address == LOCAL:
        keywords |= {
            "include_dashboard": False,
            "object_store_memory": _LOCAL_STORE_BYTES,
            "_node_ip_address": _LOCAL_HOST,
        }
    try:
        ray.init(namespace=NAMESPACE, log_to_driver=False, configure_logging=False, **keywords)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        reason = str(error).strip().splitlines()
        raise ClusterError(
            f"no Ray cluster answers at address {address!r} "
            f"({reason[0] if reason else type(error).__name__}); run: ray start --head"
        ) from error
    return ray
