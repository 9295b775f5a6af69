"""Results show themselves in one short line, as tables in notebooks, and go through pickle."""

from __future__ import annotations

import pickle
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel

from xclip_deploy import (
    Bundle,
    FrameSampling,
    GalleryVideo,
    QueryBank,
    Retriever,
    SearchResult,
    SearchResults,
    TextFeatures,
    VideoFeatures,
    VideoFrames,
)
from xclip_deploy.export.verification import Certificate
from xclip_deploy.export.verification.certificate import InputsRecord, RunIdentity
from xclip_deploy.runtime.benchmark import (
    Benchmark,
    BenchmarkedSession,
    Machine,
    Measurement,
)
from xclip_deploy.runtime.evaluation import Evaluation, ModelIdentity
from xclip_deploy.runtime.failures import FailedVideo
from xclip_deploy.runtime.features import Scores
from xclip_deploy.runtime.grain_scores import GrainScores
from xclip_deploy.runtime.indexing import IndexReport
from xclip_deploy.runtime.manifest import Graph, Precision
from xclip_deploy.runtime.metrics import RetrievalMetrics, RetrievalResult
from xclip_deploy.runtime.presentation import (
    MAX_ROWS,
    brief,
    cut,
    html_table,
    listed,
    printable,
    time_text,
)

EVIL = "<script>alert('&\"')</script>\n" * 100
MACHINE = Machine(cpu=EVIL, cores=2, memory_bytes=None, gpus=(), system="Linux", load_average=0.0)
METRICS = RetrievalMetrics(50.0, 75.0, 100.0, 1.5, 2.25, 4)
HITS = tuple(
    SearchResult(
        n,
        f"{n}{EVIL}",
        EVIL,
        1.0 / n,
        GrainScores({"video_sentence": 0.5}),
        1.0,
        2.0,
        {"source": EVIL, "n": n},
        (EVIL,),
        (EVIL,),
    )
    for n in range(1, 4)
)


def results() -> dict[str, Any]:
    """One of every kind, with long texts that are no HTML, without those that need a model."""
    ones = np.ones((1000, 64), np.float32)
    return {
        "SearchResult": HITS[0],
        "SearchResults": SearchResults(HITS, "exact", 3, 9, EVIL),
        "IndexReport": IndexReport(
            indexed=(EVIL,) * 500, failed=(FailedVideo(EVIL, EVIL),), duplicates={EVIL: EVIL}
        ),
        "QueryBank": QueryBank(
            TextFeatures(ones, np.ones((1000, 8, 64), np.float32), np.ones(1000, np.int32))
        ),
        "Scores": Scores(ones, {"video_sentence": ones, EVIL: ones}),
        "TextFeatures": TextFeatures(ones, ones[:, None], np.ones(1000, np.int32)),
        "VideoFeatures": VideoFeatures(ones, ones[:, None], np.ones(1000, np.int32)),
        "VideoFrames": VideoFrames(
            frames=np.zeros((4, 32, 32, 3), np.uint8),
            times_s=np.arange(4.0),
            frame_numbers=np.arange(4),
            duration_s=4.0,
            frame_rate=1.0,
            warnings=(EVIL,),
        ),
        "Evaluation": Evaluation(
            split=EVIL,
            model=ModelIdentity("bundle", EVIL),
            sampling=FrameSampling(max_frames=12),
            max_words=32,
            metrics=RetrievalResult(METRICS, METRICS),
            dual_softmax=RetrievalResult(METRICS, METRICS),
            dual_softmax_temperature=1.0,
            video_ids=(EVIL,) * 10,
            video_of_caption=np.zeros(1000, np.int64),
            similarity=ones,
            missing=(EVIL,),
            unreadable=(),
            damaged=(),
        ),
        "Benchmark": Benchmark(
            bundle=EVIL,
            fingerprint="0" * 64,
            model=EVIL,
            machine=MACHINE,
            versions={},
            created_utc="2026-01-01",
            rounds=1,
            seconds=1.0,
            warmup=0,
            sessions=(
                BenchmarkedSession(
                    name=EVIL, backend="onnxruntime", device="cpu", precision="fp32", options={}
                ),
            ),
            skipped=(),
            loadings=(),
            measurements=tuple(
                Measurement(
                    session=EVIL,
                    graph=Graph.SCORER,
                    size=100,
                    latencies_s=latencies_s,
                    peak_memory_bytes=None,
                    device_memory_bytes=None,
                    error=error,
                )
                for latencies_s, error in (((0.5, 1.0), None), ((), EVIL))
            ),
        ),
        "Certificate": Certificate(
            passed=True,
            fingerprint="0" * 64,
            graphs={},
            reference=RunIdentity(
                backend=EVIL, precision=Precision.FP32, device="cpu", artefacts={}, size_bytes=0
            ),
            inputs=InputsRecord(
                source=EVIL,
                synthetic_videos=True,
                built_in_texts=True,
                has_ground_truth=False,
                num_videos=1,
                num_texts=1,
            ),
            score_scale=100.0,
            comparisons=(),
            skipped=(),
            machine=MACHINE,
            versions={},
            created_utc="2026-01-01",
        ),
    }


