from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xclip_deploy import (
    Bundle,
    Retriever,
    SearchResult,
    VideoFeatures,
    VideoFrames,
)
from xclip_deploy.errors import (
    InvalidArgumentError,
    VideoNotFoundError,
    VideoReadError,
)

FROG, DOG, WALK = "mdn_frog.webm", "sam2_dog.mp4", "intel_asl_walk.mkv"
# Small, for tests to which the content does not matter.
TURNED, STREET = "edge_cases/decord_video_90.mov", "edge_cases/torchcodec_h265.mp4"
# Words of the golden texts: the tiny model knows no others.
TEXTS = ("a man is driving a car", "a cat's dog", "a man", "dogs 3 toys")


@pytest.fixture(scope="module")
def clips(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real clips but the one in HDR, whose first frame costs 2.6 s (see test_colour.py)."""
    folder = tmp_path_factory.mktemp("real") / "clips"
    shutil.copytree(clips, folder, ignore=shutil.ignore_patterns("dog_pq.mp4"))
    return folder


@pytest.fixture(scope="module")
def filled(
    bundle: Bundle, clips: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Retriever]:
    """All the real clips, encoded once. Not to be changed."""
    with Retriever(bundle, device="cpu") as retriever:
        retriever.add(clips, segment="whole")
        yield retriever


@pytest.fixture(scope="module")
def frames(filled: Retriever) -> dict[str, VideoFrames]:
    """The same clips, read anew: by id."""
    return {name: filled.read_video(name) for name in ids(filled)}


def ids(retriever: Retriever) -> list[str]:
    return [video.id for video in retriever.gallery.snapshot().listing()]


def features_of(retriever: Retriever) -> VideoFeatures:
    """Everything in the gallery, in the order of ``ids``."""
    held = retriever.gallery.snapshot().held()
    assert held is not None
    return held[1]


def assert_ranked(results: Sequence[SearchResult], count: int) -> None:
    assert [result.rank for result in results] == list(range(1, count + 1))
    scores = [result.score for result in results]
    assert scores == sorted(scores, reverse=True)
    assert len({result.id for result in results}) == count


# Adding


def test_a_folder_of_real_clips(
    filled: Retriever, frames: dict[str, VideoFrames], clips: Path, bundle: Bundle
) -> None:
    found = {Path(name).relative_to(clips).as_posix() for name in ids(filled)}
    assert {FROG, DOG, WALK, "edge_cases/torchcodec_av1.mkv"} <= found
    assert len(found) == len(filled) >= 8
    for video in filled.gallery.snapshot().listing():
        assert video.path == video.id
        assert video.frame_times_s == tuple(frames[video.id].times_s.tolist())
        assert video.duration_s == frames[video.id].duration_s
        assert 1 <= len(video.frame_times_s) <= bundle.manifest.model.max_frames


def test_features_are_those_of_the_video(
    filled: Retriever, frames: dict[str, VideoFrames], clips: Path
) -> None:
    row = ids(filled).index(str(clips / FROG))
    expected = filled.encode_videos([frames[str(clips / FROG)]])
    found = features_of(filled)
    assert found.num_frames[row] == expected.num_frames[0]
    # A unit vector's element is at most 1, where FP16 is exact to 2^-11; half of that for most.
    for name in ("video_features", "frame_features"):
        stored = getattr(found, name)[row].astype(np.float32)
        np.testing.assert_allclose(stored, getattr(expected, name)[0], rtol=0, atol=5e-4)


# Searching


@pytest.mark.parametrize("text", TEXTS)
def test_search(filled: Retriever, text: str) -> None:
    everything = filled.search(text, k=1000)
    assert_ranked(everything, len(filled))
    for k in (1, 2, len(filled) - 1, len(filled)):
        assert filled.search(text, k).hits == everything[:k]


def test_a_text_that_is_cut_is_said(filled: Retriever, clips: Path) -> None:
    words = filled.model.config.max_words
    short, long = " ".join(["dog"] * (words - 2)), " ".join(["dog"] * (words + 3))
    found = filled.search_batch([short, long, "a dog"])
    assert [results.truncated_tokens for results in found] == [0, 5, 0]
    assert filled.search(long).is_truncated
    assert filled.search(long, video=clips / "mdn_frog.webm").truncated_tokens == 5
    assert list(found[0]) == list(found[1])  # what was cut is not in the score


def test_results_differ_between_texts(filled: Retriever) -> None:
    scores = {filled.search(text, 1)[0].score for text in TEXTS}
    assert len(scores) == len(TEXTS)


def test_scores_and_grains_are_those_of_the_scorer(filled: Retriever) -> None:
    features = filled.encode_texts(TEXTS)
    scores = filled.score(features, features_of(filled))
    column = {video_id: n for n, video_id in enumerate(ids(filled))}
    for row, results in enumerate(filled.search_batch(TEXTS, k=100)):
        for result in results:
            n = column[result.id]
            assert result.score == scores.logits[row, n]
            assert result.grains is not None
            assert result.grains == {k: v[row, n] for k, v in scores.grains.items()}
            grains = list(result.grains.values())
            assert len(grains) == 4
            assert result.score == pytest.approx(100.003 * sum(grains) / 4, abs=1e-3)


def test_the_gallery_in_fp16_loses_little(
    filled: Retriever, frames: dict[str, VideoFrames]
) -> None:
    """Against scores from the videos themselves, nothing stored in between."""
    texts = filled.encode_texts(TEXTS)
    direct = filled.score(texts, filled.encode_videos(list(frames.values()))).logits
    stored = filled.score(texts, features_of(filled)).logits
    # Measured: 2.6e-3, with a logit scale of 100.
    np.testing.assert_allclose(stored, direct, rtol=0, atol=3e-2)


def test_the_best_frame_is_the_most_similar(
    filled: Retriever, frames: dict[str, VideoFrames]
) -> None:
    # From the files themselves, one by one, by way of nothing that the search used.
    features = {
        name: filled.encode_videos([clip]).frame_features[0] for name, clip in frames.items()
    }
    times = []
    for text in TEXTS:
        sentence = filled.encode_texts([text]).sentence_features[0]
        for result in filled.search(text, k=100):
            clip_times = frames[result.id].times_s.tolist()
            valid = (features[result.id] @ sentence)[: len(clip_times)]
            best = valid[clip_times.index(result.best_frame_time_s)]
            assert best >= valid.max() - 1e-3  # FP16 in the gallery
            times.append(result.best_frame_time_s)
    assert len(set(times)) > 3, "always the first frame would pass, too"


def test_a_batch_is_its_single_searches(filled: Retriever) -> None:
    together = filled.search_batch(TEXTS, k=4)
    for text, results in zip(TEXTS, together, strict=True):
        alone = filled.search(text, k=4)
        assert [result.id for result in results] == [result.id for result in alone]
        for one, other in zip(results, alone, strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-4)
            assert one.best_frame_time_s == other.best_frame_time_s
    assert filled.search_batch([], k=4) == []


@pytest.mark.parametrize("k", [0, -1])
def test_wrong_k(filled: Retriever, clips: Path, k: int) -> None:
    for search in (
        lambda: filled.search(TEXTS[0], k),
        lambda: filled.search_batch(TEXTS, k),
        lambda: filled.search_by_video(clips / FROG, k),
    ):
        with pytest.raises(InvalidArgumentError, match=f"k is {k}"):
            search()


@pytest.mark.parametrize("text", ["", " \t\n", "\x00", "&nbsp;"])
def test_a_text_without_a_word(filled: Retriever, retriever: Retriever, text: str) -> None:
    for searched in (filled, retriever):
        with pytest.raises(InvalidArgumentError, match="holds no word"):
            searched.search(text)
        with pytest.raises(InvalidArgumentError, match="holds no word"):
            searched.search_batch(["a dog", text])


def test_what_is_no_text(filled: Retriever) -> None:
    for wrong in (None, 3, b"a dog", ["a dog"]):
        with pytest.raises(InvalidArgumentError, match="expected a text"):
            filled.search(wrong)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgumentError, match="expected a text"):
            filled.search_batch(["a dog", wrong])  # type: ignore[list-item]
    with pytest.raises(InvalidArgumentError, match=r"texts is 'dog' \(str\); expected several"):
        filled.search_batch("dog")


@pytest.mark.parametrize("text", ["!?", "🐕", "日本語", "\ud800", "a" * 5000, "<|endoftext|>"])
def test_odd_texts_are_searched(filled: Retriever, text: str) -> None:
    results = filled.search(text, k=3)
    assert_ranked(results, 3)
    assert all(math.isfinite(result.score) for result in results)


@pytest.mark.parametrize("name", [FROG, DOG, WALK, "edge_cases/torchcodec_h265.mp4"])
def test_a_video_finds_itself_first(
    filled: Retriever, frames: dict[str, VideoFrames], clips: Path, name: str
) -> None:
    clip = frames[str(clips / name)]
    results = filled.search_by_video(clip, k=100)
    assert_ranked(results, len(filled))
    assert results[0].id == str(clips / name)
    assert results[0].score == pytest.approx(1, abs=1e-3)
    assert all(result.grains is None for result in results)
    query = filled.encode_videos([clip])
    for result in results[:3]:
        other = filled.encode_videos([frames[result.id]])
        cosine = float(query.video_features[0] @ other.video_features[0])
        assert result.score == pytest.approx(cosine, abs=1e-3)
        times = frames[result.id].times_s
        similarity = other.frame_features[0, : len(times)] @ query.frame_features[0].T
        best = similarity[:, : query.num_frames[0]].max(axis=1)
        assert best[times.tolist().index(result.best_frame_time_s)] >= best.max() - 1e-3


def test_search_by_a_file_is_search_by_its_frames(
    filled: Retriever, frames: dict[str, VideoFrames], clips: Path
) -> None:
    by_frames = filled.search_by_video(frames[str(clips / FROG)])
    assert filled.search_by_video(clips / FROG).hits == by_frames.hits
    assert filled.search_by_video(str(clips / FROG)).hits == by_frames.hits


def test_search_by_what_is_no_video(filled: Retriever, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(VideoReadError):
        filled.search_by_video(tmp_path / "text.mp4")
    with pytest.raises(VideoNotFoundError):
        filled.search_by_video(tmp_path / "none.mp4")
    small = VideoFrames(np.zeros((2, 8, 8, 3), np.uint8), np.arange(2.0), np.arange(2), 2.0, 1.0)
    with pytest.raises(InvalidArgumentError, match=r"expected uint8 \[1 to 12, 64, 64, 3\]"):
        filled.search_by_video(small)


def test_results_as_json(filled: Retriever, clips: Path) -> None:
    for results in (filled.search(TEXTS[0], 2), filled.search_by_video(clips / FROG, 2)):
        for result in results:
            again = json.loads(json.dumps(result.to_dict(), allow_nan=False))
            assert again["id"] == result.id
            assert again["score"] == result.score
            assert again["best_frame_time_s"] == result.best_frame_time_s
            assert (again["grains"] is None) == (result.grains is None)


def test_several_threads_search_while_videos_are_added(
    bundle: Bundle, clips: Path, filled: Retriever
) -> None:
    names = [clips / TURNED, clips / WALK]
    with Retriever(bundle, device="cpu") as retriever, ThreadPoolExecutor(4) as pool:
        retriever.add(clips / STREET)
        searches = [pool.submit(retriever.search_batch, TEXTS) for _ in range(8)]
        additions = [pool.submit(retriever.add, name) for name in names]
        searches += [pool.submit(retriever.search_batch, TEXTS) for _ in range(8)]
        for addition in additions:
            addition.result()
        for search in searches:
            for results in search.result():
                assert_ranked(results, len(results))
                assert str(clips / STREET) in {result.id for result in results}
        assert len(retriever) == 3


# Keeping


def test_save_and_open(
    filled: Retriever,
    frames: dict[str, VideoFrames],
    bundle: Bundle,
    clips: Path,
    tmp_path: Path,
) -> None:
    dog = frames[str(clips / DOG)]
    filled.save(tmp_path / "gallery")
    for gallery in (tmp_path / "gallery", str(tmp_path / "gallery"), filled.gallery):
        with Retriever(bundle, gallery, device="cpu") as opened:
            for found, expected in zip(
                opened.search_batch(TEXTS), filled.search_batch(TEXTS), strict=True
            ):
                assert found.hits == expected.hits
            assert opened.search_by_video(dog).hits == filled.search_by_video(dog).hits
            assert opened.add(clips, on_duplicate="skip").added == ()


# Frames in memory


def test_frames_in_memory_give_what_the_file_gives(filled: Retriever, clips: Path) -> None:
    read = filled.read_video(clips / FROG)
    frames = read.frames
    expected = filled.encode_videos([clips / FROG])
    for video in (read, frames, str(clips / FROG)):
        found = filled.encode_videos([video])
        np.testing.assert_array_equal(found.frame_features, expected.frame_features)
    # In one batch, sums are added up in another order.
    both = filled.encode_videos([clips / DOG, read])
    np.testing.assert_allclose(both[1:].frame_features, expected.frame_features, atol=1e-6)
    assert filled.search_by_video(frames).hits == filled.search_by_video(clips / FROG).hits


def test_an_image_in_memory(filled: Retriever, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "image.png")
    found = filled.search_by_image(tmp_path / "image.png").hits
    assert filled.search_by_image(image).hits == found
    assert filled.search_by_image(pixels).hits == found
