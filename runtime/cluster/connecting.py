"""Connection to a Ray cluster."""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

from xclip_deploy.errors import ClusterError, MissingExtraError
from xclip_deploy.runtime.arguments import as_text

NAMESPACE = "xclip-deploy"
"""Namespace of named actors."""
LOCAL = "local"
"""Address of a cluster of this machine alone, which ends with the process."""
_LOCAL_STORE_BYTES = 256 << 20
_LOCAL_HOST = "127.0.0.1"
_HEAD_S = 5.0
"""Time for the head to accept a connection, seconds."""
_OUTLIVES_HEAD_S = 1_000_000


def connect(address: str = "auto") -> Any:  # noqa: ANN401 - the module ray
    """Connect to a cluster, unless this process is connected, and return the module ``ray``.

    ``address``: ``auto`` finds the cluster that ``ray start`` or ``RAY_ADDRESS`` names; ``local``
    starts one on this machine, on the loopback interface, without a dashboard. Raises ClusterError
    if there is none or its head is lost, and MissingExtraError without Ray (extra ``cluster``).
    """
    as_text("address", address)
    # Ray reports how it is used unless it is told not to, and reads this when it is imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Every shard raises the error of a filter, of which the first is raised here.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    if address != LOCAL:
        # Else Ray ends this process 60 seconds after the head is lost.
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", str(_OUTLIVES_HEAD_S))
    hook = sys.excepthook
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingExtraError("ray", "cluster", "a gallery in shards") from error
    # Ray's hook tells the head of an exception that ends the process, and waits for the head.
    sys.excepthook = hook
    if ray.is_initialized():
        check_head(ray)
        return ray
    keywords: dict[str, Any] = {"address": address}
    listens = False
    if address == LOCAL:
        keywords |= {
            "include_dashboard": False,
            "object_store_memory": _LOCAL_STORE_BYTES,
            "_node_ip_address": _LOCAL_HOST,
        }
    else:
        listens = _check_address(address)
    try:
        ray.init(namespace=NAMESPACE, log_to_driver=False, configure_logging=False, **keywords)
    except (
        ray.exceptions.AuthenticationError,
        ConnectionError,
        RuntimeError,
        ValueError,
        TimeoutError,
    ) as error:
        if listens and isinstance(error, (ConnectionError, ray.exceptions.RayError)):
            raise ClusterError(
                f"the Ray cluster at address {address!r} refuses this process, as its head has "
                "another token or another version of Ray; copy ~/.ray/auth_token from there, and "
                "set RAY_AUTH_MODE=token"
            ) from error
        reason = str(error).strip().splitlines()
        raise ClusterError(
            f"no Ray cluster answers at address {address!r} "
            f"({reason[0] if reason else type(error).__name__}); run: ray start --head"
        ) from error
    return ray


def check_head(ray: Any) -> None:  # noqa: ANN401
    """Raise ClusterError if the head of the cluster of this process accepts no connection."""
    _check_listens(ray.get_runtime_context().gcs_address, "the head of the cluster is lost")


def _check_address(address: str) -> bool:
    """Tell whether a head listens at an address, or return False where Ray looks for it itself.

    Raises ClusterError if nothing listens there, which Ray would wait for.
    """
    from ray._private.services import canonicalize_bootstrap_address

    if "://" in address or "://" in os.environ.get("RAY_ADDRESS", ""):
        return False  # Ray's client, which has a time limit of its own
    try:
        # The address that Ray makes of it: that of a network in place of 127.0.0.1.
        found = canonicalize_bootstrap_address(address)
    except (ValueError, OSError):
        return False  # Ray says what is wrong with it
    if found is None:
        return False
    _check_listens(found, f"no Ray cluster answers at address {address!r}")
    return True


def _check_listens(address: str, problem: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _HEAD_S).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ClusterError(f"{problem} ({address}: {reason}); run: ray start --head") from error
