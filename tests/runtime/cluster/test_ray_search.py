"""Search of shards on a real Ray cluster, in a process of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cluster_galleries import ENVIRONMENT, line_of, running_nodes
from cluster_program import OPTIONS, TEXTS, page

from xclip_deploy import Bundle, Retriever

pytestmark = pytest.mark.slow


def assert_same_pages(found: list[list[Any]], expected: list[list[Any]]) -> None:
    """Compare pages: the same hits, and scores within rounding."""
    assert [hit[:2] for hit in found] == [hit[:2] for hit in expected]
    assert [hit[3:] for hit in found] == [hit[3:] for hit in expected]
    scores = [hit[2] for hit in expected]
    assert [hit[2] for hit in found] == pytest.approx(scores, abs=1e-5, rel=5e-7)


def test_shards_find_what_one_gallery_finds(
    run_cluster: Any, galleries: Any, bundle: Bundle
) -> None:
    found = run_cluster(galleries.sharded)
    with Retriever(bundle, galleries.whole, device="cpu") as retriever:
        for text, pages in zip(TEXTS, found["pages"], strict=True):
            for options, each in zip(OPTIONS, pages, strict=True):
                assert_same_pages(each, page(retriever.search(text, 6, **options)))
        bank = retriever.query_bank(TEXTS)
        banked = retriever.search(TEXTS[0], 6, exact=False, query_bank=bank)
        assert_same_pages(found["banked"], page(banked))
        best = retriever.search(TEXTS[0])[0]
        score = retriever.explain(TEXTS[0], best).score
        assert found["explained"] == pytest.approx(score, abs=1e-4)
    assert found["answered"] == [0, 1, 2]
    assert "no column 'nowhere'" in found["where"]
    # A query sees the published version until the retriever refreshes.
    assert (found["before"], found["after"], found["refreshed"]) == (True, False, [60, 59])
    assert found["states"] == ["ready"] * 3


def test_lost_replicas_are_replaced_and_lost_shards_are_named(
    run_cluster: Any, galleries: Any
) -> None:
    found = run_cluster(galleries.sharded, "--break")
    # The other replica takes over.
    assert [error for _, error in found["one_killed"]] == [""] * 6
    assert found["one_back_s"] < 15
    for name in ("stopped", "killed"):
        seconds, error = found[name]
        assert error.startswith("ShardError: shard 1 of 3 on "), error
        assert "did not answer" in error
        assert seconds < 2.0 + 0.5  # the time limit of the search, and what the issue allows
    # Two replicas of each shard; those of the second are stopped.
    hung = [number for number, state in enumerate(found["stopped_states"]) if state != "ready"]
    assert hung == [2, 3]
    assert found["partial"] == [[0, 2], [1]]
    assert found["partial_s"] < 2.0 + 0.5
    assert found["killed_back_s"] < 15


def test_a_process_that_hangs_is_named_and_replaced(run_cluster: Any, galleries: Any) -> None:
    found = run_cluster(galleries.sharded, "--serve")
    assert found["served"] == found["again"] == ["ready"] * 3
    assert not found["owns"]
    assert [state for _, _, state in found["stopped"]] == [
        "ready",
        f"no answer within 2 s from process {found['pid']}",
        "ready",
    ]
    # A process that has asked none of them before knows the machine.
    assert [node for _, node, _ in found["stopped"]] == [socket.gethostname()] * 3
    assert found["answered"] == [0, 1, 2]
    assert found["ended"] == 3
    assert found["is_gone"]


def test_the_loss_of_the_head_is_said(bundle_path: Path, galleries: Any) -> None:
    # The nodes end five seconds after their head, by default sixty.
    with running_nodes(3, RAY_gcs_rpc_server_reconnect_timeout_s="5") as nodes:
        (head,) = nodes.processes("gcs_server")
        found = line_of(
            "cluster_head_program.py", bundle_path, galleries.sharded, nodes.address, head
        )
        # A process that connects only now.
        program = Path(sys.executable).with_name("xclip-deploy")
        words = ("shards", galleries.sharded, "--bundle", bundle_path, "--cluster", nodes.address)
        late = subprocess.run(
            [program, *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=ENVIRONMENT,
        )
    *_, (_, error) = found["searches"]
    assert error.startswith("ShardError: shard "), error
    assert all(each < 2.5 for each, _ in found["searches"])
    assert found["lost_s"] < 60
    assert "ready" not in found["states"]
    assert found["opening"][1].startswith(
        "ClusterError: the head of the cluster is lost (127.0.0.2"
    )
    assert found["opening"][0] < 20
    assert found["indexing"][1].startswith("ClusterError: the cluster is lost (its head was away")
    assert found["close_s"] < 10
    assert late.returncode == 16
    assert "no Ray cluster answers at address" in late.stderr
