"""Retriever.explain, on real clips and the real graphs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xclip_deploy import Bundle, Explanation, Gallery, GalleryVideo, Retriever
from xclip_deploy.errors import (
    GalleryError,
    GalleryModelError,
    InvalidArgumentError,
)
from xclip_deploy.runtime.evidence import Contrast, TokenKind, draw_explanation
from xclip_deploy.runtime.evidence.explainer import _thumbnails

# The tiny model knows the words of the golden texts alone.
TEXTS = ("a man is driving a car", "a cat's dog", "a man", "dogs 3 toys")
IDS = ("dog", "frog", "walk")


def assert_adds_up(explanation: Explanation) -> None:
    points = explanation.points
    words, frames = explanation.words, explanation.frames
    assert sum(points.values()) == pytest.approx(explanation.score, abs=1e-9)
    assert sum(word.points["video_word"] for word in words) == pytest.approx(
        points["video_word"], abs=1e-9
    )
    assert sum(word.points["frame_word"] for word in words) == pytest.approx(
        points["frame_word"], abs=1e-9
    )
    assert sum(frame.points["frame_word"] for frame in frames) == pytest.approx(
        points["frame_word"], abs=1e-9
    )
    assert sum(frame.points["frame_sentence"] for frame in frames) == pytest.approx(
        points["frame_sentence"], abs=1e-9
    )


@pytest.mark.parametrize("query", TEXTS)
def test_it_is_the_score_of_the_search(filled: Retriever, query: str) -> None:
    for hit in filled.search(query):
        found = filled.explain(query, hit)
        assert isinstance(found, Explanation)
        assert (found.query, found.video_id, found.path) == (query, hit.id, hit.path)
        assert found.score == pytest.approx(hit.score, abs=5e-5)
        assert hit.grains is not None
        assert list(found.grains) == list(hit.grains)
        for name, value in found.grains.items():
            assert value == pytest.approx(hit.grains[name], abs=5e-6)
        assert found.best_moment.best_frame_time_s == hit.best_frame_time_s
        assert_adds_up(found)
        assert filled.explain(query, hit.id).to_dict() == found.to_dict()


@given(
    query=st.text(st.sampled_from("abcdegno 3's犬"), min_size=1, max_size=120).filter(
        lambda text: bool(text.strip())
    ),
    videos=st.permutations(IDS),
)
@settings(max_examples=15)
def test_any_text(filled: Retriever, query: str, videos: list[str]) -> None:
    contrast = filled.explain(query, *videos[:2])
    assert isinstance(contrast, Contrast)
    for each in (contrast.first, contrast.second):
        assert_adds_up(each)
        covered = [place for word in each.words for place in word.positions]
        assert covered == list(range(32))
    assert sum(contrast.grains.values()) == pytest.approx(contrast.difference, abs=1e-9)


def test_words_and_frames(filled: Retriever) -> None:
    found = filled.explain("a man's car", "walk")
    texts = [word.text for word in found.words]
    assert texts == ["start", "a", "man", "'s", "car", "end", "padding"]
    assert found.words[0].kind is TokenKind.START
    entry = next(v for v in filled.gallery.snapshot().listing() if v.id == "walk")
    valid = len(entry.frame_times_s)
    assert tuple(frame.time_s for frame in found.frames[:valid]) == entry.frame_times_s
    assert {frame.time_s for frame in found.frames[valid:]} == {None}
    assert len(found.frames) == 12
    assert found.word_frame_similarity.shape == (7, 12)
    assert found.decomposition.similarity.shape == (32, 12)
    for number, word in enumerate(found.words):
        row = found.word_frame_similarity[number, :valid]
        assert word.similarity == row.max()
        assert word.best_frame == row.argmax()
    # The published scorer counts padding, and so does its explanation.
    assert found.words[-1].contribution != 0
    assert any(frame.contribution for frame in found.frames[valid:])


@pytest.mark.parametrize(
    ("query", "video", "any_missing"),
    [
        ("a man is driving a car", "dog", False),
        ("a cat , dog", "dog", True),
        ("3 dogs driving a cat", "walk", True),
        ("3 dogs driving a cat", "frog", False),
    ],
)
def test_words_that_found_nothing(
    filled: Retriever, query: str, video: str, any_missing: bool
) -> None:
    """Those without which the score, of a text that is typed anew, is no lower."""
    found = filled.explain(query, video)
    expected = []
    for word in found.words:
        if word.kind is not TokenKind.WORD:
            assert word.score_without is None
            continue
        place = word.positions[0] - 1
        rest = query.split()[:place] + query.split()[place + 1 :]
        without = filled.explain(" ".join(rest), video).score
        assert word.score_without == pytest.approx(without, abs=1e-4)
        if without >= found.score and word.text != ",":
            expected.append(word)
    assert list(found.missing_words) == expected
    assert bool(expected) == any_missing
    listed = ", ".join(f"“{word.text}”" for word in expected)
    assert (f"no lower without {listed}" in str(found)) == any_missing
    # A word that adds to the score was found, though the score needs it not.
    unfound = [word for word in expected if word.contribution <= 0]
    assert list(found.unfound_words) == unfound
    names = ", ".join(f"“{word.text}”" for word in unfound)
    assert str(found).endswith(f"nothing found for {names}") == bool(unfound)


def test_why_one_ranks_above_another(filled: Retriever) -> None:
    query = TEXTS[0]
    first, second, _ = filled.search(query)
    found = filled.explain(query, first, second)
    assert found.difference == pytest.approx(first.score - second.score, abs=1e-4)
    assert found.difference > 0
    turned = filled.explain(query, second, first)
    assert turned.difference == -found.difference
    for name, value in found.grains.items():
        assert turned.grains[name] == pytest.approx(-value, abs=1e-12)
    words, frames = found.words, found.frames
    for grain, parts in (
        ("video_word", words),
        ("frame_word", words),
        ("frame_word", frames),
        ("frame_sentence", frames),
    ):
        total = sum(part.points[grain] for part in parts)
        assert total == pytest.approx(found.grains[grain], abs=1e-9)
    assert {frame.video_id for frame in frames} == {first.id, second.id}
    # Whichever way round it was asked, the higher one is named first.
    start = f"{first.id} ranks above {second.id} by {found.difference:.2f} ("
    assert str(found).startswith(start)
    assert str(turned).startswith(start)
    grain = max(found.grains, key=lambda name: found.grains[name])
    assert f"most of all by {grain.replace('_', '–')} (+" in str(found)


def test_a_video_and_itself(filled: Retriever) -> None:
    found = filled.explain(TEXTS[0], "dog", "dog")
    assert found.difference == 0
    assert "dog and dog score the same" in str(found)


def test_it_is_plain_json(filled: Retriever) -> None:
    one = filled.explain(TEXTS[1], "dog")
    again = json.loads(json.dumps(one.to_dict(), allow_nan=False))
    assert again["score"] == one.score
    assert again["words"][0]["kind"] == "start"
    weights = again["decomposition"]["attention"]["words_first"]
    assert np.array(weights["words"]).shape == (32, 12)
    assert np.array(weights["frames"]).shape == (12,)
    two = filled.explain(TEXTS[1], "dog", "frog")
    assert json.loads(json.dumps(two.to_dict(), allow_nan=False))["first"] == again


def test_padding_that_is_masked_contributes_nothing(filled: Retriever, bundle: Bundle) -> None:
    from xclip_deploy.runtime.evidence import decompose

    config = bundle.manifest.model.model_copy(update={"mask_padding": True})
    text = filled.encode_texts(["a man"])
    held = filled.gallery.snapshot().held()
    assert held is not None
    video = held[1][:1]
    found = decompose(text, video, bundle.scorer_weights(), config)
    part = found.contributions["frame_word"]
    assert not part[int(text.num_words[0]) :].any()
    assert part[: int(text.num_words[0])].any()


# Bad input


def test_a_video_that_is_not_there(filled: Retriever) -> None:
    with pytest.raises(GalleryError, match="no video 'cat' in the gallery of 3"):
        filled.explain("a man", "cat")
    with pytest.raises(GalleryError, match="no video 'cat'"):
        filled.explain("a man", "dog", "cat")
    wrong: Any = 3
    with pytest.raises(InvalidArgumentError, match="a search result or an id"):
        filled.explain("a man", wrong)


def test_a_hit_that_was_removed(bundle: Bundle, filled: Retriever) -> None:
    snapshot = filled.gallery.snapshot()
    held = snapshot.held()
    assert held is not None
    with Retriever(bundle, device="cpu", threads=1) as retriever:
        retriever.add_features(list(snapshot.listing()), held[1])
        hit = retriever.search("a man", k=1)[0]
        retriever.remove(hit.id)
        with pytest.raises(GalleryError, match="in the gallery of 2"):
            retriever.explain("a man", hit)


@pytest.mark.parametrize("query", ["", "  \n", None, 3])
def test_a_text_without_a_word(filled: Retriever, query: Any) -> None:
    said = "holds no word to explain" if isinstance(query, str) else r"query is .*expected a text"
    with pytest.raises(InvalidArgumentError, match=said):
        filled.explain(query, "dog")


def test_a_gallery_of_another_model(bundle: Bundle) -> None:
    manifest = bundle.manifest.model_copy(update={"fingerprint": "0" * 64})
    with pytest.raises(GalleryModelError, match="run: xclip-deploy index"):
        Retriever(bundle, Gallery(manifest), device="cpu")


# The picture


def size_of(path: Path) -> tuple[int, int]:
    from PIL import Image

    image: Image.Image
    with Image.open(path) as image:
        assert image.format == "PNG"
        return image.size


def colours(path: Path) -> np.ndarray[Any, Any]:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def num_colours(path: Path) -> int:
    red, green, blue = colours(path).reshape(-1, 3).astype(np.int32).T
    return len(np.unique(red << 16 | green << 8 | blue))


def test_a_picture_shows_the_frames(filled: Retriever, tmp_path: Path) -> None:
    found = filled.explain("a man is driving a car", "dog")
    with_frames, without = tmp_path / "with.png", tmp_path / "without.png"
    filled.plot_explanation(found, with_frames)
    draw_explanation(found, without)
    assert size_of(with_frames) == size_of(without)
    assert num_colours(with_frames) > 5 * num_colours(without)
    assert found.path is not None
    # The best moment is drawn in a red of its own, which clips and map do not have.
    assert (colours(with_frames) == (0xD6, 0x27, 0x28)).all(axis=2).sum() > 50


def test_two_videos_one_under_the_other(filled: Retriever, tmp_path: Path) -> None:
    filled.plot_explanation(filled.explain("a man", "dog"), tmp_path / "one.png")
    filled.plot_explanation(filled.explain("a man", "dog", "frog"), tmp_path / "two.png")
    one, two = size_of(tmp_path / "one.png"), size_of(tmp_path / "two.png")
    assert one[0] == two[0]
    assert two[1] > 1.8 * one[1]


@pytest.mark.parametrize(
    "query",
    [
        "costs $5_{ and $6^ 犬が走る 🐕 " + "a " * 40,
        pytest.param("antidisestablishmentarianism" * 4, marks=pytest.mark.slow),
        pytest.param("a " * 40, marks=pytest.mark.slow),
    ],
)
def test_texts_that_are_hard_to_draw(filled: Retriever, tmp_path: Path, query: str) -> None:
    draw_explanation(filled.explain(query, "dog"), tmp_path / "a.png")
    assert min(size_of(tmp_path / "a.png")) > 300


@pytest.mark.parametrize(
    ("path", "note"),
    [(None, "without a file"), ("gone.mp4", "no such file"), ("other", "is another video")],
)
def test_a_file_that_is_gone(
    bundle: Bundle, filled: Retriever, clips: Path, tmp_path: Path, path: str | None, note: str
) -> None:
    held = filled.gallery.snapshot().held()
    assert held is not None
    features = held[1][:1]
    entry = GalleryVideo(
        id="x",
        path=str(clips / "intel_asl_walk.mkv") if path == "other" else path,
        duration_s=9.0,
        frame_times_s=tuple(float(n) for n in range(int(features.num_frames[0]))),
    )
    with Retriever(bundle, device="cpu", threads=1) as retriever:
        retriever.add_features([entry], features)
        found = retriever.explain("a man", "x")
        frames, said = _thumbnails(found, retriever.read_video)
        assert frames is None
        assert said is not None
        assert note in said
        retriever.plot_explanation(found, tmp_path / "a.png")
        draw_explanation(found, tmp_path / "b.png")
    # A line more than the picture without a note.
    assert size_of(tmp_path / "a.png")[1] > size_of(tmp_path / "b.png")[1]


def test_a_picture_that_cannot_be_written(filled: Retriever, tmp_path: Path) -> None:
    found = filled.explain("a man", "dog")
    for path in (tmp_path / "none" / "a.png", tmp_path):
        with pytest.raises(InvalidArgumentError, match="cannot be written"):
            draw_explanation(found, path)
