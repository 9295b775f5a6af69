"""Which method, by size and measured cost."""

from __future__ import annotations

from xclip_deploy.runtime.search import SearchOptions
from xclip_deploy.runtime.search.planner import EXACT_BUDGET_S, Planner


def test_small_galleries_are_scored_whole_and_large_ones_not() -> None:
    planner = Planner()
    assert planner.plan(200, SearchOptions()).method == "exact"
    assert planner.plan(1_000_000, SearchOptions()).method == "two-stage"


def test_what_is_asked_for_is_done() -> None:
    planner = Planner()
    assert planner.plan(10, SearchOptions(exact=False)).method == "two-stage"
    plan = planner.plan(1_000_000, SearchOptions(exact=True))
    assert (plan.method, plan.reason) == ("exact", "asked for")


def test_cost_is_learned() -> None:
    planner = Planner()
    videos = 20_000
    assert planner.plan(videos, SearchOptions()).method == "two-stage"
    for _ in range(20):
        planner.learn(videos, EXACT_BUDGET_S / 2)  # a fast machine
    plan = planner.plan(videos, SearchOptions())
    assert plan.method == "exact"
    assert "12.5 ms" in plan.reason
    assert "measured" in plan.reason
    for _ in range(20):
        planner.learn(videos, EXACT_BUDGET_S * 2)
    assert planner.plan(videos, SearchOptions()).method == "two-stage"


def test_tiny_measurements_say_nothing() -> None:
    planner = Planner()
    planner.learn(10, 1.0)
    assert planner.plan(500, SearchOptions()).method == "exact"
