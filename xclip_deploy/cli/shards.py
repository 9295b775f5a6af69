"""The commands ``xclip-deploy shards`` and ``xclip-deploy serve-shards``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xclip_deploy.cli.cluster_options import address_option
from xclip_deploy.cli.display import print_json, say
from xclip_deploy.cli.options import Command, bundle_option, json_option
from xclip_deploy.cli.progress import waiting
from xclip_deploy.cli.table import Column, print_table
from xclip_deploy.runtime.presentation import counted

if TYPE_CHECKING:
    from xclip_deploy.runtime.cluster import ShardState


@click.command("shards", cls=Command)
@click.argument("gallery")
@bundle_option
@click.option(
    "--cluster",
    "address",
    metavar="ADDRESS",
    help="Ask the actors on the Ray cluster at this address; auto finds the one of ray start.",
)
@click.option(
    "--publish",
    is_flag=True,
    help="Publish the newest version of every shard first. Retrievers read it after a refresh.",
)
@json_option
def command(gallery: str, bundle: Path, address: str | None, publish: bool, as_json: bool) -> None:
    """Show videos, version, node and state of each shard of GALLERY."""
    from xclip_deploy.runtime.cluster import publish_shards, shard_states

    if publish:
        publish_shards(gallery)
    with waiting("asking the shards"):
        states = shard_states(gallery, bundle if address else None, address=address)
    _print(gallery, states, as_json=as_json)


@click.command("serve-shards", cls=Command)
@click.argument("gallery")
@bundle_option
@address_option
@click.option(
    "--replicas",
    type=click.IntRange(min=1, max=64),
    default=1,
    show_default=True,
    help="Start this many actors for each shard. Another takes over where one is lost.",
)
@click.option(
    "--cpus",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="Ask for this many processor cores for each actor.",
)
@click.option(
    "--gpus",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Ask for this many GPUs for each actor, which then scores there.",
)
@click.option("--stop", is_flag=True, help="End the actors of this gallery instead.")
@json_option
def serve(
    gallery: str,
    bundle: Path,
    address: str,
    replicas: int,
    cpus: float,
    gpus: float,
    stop: bool,
    as_json: bool,
) -> None:
    """Start actors on a Ray cluster that hold the shards of GALLERY in memory.

    They stay after this command ends. Every search with --cluster then uses them.
    """
    from xclip_deploy.runtime.cluster import ActorOptions, serve_shards, stop_shards

    if stop:
        count = stop_shards(bundle, gallery, address=address)
        say(f"ended {counted(count, 'actor')}")
        return
    with waiting("starting actors"):
        options = ActorOptions(num_cpus=cpus, num_gpus=gpus)
        states = serve_shards(bundle, gallery, address=address, replicas=replicas, actors=options)
    _print(gallery, states, as_json=as_json)


def _print(gallery: str, states: Sequence[ShardState], *, as_json: bool) -> None:
    if as_json:
        print_json({"gallery": gallery, "shards": [state.to_dict() for state in states]})
        return
    columns = (
        Column("shard", right=True),
        Column("replica", right=True),
        Column("videos", right=True),
        Column("segments", right=True),
        Column("version", right=True),
        Column("node"),
        Column("state", least=16),
    )
    rows = [
        (
            str(state.number),
            "" if state.replica is None else str(state.replica),
            f"{state.num_videos:,}",
            f"{state.num_segments:,}",
            str(state.version),
            state.node or "",
            state.state,
        )
        for state in states
    ]
    print_table(columns, rows, wide=False)
