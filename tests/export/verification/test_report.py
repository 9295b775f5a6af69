"""The report: one page that needs nothing else, and shows what the certificate says."""

from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from xclip_deploy import Bundle, verify_bundle
from xclip_deploy.runtime.datasets import Split


class Page(HTMLParser):
    """Collects what a test looks at, and that every element is closed."""

    VOID = frozenset({"meta", "img", "br", "source"})
    OPTIONAL = frozenset({"html", "body"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[tuple[str | None, str]] = []
        self.links: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "img":
            self.images.append((values.get("class"), values["src"] or ""))
        self.links += [
            value for name, value in attrs if name in ("href", "src", "srcset") and value
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture
def ruined_page(bundle_copy: Path, split: Split, ruin: Any) -> Page:
    ruin(bundle_copy, "fp16/text_encoder.onnx")
    verify_bundle(bundle_copy, split=split)
    return Page((bundle_copy / "verification" / "report.html").read_text("utf-8"))


def test_the_page_of_a_ruined_bundle(ruined_page: Page) -> None:
    page = ruined_page
    assert page.open == []
    # Self-contained.
    assert all(link.startswith("data:image/") for link in page.links)
    text = " ".join(page.text)
    for part in (
        "failed",
        "FAILED",
        "sentence_features",
        "teacher saturdays pools hospitalized",
        "logits",
        "R@1",
    ):
        assert part in text
    figures = [source for kind, source in page.images if kind is None]
    assert len(figures) == 3  # errors, scores, ranks
    for source in figures:
        kind, _, content = source.partition(";base64,")
        assert kind == "data:image/svg+xml"
        assert ET.fromstring(base64.b64decode(content)).tag.endswith("svg")
    frames = {source for kind, source in page.images if kind == "frame"}
    assert 1 < len(frames) <= 3  # of the videos that flipped
    for source in frames:
        picture = Image.open(io.BytesIO(base64.b64decode(source.partition(";base64,")[2])))
        assert len(picture.convert("RGB").getcolors(1 << 20) or ()) > 100, "no picture of a video"


@pytest.fixture(scope="module")
def hostile_page(bundle: Bundle, clips: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of a good bundle over names and texts that act on their readers.

    A path is markup, is red in a terminal and reads backwards, and a text has no end.
    """
    output = tmp_path_factory.mktemp("report")
    folder = output / "<b>&videos\x1b[31mred\u202egnp"
    folder.mkdir()
    (folder / "frog\x07.webm").symlink_to(clips / "edge_cases/torchcodec_test_non_zero_start.mp4")
    (folder / "none\x07.mp4").write_bytes(b"no video")
    verify_bundle(
        bundle,
        videos=folder,
        texts=["<script>alert(1)</script>", "a frog\x00", "word " * 2000],
        output=output,
        report=True,
        max_unreadable_share=0.5,
    )
    return (output / "report.html").read_text("utf-8")


def test_the_page_of_a_good_bundle_escapes_what_others_wrote(hostile_page: str) -> None:
    content = hostile_page
    page = Page(content)
    assert page.open == []
    assert "script" not in re.findall(r"<(\w+)", content)
    assert "&lt;b&gt;&amp;videos" in content
    text = " ".join(page.text)
    assert "No text ranks two videos in another order" in text
    assert "no recalls" in text


def test_what_acts_on_a_reader_is_shown_as_an_escape(hostile_page: str) -> None:
    content = hostile_page
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", content)
    assert r"\x1b[31mred\u202egnp" in content
    assert r"none\x07.mp4" in content
    assert max(map(len, Page(content).text)) <= 4000  # the style sheet
