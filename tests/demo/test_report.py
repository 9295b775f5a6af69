"""The demo's page over a real gallery, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from opened_page import check_page, chromium

from demo.report import Outcome, Recall, Step, Verification, render, write_report
from demo.searching import find_answers
from xclip_deploy import Retriever, open_dataset, verify_bundle
from xclip_deploy.training.datasets.generated import SplitSizes, make_videos

QUERY = "a red square moves right"
HOSTILE = '<img src="http://example.com/x"> & a red square\u202e moves left'


@pytest.fixture(scope="module")
def outcome(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Results of the tests' own model over four videos. Its page is to lie beside them."""
    folder = tmp_path_factory.mktemp("demo") / "demo-output"
    videos = folder / "videos"
    make_videos(videos, SplitSizes(train=1, val=2, test=4), excerpts=False)
    certificate = verify_bundle(
        bundle_path,
        split=open_dataset("folder", "test", videos, videos),
        output=folder / "verification",
        report=False,
    )
    odd = videos / "test" / "odd #1 100%?.mp4"
    (videos / "test" / "0001.mp4").rename(odd)
    with Retriever(bundle_path, folder / "gallery", create=True, device="cpu") as retriever:
        retriever.add(sorted((videos / "test").glob("*.mp4")))
        ranked = [Path(str(hit.path)).name for hit in retriever.search(QUERY, k=4)]
    captions = dict.fromkeys(ranked, HOSTILE) | {ranked[-1]: QUERY}
    queries = (QUERY, HOSTILE)
    return Outcome(
        find_answers(queries, bundle_path, folder / "gallery", captions, folder / "evidence"),
        Recall(25.0, 100.0, 4),
        [(1, 4.5), (2, 3.0), (3, 0.5)],
        Verification(certificate, folder / "verification" / "certificate.json"),
        [Step("Searching & finding", f"xclip-deploy search '{HOSTILE}'", 61.4)],
        ["No engines were built."],
        236.4,
    )


@pytest.fixture(scope="module")
def page(outcome: Outcome) -> Iterator[Path]:
    """The page, in a folder that was moved since it was written."""
    folder = outcome.verification.page.parent.parent
    write_report(outcome, folder / "index.html")
    moved = folder.with_name("moved elsewhere")
    folder.rename(moved)
    yield moved / "index.html"
    moved.rename(folder)


def test_the_page_loads_whole_on_a_phone_and_on_a_desk(page: Path) -> None:
    with chromium() as browser:
        for width, scheme in ((360, "light"), (1280, "dark")):
            opened = check_page(browser, page, width=width, scheme=scheme)
            pictures = opened.evaluate("[...document.images].map(image => image.currentSrc)")
            assert len(pictures) == 2
            assert all(address.endswith(f"-{scheme}.png") for address in pictures)
            assert opened.locator("video").count() == 3 + 1 + 3
            check_names(opened)
            opened.get_by_text("Open the certificate").click()
            opened.wait_for_url("**/verification/certificate.json")


def check_names(page: Any) -> None:
    """Fail where axe-core finds something, or a clip would play by itself."""
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
    )
    page.evaluate(Path(axe.__file__).with_name("axe.min.js").read_text())
    found = page.evaluate("async () => (await axe.run(document)).violations")
    assert [(each["id"], each["nodes"][0]["html"][:200]) for each in found] == []
    assert page.evaluate("[...document.querySelectorAll('video')].every(v => v.paused && v.muted)")


def test_every_result_is_told_in_words(outcome: Outcome) -> None:
    first, second = outcome.answers
    assert (first.is_right, second.is_right) == (False, True)
    assert first.right is not None
    assert first.right.rank == first.num_videos == 4
    content = render(outcome, outcome.verification.page.parent.parent)
    assert "1 of 2 queries finds the right video first" in content
    assert "the right video is at rank 4 of 4." in content
    assert "It took 3 min 56 s." in content
    assert "The training loss falls from 4.50 to 0.50 in 3 steps." in content
    assert "No engines were built." in content


def test_every_text_is_escaped(outcome: Outcome) -> None:
    content = render(outcome, outcome.verification.page.parent.parent)
    assert "<img src=&quot;" not in content.replace("&lt;img", "")
    assert 'src="http' not in content
    assert "\u202e" not in content
    assert "&lt;img src=&quot;http://example.com/x&quot;&gt; &amp; a red" in content
    assert "odd%20%231%20100%25%3F.mp4" in content
    for address in re.findall(r'(?:src|href|srcset)="([^"]*)"', content):
        assert not address.startswith(("/", "http", ".."))


def test_failures_are_told(outcome: Outcome) -> None:
    certificate = outcome.verification.certificate
    (first, *rest) = certificate.comparisons
    broken = first.model_copy(update={"failures": ("scores are off",), "recalls": ()})
    failed = certificate.model_copy(update={"passed": False, "comparisons": (broken, *rest)})
    page = outcome.verification.page
    content = render(
        replace(outcome, verification=Verification(failed, page), recall=None, losses=[]),
        page.parent.parent,
    )
    assert '<b class="badge bad">failed</b>' in content
    assert f"{first.run.name}: scores are off" in content
    assert "R@1)" not in content
    assert "polyline" not in content.split("<main>")[1]


def test_a_file_outside_of_the_folder_is_refused(outcome: Outcome, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="subpath"):
        render(outcome, tmp_path)
