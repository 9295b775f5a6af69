"""Options of commands that search a gallery in shards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from xclip_deploy.runtime.opened import Opened
    from xclip_deploy.runtime.sessions import SessionOptions

_SEARCH_S = 10.0

address_option = click.option(
    "--cluster",
    "address",
    default="auto",
    show_default=True,
    metavar="ADDRESS",
    help="Use the Ray cluster at this address; auto finds the one of ray start.",
)


@dataclass(frozen=True)
class Cluster:
    """Where to search, and how long to wait for shards."""

    address: str | None
    allow_partial: bool
    timeout_s: float | None

    @property
    def search_s(self) -> float:
        """Longest time of a search, seconds."""
        return _SEARCH_S if self.timeout_s is None else self.timeout_s

    def open(self, bundle: Path, gallery: str, session: SessionOptions) -> Opened:
        """Open a gallery here or, with ``--cluster``, in shards. Raises UsageError."""
        import xclip_deploy

        if self.address is not None:
            return xclip_deploy.ShardedRetriever(
                bundle,
                gallery,
                address=self.address,
                allow_partial=self.allow_partial,
                timeout=self.search_s,
                session=session,
            )
        self.check_unused()
        return xclip_deploy.Retriever(bundle, gallery, session=session)

    def check_unused(self, **more: bool) -> None:
        """Raise UsageError for an option that needs ``--cluster``.

        ``more``: further such options by name, and whether they are given.
        """
        options = {"allow_partial": self.allow_partial, "timeout": self.timeout_s is not None}
        for name, given in {**options, **more}.items():
            if given:
                option = "--" + name.replace("_", "-")
                raise click.UsageError(f"{option} is for a gallery in shards; give --cluster too")


def cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options, which reach the command as ``cluster``."""

    @click.option(
        "--cluster",
        "address",
        metavar="ADDRESS",
        help="Search a gallery in shards on the Ray cluster at this address; auto finds the one "
        "of ray start.",
    )
    @click.option(
        "--allow-partial",
        is_flag=True,
        help="Search on without the shards that do not answer, and name them.",
    )
    @click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(min=0, min_open=True),
        help="Wait at most this many seconds for the shards.  [default: 10]",
    )
    @wraps(command)
    def with_cluster(
        *arguments: object,
        address: str | None,
        allow_partial: bool,
        timeout_s: float | None,
        **keywords: object,
    ) -> object:
        return command(*arguments, cluster=Cluster(address, allow_partial, timeout_s), **keywords)

    return with_cluster