@pytest.fixture(scope="module")
def explained(bundle: Bundle) -> dict[str, Any]:
    """An explanation and a contrast, of a text and ids as long as they may be."""
    config = bundle.manifest.model
    rng = np.random.default_rng(0)
    frames = rng.standard_normal((2, config.max_frames, config.embed_dim)).astype(np.float32)
    frames /= np.linalg.norm(frames, axis=-1, keepdims=True)
    videos = [GalleryVideo(id=f"{n}{EVIL}", frame_times_s=(0.0,)) for n in range(2)]
    with Retriever(bundle, device="cpu") as retriever:
        retriever.add_features(videos, VideoFeatures(frames[:, 0], frames, np.ones(2, np.int32)))
        return {
            "Explanation": retriever.explain(EVIL, videos[0].id),
            "Contrast": retriever.explain(EVIL, videos[0].id, videos[1].id),
        }


NAMES = sorted([*results(), "Explanation", "Contrast"])


def same(found: Any, expected: Any) -> bool:
    """Whether two values hold the same, arrays compared by all that they hold."""
    if isinstance(expected, np.ndarray):
        return bool(found.dtype == expected.dtype and np.array_equal(found, expected))
    if is_dataclass(expected):
        return type(found) is type(expected) and all(
            same(getattr(found, each.name), getattr(expected, each.name))
            for each in fields(expected)
        )
    if isinstance(expected, QueryBank):
        return same(found.features, expected.features)
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(
            same(found[name], value) for name, value in expected.items()
        )
    if isinstance(expected, tuple):
        return len(found) == len(expected) and all(map(same, found, expected))
    return bool(found == expected)


@pytest.mark.parametrize("name", NAMES)
def test_one_short_line(name: str, explained: dict[str, Any]) -> None:
    result = (results() | explained)[name]
    line = repr(result)
    assert line.startswith(f"{name}(")
    assert line.endswith(")")
    assert len(line) <= 200
    assert "\n" not in line
    assert "array(" not in line


@pytest.mark.parametrize("name", NAMES)
def test_pickling(name: str, explained: dict[str, Any]) -> None:
    result = (results() | explained)[name]
    again = pickle.loads(pickle.dumps(result))
    assert again is not result
    assert same(again, result)
    assert repr(again) == repr(result)
    if isinstance(result, BaseModel):
        assert again == result


@pytest.mark.parametrize("name", ["SearchResults", "IndexReport", "Evaluation", "Benchmark"])
def test_a_table_in_notebooks(name: str) -> None:
    page = results()[name]._repr_html_()
    assert page.startswith("<table>")
    assert page.count("<tr>") > 1
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "'" not in page
    assert '"' not in page


def test_what_a_table_of_hits_shows() -> None:
    page = SearchResults(HITS[:1], "exact", 3, 9, "asked for")._repr_html_()
    for column in ("rank", "score", "best_frame_time_s", "duration_s", "source", "n"):
        assert f"<th>{column}</th>" in page
    assert "1 of 9 videos, exact: asked for" in page


def test_a_long_table_is_cut() -> None:
    page = html_table("title", ["n"], ([n] for n in range(1000)), 1000)
    assert page.count("<tr>") == MAX_ROWS + 1
    assert f"and {1000 - MAX_ROWS} more" in page
    assert "more" not in html_table("title", ["n"], [[1]], 1)


def test_what_acts_instead_of_showing_is_escaped() -> None:
    assert printable("a\x1b[31m\n\x85\u202e\ud800é 東🐕\\") == (
        r"a\x1b[31m\n\x85\u202e\ud800" + "é 東🐕\\"
    )
    page = html_table("\x07", ["n"], [["\u2066<"]], 1)
    assert r"<caption>\x07</caption>" in page
    assert r"<td>\u2066&lt;</td>" in page


def test_a_list_in_a_message_is_short() -> None:
    assert listed(["one", "two"]) == "one; two"
    assert listed([str(n) for n in range(10)]) == "0; 1; 2; and 7 more"
    assert len(listed(["long" * 1000] * 1000)) < 800


def test_brief() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError

    shown = brief(Odd(), a=np.zeros((2, 3), np.uint8), b=1 / 3, c={"x": 1}, d=Odd(), e="t\nu")
    assert shown == "Odd(a=uint8[2, 3], b=0.3333, c={x: 1}, d=<Odd>, e='t\\nu')"
    assert cut("abcdef", 4) == "abc…"
    assert len(brief(Odd(), **{f"n{n}": "x" * 100 for n in range(10)})) == 200


@pytest.mark.parametrize(
    ("seconds", "whole", "tenths"),
    [
        (None, "", ""),
        (0.0, "0:00", "0:00.0"),
        (7.3, "0:07", "0:07.3"),
        (9.96, "0:10", "0:10.0"),
        (59.94, "1:00", "0:59.9"),
        (59.97, "1:00", "1:00.0"),
        (119.99, "2:00", "2:00.0"),
        (3599.96, "1:00:00", "1:00:00.0"),
        (90061.04, "25:01:01", "25:01:01.0"),
        (np.float32(61.25), "1:01", "1:01.2"),
    ],
)
def test_times(seconds: float | None, whole: str, tenths: str) -> None:
    assert (time_text(seconds), time_text(seconds, 1)) == (whole, tenths)


def test_no_seconds_are_sixty() -> None:
    for n in range(40_000):
        assert ":60" not in time_text(n / 100, 1)


def test_times_are_split_in_one_place() -> None:
    """No other code of the product divides seconds by 60."""
    root = Path(__file__).parents[2]
    for folder in ("runtime", "training", "export", "xclip_deploy/cli"):
        for file in sorted((root / folder).rglob("*.py")):
            if file.name != "presentation.py":
                code = file.read_text(encoding="utf-8")
                assert not re.search(r"divmod\([^)]*\b60\)|// 60\b|% 60\b|// 3600\b", code), file
