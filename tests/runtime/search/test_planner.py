"""Which method, by size and measured cost."""

from __future__ import annotations

from xclip_deploy.runtime.search import SearchOptions
from xclip_deploy.runtime.search.planner import EXACT_BUDGET_S, Plan, Planner, ScanSize
from xclip_deploy.runtime.search.shard import Survey


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


def scan_of(num_slots: int) -> ScanSize:
    return ScanSize("cuda:0", num_slots, 13 * 2 * 512)


def planned(planner: Planner, num_rows: int, options: SearchOptions, scan: ScanSize) -> Plan:
    """Plan the search of a shard that has a copy on a GPU."""
    pair = planner.cost(1)
    survey = Survey(
        num_rows, num_rows, False, 3, pair.seconds, pair.is_measured, planner.scan_cost(scan)
    )
    return planner.plan(num_rows, options, cost=survey.cost(num_rows))


def test_a_resident_gallery_is_scanned_where_that_is_cheaper() -> None:
    planner = Planner()
    plan = planned(planner, 100_000, SearchOptions(), scan_of(100_000))
    assert plan.method == "exact"
    assert plan.reason == "resident on cuda:0: scoring all takes 4.9 ms a text (assumed)"
    # Few rows of one video are scored sooner on the CPU than all are scanned.
    small = planned(planner, 10, SearchOptions(), scan_of(1_000_000))
    assert (small.method, "resident" in small.reason) == ("exact", False)
    staged = planned(planner, 100_000, SearchOptions(exact=False), scan_of(100_000))
    assert (staged.method, staged.reason) == ("two-stage", "asked for")
    asked = planned(planner, 1_000_000, SearchOptions(exact=True), scan_of(1_000_000))
    assert asked.reason.startswith("asked for; resident on cuda:0")


def test_the_cost_of_a_scan_is_learned_beside_that_of_two_stages() -> None:
    planner, scan = Planner(), scan_of(4_000_000)
    assert planned(planner, 4_000_000, SearchOptions(), scan).method == "two-stage"
    planner.learn_scan(scan, 1, 9.0)  # it loaded the kernels
    for _ in range(3):
        planner.learn_scan(scan, 2, 2 * 0.0235)
    plan = planned(planner, 4_000_000, SearchOptions(), scan)
    assert plan.reason == "resident on cuda:0: scoring all takes 23.5 ms a text (measured)"
    larger = scan_of(8_000_000)
    assert planned(planner, 8_000_000, SearchOptions(), larger).method == "two-stage"
    planner.learn_two_stage(2, 2 * 0.060)  # slower than the scan would be
    plan = planned(planner, 8_000_000, SearchOptions(), larger)
    assert plan.method == "exact"
    assert "47.0 ms" in plan.reason
    assert planner.plan(8_000_000, SearchOptions()).method == "two-stage"  # without the GPU
