"""Videos that are searched by or embedded, and are far longer than the model's span."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from long_clips import make_long

from xclip_deploy import Bundle, Retriever, SearchResults
from xclip_deploy.runtime.video import VideoFrames

SCRIPT = Path(sys.executable).with_name("xclip-deploy")
HOW = "what lies between is not seen: cut out what matters, by: xclip-deploy cut VIDEO "


@pytest.fixture(scope="module")
def hour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_long(tmp_path_factory.mktemp("hour") / "hour.mp4", 3600, rate=1)


@pytest.fixture(scope="module")
def warning(bundle: Bundle, hour: Path) -> str:
    frames = bundle.manifest.model.max_frames
    span_s = round(3599 / (frames - 1))
    return f"{hour}: 1:00:00 are seen in {frames} frames, one every {span_s} s; {HOW}"


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    caplog.clear()
    return found


def test_searches_by_a_thinned_video_warn(
    retriever: Retriever, hour: Path, warning: str, clips: Path, caplog: pytest.LogCaptureFixture
) -> None:
    retriever.add([clips / "sam2_dog.mp4"])
    caplog.clear()
    searches: tuple[Callable[[], SearchResults], ...] = (
        lambda: retriever.search_by_video(hour),
        lambda: retriever.search("a", video=hour),
    )
    for search in searches:
        found = search()
        assert found
        (said,) = found.warnings
        assert said.startswith(warning)
        assert logged(caplog) == [said]
        assert found.to_dict()["warnings"] == [said]
        assert "1:00:00 are seen in" in found._repr_html_()
        assert "warnings=" in repr(found)
    for found in (retriever.search_by_video(clips / "sam2_dog.mp4"), retriever.search("a dog")):
        assert found.warnings == ()
    assert logged(caplog) == []


def test_an_empty_gallery_warns_too(retriever: Retriever, hour: Path, warning: str) -> None:
    (said,) = retriever.search_by_video(hour).warnings
    assert said.startswith(warning)


def test_embedding_a_thinned_video_warns(
    retriever: Retriever, hour: Path, warning: str, clips: Path, caplog: pytest.LogCaptureFixture
) -> None:
    retriever.encode_videos([clips / "sam2_dog.mp4", hour])
    (said,) = logged(caplog)
    assert said.startswith(warning)


def test_thinned_frames_in_memory_warn(
    retriever: Retriever, hour: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frames = retriever.read_video(hour)
    assert logged(caplog) == []  # its times are in the result
    retriever.encode_videos([frames])
    (said,) = logged(caplog)
    assert said.startswith("a video in memory: 1:00:00 are seen in ")
    most = retriever.reading.sampling.max_frames
    minute = np.zeros((60, 8, 8, 3), np.uint8)
    retriever.encode_videos([minute, minute[: 3 * most], minute[:1]])
    (said,) = logged(caplog)
    assert said.startswith(f"a video in memory: 1:00 are seen in {most} frames")


def test_a_damaged_video_warns(
    retriever: Retriever, hour: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frames = retriever.read_video(hour)
    worn = VideoFrames(**{**vars(frames), "duration_s": 2.0, "warnings": ("truncated",)})
    found = retriever.search_by_video(worn)
    assert found.warnings == ("a video in memory: truncated",)
    assert logged(caplog) == list(found.warnings)


def test_the_command_line_warns(
    bundle_path: Path,
    retriever: Retriever,
    hour: Path,
    warning: str,
    clips: Path,
    tmp_path: Path,
) -> None:
    short = clips / "edge_cases" / "torchcodec_h265.mp4"
    retriever.add(short)
    retriever.save(tmp_path / "gallery")

    # A process of its own: log messages are part of what its user sees.
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        places = ["--bundle", bundle_path, "--gallery", tmp_path / "gallery"]
        command = [str(word) for word in (SCRIPT, *arguments, *places)]
        return subprocess.run(command, text=True, capture_output=True, timeout=120, check=True)

    outcome = run("search", "--video", hour, "--json")
    (entry,) = json.loads(outcome.stdout)
    (said,) = entry["warnings"]
    assert said.startswith(warning)
    assert outcome.stderr.count(warning) == 1
    assert run("search", "--video", short).stderr == ""
