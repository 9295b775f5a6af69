"""Galleries in shards on a Ray cluster (extra ``cluster``).

A sharded gallery is a directory with ``shards.json`` and one ordinary gallery a shard. Actors of
Ray search the shards; ``search/merging.py`` merges their answers, as for every search.
Nothing here imports Ray before it is used.
"""

from __future__ import annotations

from xclip_deploy.runtime.cluster.actors import ActorOptions
from xclip_deploy.runtime.cluster.indexing import index_shards
from xclip_deploy.runtime.cluster.publishing import create_shards, publish_shards
from xclip_deploy.runtime.cluster.retriever import ShardedRetriever
from xclip_deploy.runtime.cluster.serving import ShardState, serve_shards, shard_states, stop_shards
from xclip_deploy.runtime.cluster.shard_file import (
    SHARDS_FILE,
    ShardEntry,
    ShardFile,
    is_sharded,
    read_shards,
)

__all__ = [
    "SHARDS_FILE",
    "ActorOptions",
    "ShardEntry",
    "ShardFile",
    "ShardState",
    "ShardedRetriever",
    "create_shards",
    "index_shards",
    "is_sharded",
    "publish_shards",
    "read_shards",
    "serve_shards",
    "shard_states",
    "stop_shards",
]
