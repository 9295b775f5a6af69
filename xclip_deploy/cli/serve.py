"""The command ``xclip-deploy serve``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xclip_deploy.cli.cluster_options import Cluster, cluster_options
from xclip_deploy.cli.display import print_json, say
from xclip_deploy.cli.options import (
    Choice,
    Command,
    PathArgument,
    gallery_option,
    json_option,
    resident_options,
    session_options,
    workers_option,
)
from xclip_deploy.cli.progress import waiting

if TYPE_CHECKING:
    from xclip_deploy.runtime.sessions import SessionOptions


@click.command("serve", cls=Command)
@click.argument("bundle", type=PathArgument(), default=Path("xclip-bundle"))
@gallery_option
@cluster_options
@click.option(
    "--replicas",
    type=click.IntRange(min=1, max=64),
    help="Start this many actors for each shard, unless serve-shards has started some.  "
    "[default: 1]",
)
@click.option(
    "--data",
    type=PathArgument(),
    default=Path("xclip-data"),
    show_default=True,
    help="Keep uploads, jobs and caches in this folder.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Serve on this address. One that other machines reach needs a token.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Serve on this port; 0 takes a free one.",
)
@click.option(
    "--token-file",
    type=PathArgument(dir_okay=False),
    help="Require the token in this file of every request.  [default: the variable "
    "XCLIP_DEPLOY_TOKEN]",
)
@click.option(
    "--allow-host",
    "allowed_hosts",
    metavar="NAME",
    multiple=True,
    help="Answer requests to this host name too, such as a proxy's. Repeatable.",
)
@click.option(
    "--root",
    "roots",
    type=PathArgument(exists=True),
    multiple=True,
    help="Let clients add files below this folder by path. Repeatable.  [default: uploads alone]",
)
@click.option("--show-paths", is_flag=True, help="Show clients the paths of files.")
@click.option("--read-only", is_flag=True, help="Refuse additions and removals.")
@click.option(
    "--max-batch",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Run at most this many texts or videos at once.",
)
@click.option(
    "--batch-wait",
    "batch_wait_ms",
    type=click.FloatRange(min=0, max=1000),
    default=2.0,
    show_default=True,
    metavar="MS",
    help="Let a search wait this long for others to share a run with; 0 turns batching off.",
)
@click.option(
    "--max-waiting",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Let at most this many requests wait for the model; refuse more with 429.",
)
@click.option(
    "--requests-per-minute",
    type=click.IntRange(min=1),
    help="Answer at most this many requests a minute of one client.  [default: no limit]",
)
@click.option(
    "--max-upload",
    "max_upload_mb",
    type=click.IntRange(min=1),
    default=4096,
    show_default=True,
    metavar="MB",
    help="Take uploaded videos up to this size.",
)
@workers_option
@click.option(
    "--log-level",
    type=Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="Log from this level on, as JSON on standard error.",
)
@session_options
@resident_options
@json_option
def command(
    bundle: Path,
    gallery: str,
    cluster: Cluster,
    replicas: int | None,
    data: Path,
    host: str,
    port: int,
    token_file: Path | None,
    allowed_hosts: tuple[str, ...],
    roots: tuple[Path, ...],
    show_paths: bool,
    read_only: bool,
    max_batch: int,
    batch_wait_ms: float,
    max_waiting: int,
    requests_per_minute: int | None,
    max_upload_mb: int,
    workers: int | None,
    log_level: str,
    session: SessionOptions,
    as_json: bool,
) -> None:
    """Serve a page and a JSON API over BUNDLE and a gallery.

    BUNDLE is xclip-bundle by default. The address is printed once requests are taken. SIGTERM or
    Ctrl-C finishes what runs; a second one ends at once. With --cluster, the gallery is one in
    shards: actors of a Ray cluster search it, and the service only reads it.
    """
    from xclip_deploy.errors import InvalidArgumentError, MissingExtraError

    try:
        from xclip_deploy.service import ClusterSettings, ServiceSettings, read_token, serve
        from xclip_deploy.service.logs import log_as_json
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "xclip_deploy"):
            raise
        raise MissingExtraError(package, "serve", "xclip-deploy serve") from error
    if "://" in gallery:
        raise InvalidArgumentError(
            f"found the gallery {gallery}; expected a folder, which the service can write to"
        )
    shards: ClusterSettings | None = None
    if cluster.address is None:
        cluster.check_unused(replicas=replicas is not None)
    elif session.resident_gallery is True or session.gallery_memory_bytes is not None:
        raise click.UsageError(
            "--resident-gallery and --gallery-memory-gb are for a gallery in this process; leave "
            "them out with --cluster"
        )
    else:
        shards = ClusterSettings(
            cluster.address, replicas or 1, cluster.search_s, cluster.allow_partial
        )
    settings = ServiceSettings(
        bundle=bundle.absolute(),
        gallery=Path(gallery).absolute(),
        data=data.absolute(),
        cluster=shards,
        host=host,
        port=port,
        token=read_token(token_file),
        allowed_hosts=allowed_hosts,
        roots=tuple(root.resolve() for root in roots),
        show_paths=show_paths,
        read_only=read_only,
        session=session,
        max_batch=max_batch,
        batch_wait_ms=batch_wait_ms,
        max_waiting=max_waiting,
        requests_per_minute=requests_per_minute,
        max_upload_bytes=max_upload_mb << 20,
        workers=workers,
    )
    log_as_json(log_level)

    def announce(address: str) -> None:
        line.end()
        if as_json:
            print_json({"address": address, "docs": f"{address}/docs"})
            sys.stdout.flush()
            return
        say(f"xclip-deploy serves at {address}")
        say(f"the API is described at {address}/docs")
        sys.stdout.flush()  # it may be a pipe, whose reader waits for the line

    with waiting("loading the model and opening the gallery") as line:
        serve(settings, announce)
