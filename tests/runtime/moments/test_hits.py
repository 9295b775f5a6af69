"""Pictures and cuts of search hits, from files that stay, change and go."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from numbered_movies import number_in, write_movie

from xclip_deploy import Bundle, Retriever
from xclip_deploy.errors import InvalidArgumentError, MomentSourceError
from xclip_deploy.runtime.evidence import explainer
from xclip_deploy.runtime.gallery import GalleryVideo
from xclip_deploy.runtime.results import SearchResult
from xclip_deploy.runtime.video import read_video

RATE = 10


@pytest.fixture(scope="module")
def movie(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_movie(tmp_path_factory.mktemp("movie") / "movie.mp4", 20, sounds=((0, 20),))


@pytest.fixture
def video(movie: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy2(movie, tmp_path / "movie.mp4"))


@pytest.fixture
def retriever(bundle: Bundle, video: Path, tmp_path: Path) -> Retriever:
    opened = Retriever(bundle, tmp_path / "gallery", create=True)
    opened.add(video, segment="6s", stride="3s")
    return opened


def hit_at(retriever: Retriever, start_s: float) -> SearchResult:
    hits = retriever.search("a dog", 50, group="moment")
    return next(hit for hit in hits if hit.start_s == start_s)


def test_a_hit_is_cut_to_its_segment(retriever: Retriever, tmp_path: Path) -> None:
    hit = hit_at(retriever, 6)
    cut = hit.cut(tmp_path / "m.mp4")
    assert (cut.start_s, cut.end_s, cut.has_sound) == (6, 12, True)
    sampling = retriever.reading.sampling
    frames = read_video(cut.path, sampling, 96).frames
    assert [number_in(frame) for frame in frames] == list(range(60, 120, RATE))
    padded = hit.cut(tmp_path / "m.mp4", pad_s=1, overwrite=True)
    assert (padded.start_s, padded.end_s) == (5, 13)
    assert hit.range is not None
    refined = hit.cut(tmp_path / "r.mp4", refined=True)
    assert (refined.start_s, refined.end_s) == pytest.approx((hit.range.start_s, hit.range.end_s))
    copied = hit.cut(tmp_path / "c.mp4", mode="copy")
    assert copied.start_s <= 6 < 12 <= copied.end_s


def test_frames_are_those_of_the_segment(retriever: Retriever) -> None:
    hit = hit_at(retriever, 6)
    frames, times_s = hit.frames(max_frames=7)
    assert len(frames) == 7
    assert [number_in(frame) for frame in frames] == [round(RATE * time) for time in times_s]
    assert times_s[0] >= 6
    assert times_s[-1] < 12


def test_other_moments_are_cut_too(retriever: Retriever, tmp_path: Path) -> None:
    (hit,) = retriever.search("a dog", per_video=3)
    assert len(hit.moments) == 2
    moment = hit.moments[0]
    cut = hit.cut(tmp_path / "m.mp4", moment)
    assert (cut.start_s, cut.end_s) == (moment.start_s, moment.end_s)
    assert len(hit.frames(moment, max_frames=3)[0]) == 3
    assert hit.thumbnail(moment).shape == hit.thumbnail().shape


def test_a_thumbnail_is_stored_for_every_segment(
    retriever: Retriever, video: Path, tmp_path: Path
) -> None:
    stored = list((tmp_path / "gallery" / "thumbnails").rglob("*.webp"))
    assert len(stored) == len(retriever.gallery.snapshot()) == 6
    size = retriever.reading.image_size
    hit = hit_at(retriever, 6)
    video.unlink()
    thumbnail = hit.thumbnail()  # which needs no video
    assert thumbnail.shape == (size, size, 3)
    assert number_in(thumbnail) == 90  # the middle of 6 to 12 s
    for path in stored:
        path.write_bytes(b"damaged")
    with pytest.raises(MomentSourceError, match="is gone"):
        hit.thumbnail()


def test_opening_and_searching_read_no_thumbnails(
    bundle: Bundle, retriever: Retriever, tmp_path: Path
) -> None:
    folder, touched = str(tmp_path / "gallery" / "thumbnails"), list[str]()

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event in {"open", "os.listdir", "os.scandir"} and folder in str(arguments[0]):
            touched.append(str(arguments[0]))

    retriever.close()
    sys.addaudithook(note)  # for good: this folder is opened by nobody else
    with Retriever(bundle, tmp_path / "gallery") as opened:
        opened.warm_up()
        hits = opened.search("a dog", 50, group="moment")
        assert len(list(opened.gallery.videos())) == 1
        assert (len(hits), touched) == (6, [])
        hits[0].thumbnail()
        assert len(touched) == 1  # the hook sees a thumbnail that is read


def test_without_thumbnails_the_best_frame_is_read(
    bundle: Bundle, video: Path, tmp_path: Path
) -> None:
    for gallery in (tmp_path / "bare", None):
        with Retriever(bundle, gallery, create=gallery is not None) as retriever:
            retriever.add(video, segment=6, stride=3, thumbnails=False)
            hit = hit_at(retriever, 6)
            assert number_in(hit.thumbnail()) == round(RATE * hit.best_frame_time_s)
    assert not (tmp_path / "bare" / "thumbnails").exists()


def test_a_file_that_changed_is_not_shown(
    retriever: Retriever, video: Path, tmp_path: Path
) -> None:
    hit = hit_at(retriever, 6)
    os.utime(video, (1, 1))
    with pytest.raises(MomentSourceError, match=r"run: xclip-deploy index"):
        hit.cut(tmp_path / "m.mp4")
    with pytest.raises(MomentSourceError, match=r"run: xclip-deploy index"):
        hit.frames()
    video.unlink()
    with pytest.raises(MomentSourceError, match="is gone"):
        hit.cut(tmp_path / "m.mp4")
    assert not (tmp_path / "m.mp4").exists()


def test_another_file_with_the_same_content_will_do(
    retriever: Retriever, video: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copy2(video, tmp_path / "copy.mp4"))
    retriever.add(copy)
    hit = hit_at(retriever, 6)
    assert hit.paths == (str(video), str(copy))
    video.unlink()
    assert hit.cut(tmp_path / "m.mp4").end_s == 12


def test_features_without_a_file_have_no_pictures(retriever: Retriever) -> None:
    snapshot = retriever.gallery.snapshot()
    features = snapshot.features(snapshot.rows()[:1])
    times = tuple(map(float, range(int(features.num_frames[0]))))
    retriever.add_features([GalleryVideo(id="bare", duration_s=6, frame_times_s=times)], features)
    (hit,) = retriever.search("a dog", within="bare")
    with pytest.raises(MomentSourceError, match="added without a file"):
        hit.thumbnail()
    with pytest.raises(InvalidArgumentError, match="knows no file"):
        SearchResult(1, "a", None, 0.0, None, 0.0).thumbnail()


def test_hits_are_pickled_with_their_files(retriever: Retriever, tmp_path: Path) -> None:
    hit = pickle.loads(pickle.dumps(hit_at(retriever, 6)))
    assert hit.cut(tmp_path / "m.mp4").end_s == 12


def test_no_room_for_thumbnails_costs_a_warning(
    bundle: Bundle, video: Path, tmp_path: Path
) -> None:
    with Retriever(bundle, tmp_path / "full", create=True) as retriever:
        (tmp_path / "full" / "thumbnails").write_text("no folder")
        report = retriever.add(video, segment=6)
        assert report.indexed == (str(video),)
        (warning,) = report.warnings
        assert warning.path == str(tmp_path / "full" / "thumbnails")
        assert "thumbnails are missing" in warning.reason
        assert len(retriever.search("a dog")) == 1


def test_unused_thumbnails_go_when_a_gallery_is_optimized(
    retriever: Retriever, tmp_path: Path
) -> None:
    folder = tmp_path / "gallery" / "thumbnails"
    retriever.add(write_movie(tmp_path / "short.mp4", 2))
    before = sorted(folder.rglob("*.webp"))
    assert len(before) == 7
    retriever.remove(str(tmp_path / "short.mp4"))
    retriever.gallery.optimize()
    assert sorted(folder.rglob("*.webp")) == before, "a run may be about to commit them"
    for path in before:
        os.utime(path, (1, 1))
    retriever.gallery.optimize()
    assert len(list(folder.rglob("*.webp"))) == 6


def test_a_copy_of_a_gallery_has_its_thumbnails(retriever: Retriever, tmp_path: Path) -> None:
    retriever.save(tmp_path / "copy")
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / name / "thumbnails").rglob("*.webp")}
        for name in ("gallery", "copy")
    ]
    assert len(files[0]) == 6
    assert files[0] == files[1]


def test_a_segment_is_explained_with_its_own_frames(
    retriever: Retriever, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(
        explainer, "draw_explanation", lambda *arguments, **_: drawn.append(arguments[2:])
    )
    explanation = retriever.explain("a dog", hit_at(retriever, 6))
    retriever.plot_explanation(explanation, tmp_path / "plot.png")
    ((frames,), (note,)) = drawn[0]
    assert note is None
    assert [number_in(frame) for frame in frames.frames] == list(range(60, 120, RATE))
    os.utime(video, (1, 1))
    retriever.plot_explanation(explanation, tmp_path / "plot.png")
    ((frames,), (note,)) = drawn[1]
    assert frames is None
    assert "no frames" in note
