"""Pictures of the page for the README.

They are made where ``XCLIP_DEPLOY_PICTURES`` names a folder. ``XCLIP_DEPLOY_PICTURES_BUNDLE`` names
the bundle of a trained model; the tests' own model finds nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from xclip_deploy import Retriever
from xclip_deploy.training.datasets.generated import LongVideoSizes, make_long_videos

FOLDER = os.environ.get("XCLIP_DEPLOY_PICTURES")
QUERY = "a yellow triangle shrinks while a green circle flashes"


@pytest.mark.slow
@pytest.mark.skipif(FOLDER is None, reason="XCLIP_DEPLOY_PICTURES names no folder for pictures")
def test_pictures(
    open_live: Callable[..., str], visit: Any, bundle_path: Path, clips: Path, tmp_path: Path
) -> None:
    assert FOLDER is not None
    folder = Path(FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    bundle = Path(os.environ.get("XCLIP_DEPLOY_PICTURES_BUNDLE", bundle_path))
    make_long_videos(tmp_path / "long", LongVideoSizes(24, 10, 60), seed=3)
    with Retriever(bundle, tmp_path / "gallery", create=True, device="cpu") as retriever:
        for camera, places in (("cam1", slice(0, 12)), ("cam2", slice(12, 24))):
            files = sorted((tmp_path / "long" / "videos").glob("*.mp4"))[places]
            retriever.add(files, segment="6s", metadata={"source": camera})
        walking = [clips / "sam2_dog.mp4", clips / "intel_asl_walk.mkv"]
        retriever.add(walking, segment="6s", metadata={"source": "street"})
    address = open_live(bundle=bundle, gallery=tmp_path / "gallery")

    for scheme in ("light", "dark"):
        site = visit(address, f"/?q={QUERY}", color_scheme=scheme)
        site.cards().first.locator(".play-button").click()
        site.moment()
        site.page.keyboard.press("Space")
        site.page.click("#section-why summary")
        site.page.wait_for_selector(".heat-map")
        site.page.mouse.move(2, 2)
        site.page.wait_for_timeout(1500)
        take(site, folder / f"page-{scheme}.png")
    site = visit(
        address, f"/?q={QUERY}", viewport={"width": 360, "height": 740}, device_scale_factor=2
    )
    site.cards()
    site.page.wait_for_timeout(1000)
    take(site, folder / "page-phone.png")


def take(site: Any, path: Path) -> None:
    """Take a picture of the page, packed well, as it is part of the repository."""
    site.page.screenshot(path=path)
    with Image.open(path) as picture:
        content = picture.convert("RGB")
    content.save(path, optimize=True)
