"""``xclip-deploy evaluate --task moments`` on real clips, each a single segment."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command_line import Run, runner

from xclip_deploy import Retriever
from xclip_deploy.errors import DatasetError
from xclip_deploy.moment_evaluation import SearchRanker, index_moments
from xclip_deploy.runtime.datasets.moments import MomentSplit, open_moments
from xclip_deploy.runtime.evaluation.moments import evaluate_moments, read_predictions
from xclip_deploy.runtime.video.segmentation import Segmentation

CLIPS = ("intel_asl_walk.mkv", "mdn_frog.webm", "sam2_dog.mp4")
TEXTS = ("video broadcaster comparing", "psycho readings", "foundation suspense bombed")


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd, "evaluate")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, clips: Path) -> Path:
    """Three clips under names with quotes and spaces, and a moment of each."""
    folder = tmp_path_factory.mktemp("it's a folder")
    with (folder / "moments.jsonl").open("w") as file:
        for name, text in zip(CLIPS, TEXTS, strict=True):
            shutil.copyfile(clips / name, folder / name)
            line = {"file": name, "caption": text, "start_s": 0.5, "end_s": 2.0}
            file.write(json.dumps(line) + "\n")
    return folder


@pytest.fixture(scope="module")
def split(dataset: Path) -> MomentSplit:
    return open_moments("folder", "test", dataset, dataset)


def arguments(dataset: Path, bundle_path: Path) -> list[object]:
    words = [bundle_path, "--task", "moments", "--dataset", "folder", "--device", "cpu"]
    return [*words, "--annotations", dataset, "--videos", dataset]


def test_whole_videos_are_ranked_as_searches_find_them(
    retriever: Retriever, split: MomentSplit, clips: Path
) -> None:
    index_moments(retriever, split)
    retriever.add(clips / "edge_cases/torchcodec_h265.mp4")  # one that is not of the split
    ranker = SearchRanker(retriever, split)
    for query, ranking in zip(split.queries, ranker.rank(TEXTS, 10), strict=True):
        hits = retriever.search(query.text, 10)
        scores = [hit.score for hit in hits]
        assert [found.score for found in ranking] == pytest.approx(scores, abs=1e-4)
        assert [found.end_s for found in ranking] == [hit.duration_s for hit in hits]
        names = [found.video_id for found in ranking]
        assert len(names) == 4
        assert set(CLIPS) < set(names)  # the fourth keeps its path
    within = ranker.rank_within(TEXTS, CLIPS, 10)
    assert [[found.video_id for found in ranking] for ranking in within] == [[c] for c in CLIPS]
    evaluation = evaluate_moments(ranker, split, k=10)
    assert evaluation.videos.value(5) == 100
    # A moment of 1.5 s in a whole video.
    ious = [1.5 / found.end_s for ranking in within for found in ranking]
    assert evaluation.within.value(1, 0.5) == 100 * sum(iou >= 0.5 for iou in ious) / 3
    assert evaluation.mean_iou == pytest.approx(100 * sum(ious) / 3)


def test_the_command(run: Run, dataset: Path, bundle_path: Path, tmp_path: Path) -> None:
    predictions, output = tmp_path / "found.jsonl", tmp_path / "result.json"
    words = [*arguments(dataset, bundle_path), "-k", 10, "--gallery", tmp_path / "gallery"]
    shown = run(*words, "--predictions", predictions, "-o", output)
    assert shown.status == 0, shown.err
    lines = shown.out.splitlines()
    assert max(map(len, [line for line in lines if "wrote" not in line])) <= 80
    assert lines[0].split() == ["R@1", "R@5", "R@10"]
    assert [line.split("  ")[0].strip() for line in lines[2:7]] == [
        "moment, IoU 0.5",
        "moment, IoU 0.7",
        "video",
        "in its video, IoU 0.5",
        "in its video, IoU 0.7",
    ]
    again = run(*words, "--json")  # from the gallery that is there
    content = again.json()
    assert content == json.loads(output.read_text())
    assert (content["num_videos"], content["num_queries"], content["k"]) == (3, 3, 10)
    assert content["VR"]["r5"] == 100
    split = open_moments("folder", "test", dataset, dataset)
    assert [len(ranking) for ranking in read_predictions(predictions, split.queries)] == [3] * 3


def test_didemo_prints_chance(run: Run, dataset: Path, bundle_path: Path, tmp_path: Path) -> None:
    entries = [
        {"video": name, "description": text, "times": [[0, 0]] * 4}
        for name, text in zip(CLIPS, TEXTS, strict=True)
    ]
    (tmp_path / "test_data.json").write_text(json.dumps(entries))
    words = arguments(dataset, bundle_path)
    words[words.index("folder")] = "didemo"
    words[words.index("--annotations") + 1] = tmp_path
    shown = run(*words)
    assert shown.status == 0, shown.err
    chance = next(line for line in shown.out.splitlines() if line.startswith("chance"))
    assert chance.split() == ["chance", "4.76", "23.81", "11.67"]
    assert max(map(len, shown.out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--dual-softmax"], "--dual-softmax does not go with --task moments"),
        (["--fps", "2"], "--fps does not go with --task moments"),
        (["--segment", "soon"], "segment is 'soon'; expected a time"),
        (["--segment", "4s", "--stride", "8s"], "stride is 8 s and a segment 4 s long"),
        (["--predictions", "/none/of/these"], "expected a file in a folder that is there"),
        (["-k", "0"], "0 is not in the range"),
    ],
)
def test_options_that_make_no_sense(
    run: Run, dataset: Path, bundle_path: Path, words: list[str], expected: str
) -> None:
    outcome = run(*arguments(dataset, bundle_path), *words)
    assert outcome.status != 0
    assert expected in " ".join(outcome.err.split())


def test_videos_take_no_options_of_moments(run: Run, dataset: Path, bundle_path: Path) -> None:
    words = [word for word in arguments(dataset, bundle_path) if word not in ("--task", "moments")]
    outcome = run(*words, "--stride", "4s")
    assert "--stride does not go with --task videos" in outcome.err


def test_unreadable_videos(
    retriever: Retriever, tmp_path: Path, clips: Path, split: MomentSplit
) -> None:
    shutil.copyfile(clips / CLIPS[2], tmp_path / CLIPS[2])
    (tmp_path / CLIPS[0]).write_bytes(b"no video at all")
    annotations = split.videos[0].path.parent
    broken = open_moments("folder", "test", annotations, tmp_path, max_missing_share=0.5)
    with pytest.raises(DatasetError, match=r"1 of 2 videos cannot be read.* at most 10\.0%"):
        index_moments(retriever, broken)
    report = index_moments(retriever, broken, max_unreadable_share=0.5)
    assert len(report.failed) == 1
    evaluation = evaluate_moments(SearchRanker(retriever, broken), broken)
    assert [len(ranking) for ranking in evaluation.within_rankings] == [0, 1]


def test_segments_are_ranked_where_videos_are_cut(retriever: Retriever, split: MomentSplit) -> None:
    segmentation = Segmentation("windows", 1.0, 0.5)
    report = index_moments(retriever, split, segmentation)
    assert retriever.gallery.segmentation == segmentation
    assert len(retriever.gallery.snapshot()) > len(report.indexed) == len(split.videos)
    ranker = SearchRanker(retriever, split)
    (ranking,) = ranker.rank([split.queries[0].text], 100)
    assert len(ranking) == len(retriever.gallery.snapshot())
    durations = {video.id: video.duration_s for video in retriever.gallery}
    longest_s = max(duration or 0 for duration in durations.values())
    assert all(0 <= found.start_s < found.end_s <= longest_s for found in ranking)
    video_id = split.videos[0].id
    (within,) = ranker.rank_within([split.queries[0].text], [video_id], 100)
    assert {found.video_id for found in within} == {video_id}
    expected = [found for found in ranking if found.video_id == video_id]
    assert [(found.start_s, found.end_s) for found in within] == [
        (found.start_s, found.end_s) for found in expected
    ]
    # Products of other sizes round otherwise.
    scores = [found.score for found in expected]
    assert [found.score for found in within] == pytest.approx(scores, abs=1e-5)
