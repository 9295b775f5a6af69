"""The page is accessible: axe-core finds nothing, in every state, in light and in dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

axe_api = pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
)
SCRIPT = Path(axe_api.__file__).with_name("axe.min.js")
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def check(site: Any, state: str) -> None:
    """Fail on any violation."""
    # Playwright evaluates it in the page, whose policy forbids scripts that are put into it.
    site.page.evaluate(SCRIPT.read_text())
    found = site.page.evaluate(
        "async tags => (await axe.run(document, {runOnly: tags})).violations", TAGS
    )
    told = [
        f"{state}: {each['id']}: {each['help']}: {node['html'][:200]} {node['failureSummary']}"
        for each in found
        for node in each["nodes"][:3]
    ]
    assert not told, "\n".join(told)


@pytest.mark.parametrize(
    ("scheme", "size"),
    [
        pytest.param("light", (1280, 800), marks=pytest.mark.slow),
        pytest.param("dark", (1280, 800), marks=pytest.mark.slow),
        pytest.param("light", (360, 740), marks=pytest.mark.slow),
        ("dark", (360, 740)),
    ],
)
def test_no_state_violates_the_rules(
    visit: Any, live_address: str, scheme: Any, size: tuple[int, int]
) -> None:
    viewport = {"width": size[0], "height": size[1]}
    site = visit(live_address, color_scheme=scheme, viewport=viewport, reduced_motion="reduce")
    page = site.page
    check(site, "library")
    page.click("#filter-toggle")
    page.locator(".filter-row select").first.select_option("split")
    page.click(".expert summary")
    check(site, "filters")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    site.search("a red numbers")
    check(site, "hits")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("?")
    page.wait_for_selector("dialog[open] .keys")
    check(site, "keys")
    page.keyboard.press("Escape")
    page.locator(".card .play-button").first.click()
    site.moment()
    page.click("#section-why summary")
    page.wait_for_selector(".heat-map")
    page.click("#section-cut summary")
    page.wait_for_selector(".cut-form")
    check(site, "stage")
    page.click("#stage-close")
    page.set_input_files("#add-files", [__file__])
    page.wait_for_selector("dialog[open] .files", state="attached")
    check(site, "adding")


def test_an_empty_list_and_an_error_violate_nothing(visit: Any, live_address: str) -> None:
    site = visit(live_address)
    site.expect_refusals()
    site.open("/?q=x&where=nonsense+%3C")
    site.page.wait_for_selector(".empty[role=alert]")
    check(site, "error")
    site.open("/?q=x&f=split~eq~nothing")
    site.page.wait_for_selector(".empty")
    check(site, "nothing found")


def test_motion_can_be_reduced(visit: Any, live_address: str) -> None:
    site = visit(live_address, reduced_motion="reduce")
    assert site.page.evaluate(
        "getComputedStyle(document.querySelector('.play-button'), '::after').transitionProperty"
    ) in ("none", "all")
    duration = site.page.evaluate(
        "getComputedStyle(document.querySelector('.play-button'), '::after').transitionDuration"
    )
    assert duration == "0s"
